"""Lowerings of codes without memory: their bits are stored where a few masks find them.

    scatter         identity formats: masks alone (scatter.py)
    permute-table   at most 8 entries of a byte: an index in a nibble is a selector of PRMT
    sign-and-table  16 entries, the second half the first negated: 8 entries and a sign
    table-of-16     16 entries: two tables and a choice

A byte may hold two E2M1 operands: then one look-up gives eight weights a register.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unspool.decode.fields import Fields, look_up_nibbles, pack, positions, why_not_wider
from unspool.decode.lowering import AND_XOR, Tape
from unspool.decode.machine import BYTES, PACKED, Slot
from unspool.decode.scatter import Tiling, cut, sources, tiling
from unspool.decode.values import bits_of, exponent_for, state_operands
from unspool.spec.code import WORD_BITS, Code
from unspool.spec.operand import E4M3, INT8
from unspool.spec.program import STATE

#: (name, tape, fields, stored bits): what a lowering is made of before conversion
Plain = tuple[str, Tape, Fields, tuple[int, ...]]
#: (tape, registers, weights in their slots, stored bits)
Written = tuple[Tape, list[str], list[int], tuple[int, ...]]

NIBBLE, SIGN_SHIFT = 4, 4


def plain_fields(code: Code, slot: Slot) -> Iterator[Plain]:
    """Every way below that makes a slot's fields, or fields that convert to it."""
    if code.memory:
        return
    if _is_identity(code):
        own = Slot(code.operand, BYTES if code.operand.bits < 8 else PACKED)
        for first in dict.fromkeys((slot, own)):
            if first == slot or slot.width == 16:
                yield from _scattered(code, first)
    for step_slot in dict.fromkeys((slot, Slot(E4M3), Slot(INT8))):
        if step_slot == slot or slot.width == 16:
            yield from _looked_up(code, step_slot)


def _is_identity(code: Code) -> bool:
    program = code.program
    bare = not program.instructions and program.outputs == ((STATE, 0),)
    return bare and code.state_bits == code.operand.bits


def _scattered(code: Code, slot: Slot) -> Iterator[Plain]:
    if why_not_wider(code.operand, slot.operand) or code.operand.bits > 8:
        return
    at = positions(code.operand, slot)
    found = tiling(slot.width, at) if slot.width == 8 or len(at) in (4, 8) else None
    if found is None or code.words % found.words:
        return
    tape, bits = Tape(), [0] * (WORD_BITS * code.words)
    registers: list[str] = []
    for group in range(0, code.words, found.words):
        words = [f"w{group + i}" for i in range(found.words)]
        made = cut(tape, words, slot.width, found)
        for index in range(len(made)):
            first = (len(registers) + index) * slot.per_register
            for bit, (word, source) in sources(slot.width, found, index).items():
                weight, place = first + bit // slot.width, at.index(bit % slot.width)
                bits[WORD_BITS * (group + word) + source] = _canonical(code, weight, place)
        registers += made
    fields = Fields(
        operand=code.operand,
        width=slot.width,
        at=at,
        registers=tuple(registers),
        places=tuple(range(code.steps)),
        clean=True,
    )
    yield "scatter", tape, fields, tuple(bits)


def _looked_up(code: Code, slot: Slot) -> Iterator[Plain]:
    """PRMT tables for a slot in bytes, or in pairs of E2M1."""
    exponent = exponent_for(code, slot.operand)
    together = slot.width * code.lanes == 8
    if not (together or slot.width == 8) or exponent is None or code.state_bits > NIBBLE:
        return
    tables = _byte_tables(code, slot, exponent)
    if code.state_bits < NIBBLE and (tables or _is_parameter(code)):
        made = _permute_table(code, slot, tables)
        yield _with(slot, exponent, "permute-table", *made)
    elif code.state_bits == NIBBLE and len(tables) == 1 and code.lanes == 1:
        sign = 1 << (slot.low + slot.operand.bits - 1)
        if not slot.operand.integer and _is_mirrored(code):
            table = tables[0][: 1 << (NIBBLE - 1)]
            yield _with(slot, exponent, "sign-and-table", *sign_and_table(code, table, sign))
        yield _with(slot, exponent, "table-of-16", *_table_of_16(code, tables[0]))


def _is_parameter(code: Code) -> bool:
    """Whether the state itself is the index of a parameter that fills one or two registers."""
    program = code.program
    if len(program.instructions) != 1 or not program.parameters:
        return False
    (look_up,), (parameter,) = program.instructions, program.parameters
    bare = look_up.arguments == (parameter.name, STATE) and code.lanes == 1
    whole = program.outputs == ((look_up.result, 0),) and parameter.operand is code.operand
    return bare and whole and parameter.length == 1 << code.state_bits >= 4


def _byte_tables(code: Code, slot: Slot, exponent: int) -> list[list[int]]:
    """A byte for every state, for all lanes together or for each; none for a parameter."""
    values = state_operands(code)
    if values is None:
        return []
    patterns = bits_of(values, slot.operand, exponent) << np.uint32(slot.low)
    if slot.width == 8:
        return [[int(entry) for entry in lane] for lane in patterns.T]
    shifts = np.arange(code.lanes, dtype=np.uint32) * np.uint32(slot.width)
    return [[int(entry) for entry in (patterns << shifts).sum(axis=1)]]


def _is_mirrored(code: Code) -> bool:
    values = state_operands(code)
    if values is None:
        return False
    half = len(values) // 2
    return bool((values[:half] == -values[half:]).all())


