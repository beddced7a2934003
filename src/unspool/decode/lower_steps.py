"""Lowering step by step: serves every program and every layout of planes.

    words --windows--> state --the program's instructions--> lanes --gathered--> fields

Windows that start at a byte are cut by one byte permute, and a program that begins by permuting
the bytes of its window permutes the stored words instead. Where it then keeps the same bits of
every byte, it can as well permute words of which nothing else is left: one `and` for all steps that
read a word (`masked`). Where a register of fields is gathered from several steps, what these do to
each byte alone can be done once, behind the gathering (`late`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from unspool.decode.fields import E4M3_IS_E2M3, Fields
from unspool.decode.interpret import all_states, registers, tabulate
from unspool.decode.lowering import FULL, Tape
from unspool.decode.sign_plane import SignPlane
from unspool.decode.values import tabulated
from unspool.spec.code import WORD_BITS, Code
from unspool.spec.operand import E2M3, E4M3
from unspool.spec.program import STATE, Instruction

EVERY_BYTE = 0x01010101

BYTEWISE = ("and", "or", "xor", "lop3", "add")
"""What may be done to bytes before or behind a permute; `add` where no byte carries."""

ENTRY_SHIFT = 2
"""Windows are cut four times as large: LDS takes the index as a byte offset, no shift between."""

SELECTOR_TOPS = 0x8888
"""Bits of a selector that the machine's permute reads and a program's does not."""

MOST_STATES = 1 << 20
"""Programs of more states are not run through to learn which bits they set."""


def step_fields(
    tape: Tape,
    code: Code,
    loads: Mapping[str, tuple[int, int]],
    *,
    masked: bool = False,
    late: bool = False,
    signs: SignPlane | None = None,
) -> Fields:
    """Operands of a ring, decoded step by step. `loads`: first entry and length of tables; `signs`:
    of words whose sign plane stands in its own order."""
    lanes: list[tuple[str, int]] = []
    ones: dict[str, int] = {}
    able = masks_bytes(code) if masked else {}
    for step in range(code.steps):
        registers = _run_step(tape, code, step, loads, able, signs)
        for name, offset in code.program.outputs:
            lanes.append((registers[name], offset))
            ones[registers[name]] = _ones(code).get(name, FULL)
    return _gather(tape, code, lanes, ones, late)


def gathers(code: Code) -> bool:
    """Whether a register of fields is filled by more than one step."""
    width = next(width for width in (4, 8, 16) if width >= code.operand.bits)
    return code.lanes * width < WORD_BITS


def masks_bytes(code: Code) -> dict[str, tuple[int, int]]:
    """(selector, mask) of every register that is the window's bytes, permuted, and of each of them
    the same bits."""
    selectors: dict[str, int] = {}
    found = {}
    ring = ring_window(code)
    for instruction in code.program.instructions:
        op, arguments = instruction.op, instruction.arguments
        last = arguments[-1]
        if op == "permute-bytes" and arguments[0] == ring and isinstance(last, int):
            selectors[instruction.result] = last
        if op == "and" and isinstance(last, int) and last == (last & 0xFF) * EVERY_BYTE:
            selector = selectors.get(str(arguments[0]))
            if selector is not None:
                found[instruction.result] = selector, last
    return found


def _run_step(
    tape: Tape,
    code: Code,
    step: int,
    loads: Mapping[str, tuple[int, int]],
    masked: Mapping[str, tuple[int, int]],
    signs: SignPlane | None,
) -> dict[str, str]:
    """Writes a step's instructions; the program's registers by name."""
    registers: dict[str, str] = {}
    for instruction in code.program.instructions:
        name = instruction.result
        if signs and name == signs.spread:
            registers[name] = signs.register(tape, plane_words(code, 1), step)
            continue
        direct = _permuted_window(tape, code, step, *masked[name]) if name in masked else ""
        registers[name] = direct or _write(tape, code, step, instruction, registers, loads)
    if any(name == STATE for name, _ in code.program.outputs):
        registers[STATE] = window_state(tape, code, step)
    return registers


def _write(
    tape: Tape,
    code: Code,
    step: int,
    instruction: Instruction,
    registers: dict[str, str],
    loads: Mapping[str, tuple[int, int]],
) -> str:
    op, arguments = instruction.op, instruction.arguments
    permuted = op == "permute-bytes" and arguments[0] == ring_window(code)
    if permuted and isinstance(arguments[2], int):
        direct = _permuted_window(tape, code, step, arguments[2])
        if direct:
            return direct
    if arguments[0] == STATE and len(code.planes) == 2:
        size = code.planes[0].window
        if op == "and" and arguments[1] == FULL >> (WORD_BITS - size):
            return _plane_window(tape, code, step, 0)
        if op == "shr" and arguments[1] == size:
            return _plane_window(tape, code, step, 1)
    if STATE in arguments and STATE not in registers:
        registers[STATE] = window_state(tape, code, step)
    values = [registers[a] if isinstance(a, str) and a in registers else a for a in arguments]
    if op == "permute-bytes" and isinstance(arguments[2], str):
        return _picked(tape, values, _ones(code).get(arguments[2], FULL))
    if op == "table":
        return _looked_up(tape, code, step, instruction, registers, loads)
    return tape(op, *values)


def _looked_up(
    tape: Tape,
    code: Code,
    step: int,
    instruction: Instruction,
    registers: Mapping[str, str],
    loads: Mapping[str, tuple[int, int]],
) -> str:
    arguments = instruction.arguments
    first, length = loads[str(arguments[0])]
    row = step * code.lanes // code.tile[1]
    per_row = {p.name for p in code.program.parameters if p.scope == "row"}
    first += row * length if arguments[0] in per_row else 0
    if first == 0 and length > 1:
        offset = _byte_offset(tape, code, registers, str(arguments[1]), length)
        if offset:
            return tape("load-at", offset)
    index = registers.get(str(arguments[1]), arguments[1])
    state = arguments[1] == STATE and 1 << code.state_bits <= length
    if not state and _ones(code).get(str(arguments[1]), FULL) >= length:
        index = tape("and", index, length - 1)
    return tape("load", first, index)


def _byte_offset(
    tape: Tape, code: Code, registers: Mapping[str, str], index: str, length: int
) -> str:
    """Where an entry stands whose number is some upper bits of a register, in one mask more than
    the shift, which goes where the number stands at bit 2; empty where it is something else."""
    made = next((i for i in code.program.instructions if i.result == index), None)
    if made is None or made.op != "shr" or not isinstance(made.arguments[1], int):
        return ""
    source, shift = made.arguments
    if source not in registers or int(shift) < ENTRY_SHIFT:
        return ""
    amount = int(shift) - ENTRY_SHIFT
    mask = (length - 1) << ENTRY_SHIFT & FULL >> amount
    return tape.mask(tape.rotate(registers[str(source)], amount, mask), mask)


def _picked(tape: Tape, values: list[str | int], possible: int) -> str:
    """Bytes that a register selects: constants stay in registers, and the machine's permute can do
    where the top bits of the selector's nibbles are never set."""
    *both, selector = (tape.hold(v) if isinstance(v, int) else v for v in values)
    return tape("permute-bytes" if possible & SELECTOR_TOPS else "select-bytes", *both, selector)


