"""MXFP4 with its block scales where matrix units have none: the scale moves the table.

    a row's scale   2**level            E5M2 of 0 .5 1 1.5 | 2 3 4 6 in two registers, times 2**-13
    moved table     low + level * 0x04040400, high + level * 0x04040404    (the zero stays zero)

A level adds to the exponents of the eight entries, so a block costs a row two multiply-adds and a
permute, and its weights nothing: where a thread has a block's 32 columns, 0.09 instructions per
weight. E5M2, for its exponents: exact while level is in LEVELS, 27 powers of two, where E4M3 has
12; what is common to a row goes to the row's scale. Sums of blocks stay in the matrix unit, however
many tokens there are.

E5M2 is the upper half of a binary16: two instructions more for four weights where that is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.lower_plain import signed_look_ups
from unspool.decode.lowering import Lowering, Tape
from unspool.decode.machine import Machine, Slot
from unspool.decode.values import bits_of
from unspool.spec.code import Code
from unspool.spec.format import Format
from unspool.spec.operand import E2M1, E5M2, E8M0, FP16

if TYPE_CHECKING:
    from jaxtyping import Int64, UInt32

EXPONENT = -13
"""Of level 0: half becomes the smallest normal E5M2, 2**-14."""

LEVELS = range(27)
"""Block exponents, relative to a row's lowest, that leave 6 a finite E5M2: 1.5 * 2**15."""

STEP = 1 << E5M2.mantissa_bits
"""What a level adds to an entry."""

SIGN = 0x80

_UPPER_BYTES, _EVEN_BYTES = 0xFF00FF00, 0x2404


def takes_scales(fmt: Format) -> bool:
    """Whether a format is MXFP4: plain E2M1 with a power of two per block of a row."""
    plain = not fmt.code.program.instructions and fmt.code.operand is E2M1 and not fmt.code.memory
    return plain and fmt.scale.operand is E8M0 and fmt.scale.block is not None


def scaled_slots(machine: Machine) -> tuple[Slot, ...]:
    """What weights with their block scales can become: E5M2 where there are FP8 units, binary16."""
    return tuple(slot for slot in (Slot(E5M2), Slot(FP16)) if slot in machine.slots)


def unmoved() -> tuple[int, int]:
    """Both registers of the table at level 0."""
    low, high = row_tables(np.zeros(1, np.int64))[0]
    return int(low), int(high)


def row_tables(levels: Int64[np.ndarray, " rows"]) -> UInt32[np.ndarray, "rows 2"]:
    """The registers (low, high) of every row's table."""
    entries = bits_of(E2M1.values()[:8], E5M2, EXPONENT).astype(np.int64)
    moved = entries + STEP * np.asarray(levels)[:, None] * (entries > 0)
    return np.ascontiguousarray(moved, np.uint8).view("<u4")


def scaled(code: Code, slot: Slot) -> Lowering:
    """E2M1 to E5M2 or binary16 by a table per row of the tile, in two level registers each."""
    rows = code.tile[0]
    tape = Tape(levels=2 * rows)
    moved = [(tape("level", 2 * row), tape("level", 2 * row + 1)) for row in range(rows)]
    spread = [pair for pair in moved for _ in range(code.words // rows)]
    tape, registers, places, bits = signed_look_ups(tape, code, spread, SIGN)
    if slot.operand is FP16:
        registers, places = _halves(tape, registers, places)
    return Lowering(
        name="scaled-table",
        slot=slot,
        words=code.words,
        instructions=tape.reached(tuple(registers)),
        registers=tuple(registers),
        places=tuple(places),
        bits=bits,
        exponent=EXPONENT,
        levels=2 * rows,
    )


def _halves(tape: Tape, registers: list[str], places: list[int]) -> tuple[list[str], list[int]]:
    """Four E5M2 to two registers of two binary16: even bytes, odd bytes."""
    made, of_made = [], []
    for i, register in enumerate(registers):
        made.append(tape("permute-bytes", register, 0, _EVEN_BYTES))
        made.append(tape("and", register, _UPPER_BYTES))
        four = places[4 * i : 4 * i + 4]
        of_made += [four[0], four[2], four[1], four[3]]
    return made, of_made