def _with(
    slot: Slot,
    exponent: int,
    name: str,
    tape: Tape,
    registers: list[str],
    places: list[int],
    bits: tuple[int, ...],
) -> Plain:
    fields = Fields(
        operand=slot.operand,
        width=slot.width,
        at=tuple(slot.low + bit for bit in range(slot.operand.bits)),
        registers=tuple(registers),
        places=tuple(places),
        exponent=exponent,
        clean=True,
    )
    return name, tape, fields, bits


def _permute_table(code: Code, slot: Slot, tables: list[list[int]]) -> Written:
    """At most eight bytes in two registers; each nibble of a selector register picks one.

    selector    . i i i . i i i . i i i . i i i   PRMT reads the lower half, then the upper one
    """
    by_row = not tables and code.program.parameters[0].scope == "row"
    each = 0 if tables else (1 << code.state_bits) // 4  # registers of a parameter
    tape = Tape(levels=each * code.tile[0] if by_row else each)
    registers: list[str] = []
    places: list[int] = []
    selectors, bits = _selectors(tape, code, tiling(NIBBLE, tuple(range(code.state_bits))))
    for index, selector in enumerate(selectors):
        row = 8 * index * code.lanes // code.tile[1] if by_row else 0
        pairs = [(tape.hold(pack(t[:4])), tape.hold(pack(t[4:8]))) for t in tables]
        for part in range(2):
            picked = tape.rotate(selector, 16 * part, 0xFFFF)
            steps = range(8 * index + 4 * part, 8 * index + 4 * part + 4)
            for lane, (low, high) in enumerate(pairs or [_levels_of(tape, each * row, each)]):
                registers.append(tape("select-bytes", low, high, picked))
                places += _places(code, steps, lane if slot.width == 8 else None)
    return tape, registers, places, bits


def _levels_of(tape: Tape, first: int, count: int) -> tuple[str, str]:
    return tape("level", first), tape("level", first + count - 1)


def _places(code: Code, steps: range, lane: int | None) -> list[int]:
    """The weights of a register of steps: of one lane, or of all side by side (None)."""
    lanes = range(code.lanes) if lane is None else (lane,)
    return [step * code.lanes + each for step in steps for each in lanes]


def _selectors(tape: Tape, code: Code, found: Tiling) -> tuple[list[str], tuple[int, ...]]:
    """Registers of eight nibbles, each the state of a step, and where the state's bits stand."""
    bits = [0] * (WORD_BITS * code.words)
    selectors: list[str] = []
    for group in range(0, code.words, found.words):
        made = cut(tape, [f"w{group + i}" for i in range(found.words)], NIBBLE, found)
        for index in range(len(made)):
            first = 8 * (len(selectors) + index)
            for bit, (word, source) in sources(NIBBLE, found, index).items():
                canonical = _canonical(code, first + bit // NIBBLE, bit % NIBBLE)
                bits[WORD_BITS * (group + word) + source] = canonical
        selectors += made
    return selectors, tuple(bits)


def _canonical(code: Code, step: int, bit: int) -> int:
    """The stored bit of a step's state bit."""
    first = 0
    for plane, size in zip(code.planes, code.plane_bits, strict=True):
        if bit < plane.window:
            return first + step * plane.stride + bit
        bit, first = bit - plane.window, first + size
    raise AssertionError("a state has fewer bits")


def sign_and_table(code: Code, table: list[int], sign: int) -> Written:
    """Eight bytes by PRMT, the sign from the fourth bit of a nibble.

    word   S i i i s i i i S i i i s i i i   s: signs of the second register, S of the first
    """
    tape = Tape()
    low, high = tape.hold(pack(table[:4])), tape.hold(pack(table[4:]))
    return signed_look_ups(tape, code, [(low, high)] * code.words, sign)


def signed_look_ups(tape: Tape, code: Code, tables: list[tuple[str, str]], sign: int) -> Written:
    """The same with the table of every word in two registers."""
    registers: list[str] = []
    bits = [0] * (WORD_BITS * code.words)
    turn = 7 - sign.bit_length() + 1  # from the top of a byte to the sign's place
    for word, (low, high) in enumerate(tables):
        name = f"w{word}"
        selector = tape("and", name, 0x77777777)
        for part, (chosen, amount) in enumerate(((selector, turn), (None, turn - SIGN_SHIFT))):
            chosen = chosen or tape("shr", selector, 16)
            found = tape("select-bytes", low, high, chosen)
            mask = sign * 0x01010101
            registers.append(tape("lop3", tape.rotate(name, amount, mask), mask, found, AND_XOR))
            for place in range(4):
                step = 8 * word + 4 * part + place
                for bit in range(3):
                    target = 32 * word + 16 * part + 4 * place + bit
                    bits[target] = _canonical(code, step, bit)
                bits[32 * word + 8 * place + 7 - SIGN_SHIFT * part] = _canonical(code, step, 3)
    return tape, registers, list(range(code.steps)), tuple(bits)


def _table_of_16(code: Code, table: list[int]) -> Written:
    """Stored as the indices stand in nibbles."""
    tape = Tape()
    bits = tuple(_canonical(code, bit // 4, bit % 4) for bit in range(WORD_BITS * code.words))
    words = [f"w{word}" for word in range(code.words)]
    registers = [found for word in words for found in look_up_nibbles(tape, word, table)]
    return tape, registers, list(range(code.steps)), bits
