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

from unspool.decode.fields import Fields, positions, why_not_wider
from unspool.decode.lowering import AND_OR, AND_XOR, Tape
from unspool.decode.machine import BYTES, PACKED, Slot
from unspool.decode.scatter import Tiling, cut, sources, tiling
from unspool.decode.values import bits_of, exponent_for, state_operands
from unspool.spec.code import WORD_BITS, Code
from unspool.spec.operand import E4M3, INT8
from unspool.spec.program import STATE

#: (name, tape, fields, stored bits, levels): what a lowering is made of before conversion
Plain = tuple[str, Tape, Fields, tuple[int, ...], int]

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
    return not program.instructions and program.outputs == ((STATE, 0),)


def _scattered(code: Code, slot: Slot) -> Iterator[Plain]:
    if why_not_wider(code.operand, slot.operand) or code.operand.bits > 8:
        return
    at = positions(code.operand, slot)
    found = tiling(slot.width, at) if slot.width == 8 or len(at) in (4, 8) else None
    if found is None or code.words % found.words:
        return
    tape, bits, registers = Tape(), [0] * (WORD_BITS * code.words), []
    for group in range(0, code.words, found.words):
        words = [f"w{group + i}" for i in range(found.words)]
        made = cut(tape, words, slot.width, found)
        for index in range(len(made)):
            first = (len(registers) + index) * slot.per_register
            for bit, (word, source) in sources(slot.width, found, index).items():
                weight, place = first + bit // slot.width, at.index(bit % slot.width)
                bits[WORD_BITS * (group + word) + source] = weight * code.state_bits + place
        registers += made
    fields = Fields(
        operand=code.operand,
        width=slot.width,
        at=at,
        registers=tuple(registers),
        places=tuple(range(code.steps)),
        clean=True,
    )
    yield "scatter", tape, fields, tuple(bits), 0


def _looked_up(code: Code, slot: Slot) -> Iterator[Plain]:
    """PRMT tables for a slot in bytes, or in pairs of E2M1."""
    wide = slot.width * code.lanes
    exponent = exponent_for(code, slot.operand)
    if wide != 8 or exponent is None or code.state_bits > NIBBLE:
        return
    table = _byte_table(code, slot, exponent)
    if code.state_bits < NIBBLE:
        yield _with(code, slot, exponent, "permute-table", *_permute_table(code, table))
    elif table is not None:
        sign = 1 << (slot.low + slot.operand.bits - 1)
        half = 1 << (NIBBLE - 1)
        mirrored = not slot.operand.integer and _is_mirrored(code) and code.lanes == 1
        if mirrored:
            made = _sign_and_table(code, table[:half], sign)
            yield _with(code, slot, exponent, "sign-and-table", *made)
        yield _with(code, slot, exponent, "table-of-16", *_table_of_16(code, table))


def _byte_table(code: Code, slot: Slot, exponent: int) -> list[int] | None:
    """A byte for every state, None where it is a parameter."""
    values = state_operands(code)
    if values is None:
        return None
    patterns = bits_of(values, slot.operand, exponent) << np.uint32(slot.low)
    shifts = np.arange(code.lanes, dtype=np.uint32) * np.uint32(slot.width)
    return [int(entry) for entry in (patterns << shifts).sum(axis=1)]


def _is_mirrored(code: Code) -> bool:
    values = state_operands(code)
    if values is None:
        return False
    half = len(values) // 2
    return bool((values[:half] == -values[half:]).all())


def _with(
    code: Code,
    slot: Slot,
    exponent: int,
    name: str,
    tape: Tape,
    registers: list[str],
    bits: tuple[int, ...],
    levels: int,
) -> Plain:
    fields = Fields(
        operand=slot.operand,
        width=slot.width,
        at=tuple(slot.low + bit for bit in range(slot.operand.bits)),
        registers=tuple(registers),
        places=tuple(range(code.steps * code.lanes)),
        exponent=exponent,
        clean=True,
    )
    return name, tape, fields, bits, levels


def _pack(entries: list[int]) -> int:
    return sum(entry << (8 * place) for place, entry in enumerate(entries))


def _permute_table(
    code: Code, table: list[int] | None
) -> tuple[Tape, list[str], tuple[int, ...], int]:
    """At most eight bytes in two registers; each nibble of a selector register picks one.

    selector    . i i i . i i i . i i i . i i i   PRMT reads the lower half, then the upper one
    """
    tape, registers = Tape(), []
    selectors, bits = _selectors(tape, code, tiling(NIBBLE, tuple(range(code.state_bits))))
    levels = 0
    for index, selector in enumerate(selectors):
        row = index * 8 * code.lanes // code.tile[1]  # of the register's eight indices
        if table is None:
            scope = code.program.parameters[0].scope
            first = 2 * row if scope == "row" else 0
            low, high = tape("level", first), tape("level", first + 1)
            levels = max(levels, first + 2)
        else:
            low, high = tape.hold(_pack(table[:4])), tape.hold(_pack(table[4:8]))
        upper = tape("shr", selector, 16)
        registers += [tape("select-bytes", low, high, part) for part in (selector, upper)]
    return tape, registers, bits, levels


def _selectors(tape: Tape, code: Code, found: Tiling) -> tuple[list[str], tuple[int, ...]]:
    """Registers of eight nibbles, each the state of a step, and where the state's bits stand."""
    bits, selectors = [0] * (WORD_BITS * code.words), []
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


def _sign_and_table(
    code: Code, table: list[int], sign: int
) -> tuple[Tape, list[str], tuple[int, ...], int]:
    """Eight bytes by PRMT, the sign from the fourth bit of a nibble.

    word   S i i i s i i i S i i i s i i i   s: signs of the second register, S of the first
    """
    tape, registers = Tape(), []
    bits = [0] * (WORD_BITS * code.words)
    low, high = tape.hold(_pack(table[:4])), tape.hold(_pack(table[4:]))
    turn = 7 - sign.bit_length() + 1  # from the top of a byte to the sign's place
    for word in range(code.words):
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
    return tape, registers, tuple(bits), 0


def _table_of_16(code: Code, table: list[int]) -> tuple[Tape, list[str], tuple[int, ...], int]:
    """Two tables of eight bytes; the fourth bit of a nibble chooses between their results."""
    tape, registers = Tape(), []
    packed = [tape.hold(_pack(table[first : first + 4])) for first in range(0, 16, 4)]
    places = tape.hold(0x32103210)
    bits = tuple(
        _canonical(code, bit // 4, bit % 4) for bit in range(WORD_BITS * code.words)
    )
    for word in range(code.words):
        index = tape("and", f"w{word}", 0x77777777)
        choice = tape("lop3", tape("shr", f"w{word}", 1), 0x44444444, places, AND_OR)
        for shift in (0, 16):
            at = tape.rotate(index, shift, 0xFFFF)
            low = tape("select-bytes", packed[0], packed[1], at)
            high = tape("select-bytes", packed[2], packed[3], at)
            chosen = tape.rotate(choice, shift, 0xFFFF)
            registers.append(tape("select-bytes", low, high, chosen))
    return tape, registers, bits, 0

