"""Lowering by a wide table in shared memory: a few successive steps are one look-up.

    ring      b0 b1 b2 b3 b4 b5 b6 b7 ...        (window 5, stride 1)
    step 0    [            ]
    step 1       [            ]                  one index of 8 bits, four operands: a register
    step 2          [            ]
    step 3             [            ]

Look-ups by many threads at once meet in the 32 banks of shared memory; what is counted is the
instruction, not the conflicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.fields import Fields
from unspool.decode.lower_steps import ENTRY_SHIFT, plane_words, window
from unspool.decode.lowering import Tape
from unspool.decode.machine import Slot
from unspool.decode.values import bits_of, exponent_for, state_operands
from unspool.spec.code import WORD_BITS, Code

if TYPE_CHECKING:
    from jaxtyping import UInt32

MOST_BITS = 12
"""16 KiB of shared memory: a block's activations and three stages of codes need the rest."""

HALVES = 0x5410


def wide_fields(code: Code, slot: Slot) -> Iterator[tuple[Tape, Fields, tuple[int, ...]]]:
    """(tape, fields, table) for 1, 2, 4 or 8 steps at a time, where that fits."""
    exponent = exponent_for(code, slot.operand)
    values = state_operands(code) if code.state_bits <= MOST_BITS else None
    if values is None or exponent is None:
        return
    operands = bits_of(values, slot.operand, exponent) << np.uint32(slot.low)
    for steps in (1, 2, 4, 8):
        width = steps * code.lanes * slot.width
        unions = [plane.window + (steps - 1) * plane.stride for plane in code.planes]
        if code.steps % steps or width not in (8, 16, WORD_BITS) or sum(unions) > MOST_BITS:
            continue
        tape = Tape()
        loads = [_load(tape, code, unions, step) for step in range(0, code.steps, steps)]
        count = WORD_BITS // width
        fields = Fields(
            operand=slot.operand,
            width=slot.width,
            at=tuple(slot.low + bit for bit in range(slot.operand.bits)),
            registers=tuple(
                _join(tape, loads[i : i + count], width) for i in range(0, len(loads), count)
            ),
            places=tuple(range(code.steps * code.lanes)),
            exponent=exponent,
            clean=True,
        )
        yield tape, fields, _table(operands, code, steps, unions, slot)


def _load(tape: Tape, code: Code, unions: list[int], step: int) -> str:
    index, low = "", ENTRY_SHIFT
    for number, (plane, union) in enumerate(zip(code.planes, unions, strict=True)):
        part = window(tape, plane_words(code, number), step * plane.stride, union, low)
        index = tape("or", index, part) if index else part
        low += union
    return tape("load-at", index)


def _join(tape: Tape, loads: list[str], width: int) -> str:
    """Entries of 8 or 16 bits side by side in a register."""
    if len(loads) == 4:
        ones = dict.fromkeys(loads, 0xFF)
        pairs = (loads[:2], loads[2:])
        loads = [tape.merge([(a, 0, 0xFF), (b, 24, 0xFF00)], ones) for a, b in pairs]
    return loads[0] if len(loads) == 1 else tape("permute-bytes", loads[0], loads[1], HALVES)


def _table(
    operands: UInt32[np.ndarray, "states lanes"],
    code: Code,
    steps: int,
    unions: list[int],
    slot: Slot,
) -> tuple[int, ...]:
    """An entry for every union of the windows of some steps, lane 0 of step 0 in the low bits."""
    index = np.arange(1 << sum(unions), dtype=np.uint32)
    entries = np.zeros_like(index)
    for step in range(steps):
        state, low, wide_low = np.zeros_like(index), 0, 0
        for plane, union in zip(code.planes, unions, strict=True):
            part = index >> np.uint32(wide_low + step * plane.stride)
            state |= (part & np.uint32((1 << plane.window) - 1)) << np.uint32(low)
            low, wide_low = low + plane.window, wide_low + union
        for lane in range(code.lanes):
            shift = np.uint32((step * code.lanes + lane) * slot.width)
            entries |= operands[state, lane] << shift
    return tuple(int(entry) for entry in entries)