def plane_words(code: Code, plane: int) -> list[str]:
    """The registers of a plane's stored words."""
    first = sum(code.plane_bits[:plane]) // WORD_BITS
    return [f"w{first + i}" for i in range(code.plane_bits[plane] // WORD_BITS)]


def window(tape: Tape, words: list[str], start: int, size: int, low: int = 0) -> str:
    """`size` bits of a ring of words from bit `start` on, moved to bit `low`; the rest zero."""
    at, offset = start // WORD_BITS % len(words), start % WORD_BITS
    mask = (FULL >> (WORD_BITS - size)) << low & FULL
    if offset + size <= WORD_BITS:
        bytewise = offset % 8 == 0 and size in (8, 16) and low == 0
        if bytewise and offset and offset + size < WORD_BITS:
            first = offset // 8
            second = first + 1 if size == 16 else 4
            return tape("permute-bytes", words[at], 0, 0x4400 | second << 4 | first)
        return tape.merge([(words[at], (offset - low) % WORD_BITS, mask)], {})
    following = words[(at + 1) % len(words)]
    if offset >= low:
        both = tape("funnel-shift", words[at], following, offset - low)
        return tape.mask(both, mask)
    both = tape("funnel-shift", words[at], following, offset)
    return tape("shl", tape.mask(both, mask >> low), low)


def window_state(tape: Tape, code: Code, step: int) -> str:
    """The windows of all planes side by side."""
    state, low = "", 0
    for index, plane in enumerate(code.planes):
        part = window(tape, plane_words(code, index), step * plane.stride, plane.window, low)
        state = tape("or", state, part) if state else part
        low += plane.window
    return state


def ring_window(code: Code) -> str:
    """The register that is the window of plane 0 alone; empty where a program makes none."""
    if len(code.planes) == 1:
        return STATE
    alone = (STATE, FULL >> (WORD_BITS - code.planes[0].window))
    cut = (i.result for i in code.program.instructions if i.op == "and" and i.arguments == alone)
    return next(cut, "")


def _plane_window(tape: Tape, code: Code, step: int, index: int) -> str:
    plane = code.planes[index]
    return window(tape, plane_words(code, index), step * plane.stride, plane.window)


def _permuted_window(tape: Tape, code: Code, step: int, selector: int, mask: int = FULL) -> str:
    """permute-bytes(plane 0's window, 0, selector) on the stored words, of which `mask` is kept;
    empty where that is not the same."""
    plane = code.planes[0]
    start = step * plane.stride
    picks = [selector >> (4 * place) & 7 for place in range(4)]
    if start % 8 or max(picks) >= plane.window // 8:
        return ""
    words = plane_words(code, 0)
    at, first = start // WORD_BITS, start % WORD_BITS // 8
    moved = sum((pick + first) << (4 * place) for place, pick in enumerate(picks))
    here, next_one = (tape.mask(words[i % len(words)], mask) for i in (at, at + 1))
    return tape("permute-bytes", here, next_one, moved)


@functools.lru_cache(maxsize=64)
def _ones(code: Code) -> dict[str, int]:
    """Bits that each register of a program sets in any state; empty where that is not known."""
    if code.program.parameters or 1 << code.state_bits > MOST_STATES:
        return {}
    found = registers(code.program, all_states(code))
    return {name: int(np.bitwise_or.reduce(value.ravel())) for name, value in found.items()}


@functools.lru_cache(maxsize=64)
def confined(code: Code) -> bool:
    """Whether all operands are E4M3 with the upper two exponent bits zero: E2M3 * 2**-6."""
    if code.operand is not E4M3 or not tabulated(code):
        return False
    return not int(np.bitwise_or.reduce(tabulate(code).ravel())) & 0x60


def _gather(
    tape: Tape, code: Code, lanes: list[tuple[str, int]], ones: Mapping[str, int], late: bool
) -> Fields:
    """Lanes wherever they stand to fields of 4, 8 or 16 bits, in order."""
    operand, at, exponent = code.operand, tuple(range(code.operand.bits)), 0
    width = next(width for width in (4, 8, 16) if width >= operand.bits)
    if confined(code):
        operand, at, exponent = E2M3, E4M3_IS_E2M3, E4M3.bias - E2M3.bias
    count = WORD_BITS // width
    registers = []
    bits = sum(1 << bit for bit in at)
    for first in range(0, len(lanes), count):
        registers.append(_gathered(tape, lanes[first : first + count], width, bits, ones, late))
    return Fields(
        operand=operand,
        width=width,
        at=at,
        registers=tuple(registers),
        places=tuple(range(len(lanes))),
        exponent=exponent,
        clean=True,
        ones={r: ones[r] for r in registers if r in ones},
    )


def _gathered(
    tape: Tape,
    lanes: list[tuple[str, int]],
    width: int,
    bits: int,
    ones: Mapping[str, int],
    late: bool,
) -> str:
    """One register of fields: whole bytes by permutes, other bits by shifts and masks."""
    by_bytes = _byte_picks(lanes, width, bits)
    if by_bytes and all(ones.get(r, FULL) >> o & ((1 << width) - 1) & ~bits == 0 for r, o in lanes):
        return _permuted(tape, by_bytes, late)
    masks: dict[tuple[str, int], int] = {}
    for place, (register, offset) in enumerate(lanes):
        key = register, (offset - place * width) % WORD_BITS
        masks[key] = masks.get(key, 0) | bits << (place * width)
    pieces = [(register, amount, mask) for (register, amount), mask in masks.items()]
    return tape.merge(pieces, ones)


def _byte_picks(
    lanes: list[tuple[str, int]], width: int, bits: int
) -> list[tuple[str, int]] | None:
    """(register, byte) for every byte of the fields' register, where they are whole bytes."""
    picks: list[tuple[str, int]] = []
    if width == 4:
        pairs = list(zip(lanes[::2], lanes[1::2], strict=True))
        if all(a[0] == b[0] and a[1] % 8 == 0 and b[1] == a[1] + 4 for a, b in pairs):
            picks = [(a[0], a[1] // 8) for a, _ in pairs]
    elif all(offset % 8 == 0 and offset + width <= WORD_BITS for _, offset in lanes):
        picks = [(r, o // 8 + byte) for r, o in lanes for byte in range(width // 8)]
    return picks or None


def _permuted(tape: Tape, picks: list[tuple[str, int]], late: bool) -> str:
    """A register from any bytes: none where it is one as it is, else a permute for each further."""
    names = list(dict.fromkeys(name for name, _ in picks))
    behind = _bytewise(tape, picks) if late and len(names) > 1 else ""
    if behind:
        return behind
    if len(names) == 1:
        selector = sum(byte << (4 * place) for place, (_, byte) in enumerate(picks))
        whole = selector == 0x3210
        return names[0] if whole else tape("permute-bytes", names[0], 0, selector)
    result = names[0]
    for number, name in enumerate(names[1:]):
        selector = 0
        for place, (owner, byte) in enumerate(picks):
            old = byte if number == 0 else place
            selector |= (byte + 4 if owner == name else old & 3) << (4 * place)
        result = tape("permute-bytes", result, name, selector)
    return result


def _bytewise(tape: Tape, picks: list[tuple[str, int]]) -> str:
    """What the same instruction left of several registers, from bytes of its arguments gathered
    first; empty where it is not one of BYTEWISE."""
    made = [each for name, _ in picks if (each := tape.made(name))]
    op = made[0].op if made else ""
    if op not in BYTEWISE or len(made) < len(picks) or any(each.op != op for each in made):
        return ""
    columns = list(zip(*(each.arguments for each in made), strict=True))
    truth = columns.pop() if op == "lop3" else ()
    if len(set(truth)) > 1 or (op == "add" and not all(map(tape.carries_no_byte, made))):
        return ""
    arguments: list[str | int] = []
    for column in columns:
        if all(isinstance(each, str) for each in column):
            sources = [(str(each), byte) for each, (_, byte) in zip(column, picks, strict=True)]
            arguments.append(_permuted(tape, sources, late=True))
        elif all(isinstance(each, int) for each in column):
            pairs = zip(column, picks, strict=True)
            taken = [int(each) >> (8 * byte) & 0xFF for each, (_, byte) in pairs]
            arguments.append(sum(byte << (8 * place) for place, byte in enumerate(taken)))
        else:
            return ""
    return tape(op, *arguments, *truth[:1])
