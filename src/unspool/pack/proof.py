"""What decoders are compared with: rings that hold every state, and the values they stand for.

words = rings(code); want = expected(code, words, parameters)      the interpreter
registers = run(lowering, reorder(lowering, words), given(...))    a decoder, anywhere
wrong(lowering, registers, want) == 0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.interpret import operand_bits
from unspool.decode.lowering import Lowering, emitted
from unspool.pack.words import unpack
from unspool.spec.code import Code

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt32

MOST_BITS = 16
"""All states up to here; of more, as many, evenly spread."""

RANDOM_RINGS = 128
"""Beside the rings that hold every state: every step of a ring sees this many states at least."""

_GOLDEN = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: its multiples are spread evenly at every length."""


def rings(
    code: Code, most_bits: int = MOST_BITS, random_rings: int = RANDOM_RINGS
) -> UInt32[np.ndarray, "rings words"]:
    """Words of rings that hold every state (or an even sample), then random ones."""
    states = np.arange(1 << min(code.state_bits, most_bits), dtype=np.uint64)
    if code.state_bits > most_bits:
        states = states * np.uint64(_GOLDEN) >> np.uint64(64 - code.state_bits)
    size = random_rings, code.words
    random = np.random.default_rng(0).integers(0, 1 << 32, size, dtype=np.uint32)
    return np.concatenate([covering(code, states), random])


def covering(code: Code, states: np.ndarray) -> UInt32[np.ndarray, "rings words"]:
    """Rings of words in which the given states occur, at steps whose windows do not overlap."""
    apart = max(-(-plane.window // plane.stride) for plane in code.planes)
    steps = np.arange(0, code.steps - apart + 1, apart)
    count = -(-len(states) // len(steps))
    padded = np.resize(states, count * len(steps)).reshape(count, len(steps))
    bits = np.random.default_rng(1).integers(0, 2, (count, 32 * code.words), np.uint8)
    low = first = 0
    for plane, size in zip(code.planes, code.plane_bits, strict=True):
        for column, step in enumerate(steps):
            for place in range(plane.window):
                at = first + (step * plane.stride + place) % size
                bits[:, at] = padded[:, column] >> (low + place) & 1
        low, first = low + plane.window, first + size
    return np.packbits(bits, axis=-1, bitorder="little").view("<u4")


def parameters(code: Code) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A stored table per step for the interpreter, and its rows of finite operands."""
    if not code.program.parameters:
        return {}, np.zeros((0, 4), np.uint32)
    (parameter,) = code.program.parameters
    count = code.tile[0] if parameter.scope == "row" else 1
    finite = np.flatnonzero(np.isfinite(parameter.operand.values()))
    rows = np.random.default_rng(2).choice(finite, (count, parameter.length)).astype(np.uint32)
    return {parameter.name: np.repeat(rows, code.steps // count, axis=0)[None]}, rows


def given(lowering: Lowering, rows: np.ndarray) -> np.ndarray:
    """What a kernel hands over of a parameter: four to a register, or entries of shared memory."""
    return rows.astype(np.uint8).ravel().view(np.uint32) if lowering.levels else rows.ravel()


def expected(
    code: Code, words: UInt32[np.ndarray, "rings words"], tables: Mapping[str, np.ndarray]
) -> Float64[np.ndarray, "rings weights"]:
    """The interpreter's values, row-major in the tile."""
    bits = operand_bits(code, unpack(words, code), tables)
    return code.operand.values()[bits.reshape(len(words), -1)]


def values(
    lowering: Lowering, registers: UInt32[np.ndarray, "rings registers"]
) -> Float64[np.ndarray, "rings weights"]:
    """What registers stand for; NaN where a container has a bit beside its operand."""
    slot = lowering.slot
    fields = emitted(lowering, registers)
    beside = fields & ~np.uint32(((1 << slot.operand.bits) - 1) << slot.low)
    found = slot.operand.values()[(fields >> np.uint32(slot.low)) & _ones(slot.operand.bits)]
    return np.where(beside != 0, np.nan, np.ldexp(found, -lowering.exponent))


def wrong(
    lowering: Lowering,
    registers: UInt32[np.ndarray, "rings registers"],
    want: Float64[np.ndarray, "rings weights"],
) -> int:
    """How many weights are not what the interpreter says; what it says is not finite is free."""
    finite = np.isfinite(want)
    return int((values(lowering, registers)[finite] != want[finite]).sum())


def _ones(bits: int) -> np.uint32:
    return np.uint32((1 << bits) - 1)
