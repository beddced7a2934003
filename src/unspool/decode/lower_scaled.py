"""MXFP4 with its block scales where matrix units have none: the scale moves the table.

    row's scale   2**level              E4M3 of 0 .5 1 1.5 | 2 3 4 6 in two registers
    moved table   low + level * 0x08080800, high + level * 0x08080808    (the zero stays zero)

A level adds to the exponents of the eight entries, so a block costs two multiply-adds and its
weights nothing. Exact while level is in LEVELS; what is common to a row goes to the row's scale.
"""

from __future__ import annotations

from unspool.decode.lower_plain import signed_look_ups
from unspool.decode.lowering import Lowering, Tape
from unspool.decode.machine import Slot
from unspool.decode.values import bits_of
from unspool.spec.code import Code
from unspool.spec.format import Format
from unspool.spec.operand import E2M1, E4M3, E8M0

LEVELS = range(-5, 7)
"""Block exponents, relative to the row's, that leave 0.5 a normal E4M3 and 6 a finite one."""

LOW_STEP, HIGH_STEP = 0x08080800, 0x08080808
SIGN = 0x80


def takes_scales(fmt: Format) -> bool:
    """Whether a format is MXFP4: plain E2M1 with a power of two per block of a row."""
    plain = not fmt.code.program.instructions and fmt.code.operand is E2M1 and not fmt.code.memory
    return plain and fmt.scale.operand is E8M0 and fmt.scale.block is not None


def scaled(code: Code) -> Lowering:
    """E2M1 to E4M3 with a block scale per row of the tile, in the row's level register."""
    rows = code.tile[0]
    table = [int(b) for b in bits_of(E2M1.values()[:8], E4M3, 0)]
    low, high = (sum(b << 8 * i for i, b in enumerate(table[at : at + 4])) for at in (0, 4))
    tape = Tape(levels=rows)
    tables: list[tuple[str, str]] = []
    for row in range(rows):
        level = tape("level", row)
        lower = tape("add", tape("mul", level, LOW_STEP), tape.hold(low))
        upper = tape("add", tape("mul", level, HIGH_STEP), tape.hold(high))
        tables.append((lower, upper))
    words_per_row = code.words // rows
    spread = [pair for pair in tables for _ in range(words_per_row)]
    tape, registers, places, bits = signed_look_ups(tape, code, spread, SIGN)
    return Lowering(
        name="scaled-table",
        slot=Slot(E4M3),
        words=code.words,
        instructions=tape.reached(tuple(registers)),
        registers=tuple(registers),
        places=tuple(places),
        bits=bits,
        levels=rows,
        held=tuple(tape.held),
    )
