"""Which thread decodes which weights, and where the activations have to stand for it.

A warpgroup of 128 threads covers 256 rows. Its thread (warp w, g = lane // 4, t = lane % 4) takes
whole rings, of 8 rows each, and for a row of MMA operand A the registers that the unit wants:

    rings down      8 w + g                      32 rings of 8 rows: a row block of 256
    rings across    t of a step's 4; where it takes two, t and t + 4
    row i of a ring -> row g + 8 (i % 2) of the 16 rows that warp w gives to product i // 2

A *slice* is what one instruction reads of a row: 32 bytes, 16 binary16 or 32 8-bit operands or 64
packed E2M1. In words all units are alike (`fragments.py`): word t of a slice's first half and word
t of its second. The order of columns inside a step is free, as long as the activations have the
same one: so the weights stay where the decoder leaves them and the activations are permuted.

Where a thread's tables move with its blocks of scales, it has a whole block to itself: the rings
across of several steps together, a *span*, are dealt out t by t instead of step by step.

    rings across    0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15
    thread, usual   0 1 2 3 | 0 1 2 3 | 0 1  2  3 |  0  1  2  3     of a step: one each
    thread, span    0 0 0 0 | 1 1 1 1 | 2 2  2  2 |  3  3  3  3     step s has the s-th of each
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.lowering import Lowering
from unspool.errors import DeclarationError
from unspool.spec.code import Code

if TYPE_CHECKING:
    from jaxtyping import Int

THREADS = 128
ROWS = 8
BLOCK_ROWS = 256
"""Rows of a row block: one warpgroup's."""

SLICE_BYTES = 32
QUARTER = 4
"""Threads that share a row of a slice."""

STAGE_COLUMNS = 256
"""Columns that are brought from memory at a time: 16 KiB of 2-bit weights per row block. What a
main loop does once per stage costs 0.09 instructions per weight at 128 columns, half of it here."""

VECTOR_WORDS = (4, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How the rings of a code lie over threads and slices, for one lowering."""

    #: the lowering with its registers in the order (row, word)
    lowering: Lowering
    tile_columns: int
    #: rings that a thread decodes per step: as many as make whole slices
    rings: int
    #: columns that a stage has at most, if a step has no more
    most_columns: int = STAGE_COLUMNS
    #: steps of a span: over which the rings of a thread follow each other
    together: int = 1

    @property
    def ring_words(self) -> int:
        """Registers of a row of a ring."""
        return len(self.lowering.registers) // ROWS

    @property
    def slices(self) -> int:
        """Slices of a step."""
        return self.rings * self.ring_words // 2

    @property
    def slice_columns(self) -> int:
        """Columns of a slice."""
        return SLICE_BYTES // 4 * self.lowering.slot.per_register

    @property
    def step_columns(self) -> int:
        """Columns of a step."""
        return QUARTER * self.rings * self.tile_columns

    @property
    def span_columns(self) -> int:
        """Columns of a span, which have an order of their own."""
        return self.together * self.step_columns

    @property
    def step_words(self) -> int:
        """Stored words of a step per thread."""
        return self.rings * self.lowering.words

    def words(self) -> Int[np.ndarray, " words"]:
        """Which word of a step, `[ring][word]`, is stored at which place.

        Words that are registers (plain operands) are loaded as operand A wants them: otherwise 0.19
        to 0.5 moves per weight follow. All others come ring by ring.
        """
        order = np.arange(self.step_words)
        if self.lowering.instructions:
            return order
        words = [int(name.removeprefix("w")) for name in self.lowering.registers]
        firsts = order.reshape(self.rings, 1, -1)[:, :, :1]
        of_row = firsts + np.array(words).reshape(ROWS, -1)  # ring row word
        pairs = of_row.transpose(0, 2, 1).reshape(self.slices, 2, ROWS // 2, 2)
        return pairs.transpose(0, 2, 1, 3).reshape(-1)  # slice, product, half, row of two

    @property
    def steps(self) -> int:
        """Steps of a stage."""
        return max(1, self.most_columns // self.step_columns)

    @property
    def stage_columns(self) -> int:
        """Columns of a stage."""
        return self.steps * self.step_columns

    @property
    def code_bytes(self) -> int:
        """Stored bytes of a row block's stage."""
        return self.steps * self.step_words * 4 * THREADS

    @property
    def vectors(self) -> tuple[tuple[int, int], ...]:
        """(first word, words) of a thread's loads of a step: sixteen bytes where it can be."""
        found, first = [], 0
        for width in VECTOR_WORDS:
            while self.step_words - first >= width:
                found.append((first, width))
                first += width
        return tuple(found)

    def across(self) -> Int[np.ndarray, "together rings threads"]:
        """The ring across of a span that a thread takes in every step."""
        shape = (QUARTER, self.together, self.rings)
        if self.together > 1:
            return np.arange(math.prod(shape)).reshape(shape).transpose(1, 2, 0)
        return np.arange(math.prod(shape)).reshape(1, self.rings, QUARTER)

    def columns(self) -> Int[np.ndarray, "slices halves threads slots"]:
        """The column of a span that stands in every operand slot of its slices."""
        slots = self.lowering.slot.per_register
        words = np.array(self.lowering.places).reshape(ROWS, -1, slots)[0] % self.tile_columns
        firsts = self.across().transpose(0, 2, 1) * self.tile_columns  # step thread ring
        columns = firsts[..., None, None] + words  # word slot
        split = columns.reshape(self.together, QUARTER, self.slices, 2, slots)
        return split.transpose(0, 2, 3, 1, 4).reshape(-1, 2, QUARTER, slots)

    def positions(self) -> Int[np.ndarray, " columns"]:
        """For every column of a span, its operand's place in the order (slice, half, thread, slot).

        Inverse of `columns`.
        """
        order = self.columns().reshape(-1)
        inverse = np.empty_like(order)
        inverse[order] = np.arange(order.size)
        return inverse


def geometry(code: Code, lowering: Lowering) -> Geometry:
    """The geometry of a code's lowering; raises DeclarationError where rings do not fit threads."""
    rows, columns = code.tile
    if rows != ROWS or columns % 8:
        raise DeclarationError(
            "no CUDA kernel for tiles of this size",
            where=f"code {code.name}",
            found=f"{rows} x {columns}",
            allowed=f"{ROWS} x 8, {ROWS} x 16, ...",
        )
    ordered = by_row(lowering, columns)
    words = len(lowering.registers) // ROWS
    return Geometry(lowering=ordered, tile_columns=columns, rings=2 if words % 2 else 1)


def by_row(lowering: Lowering, tile_columns: int) -> Lowering:
    """The lowering with its registers in the order (row, word), the same columns in every row.

    Raises DeclarationError where a register holds weights of two rows.
    """
    places = np.array(lowering.places).reshape(len(lowering.registers), -1)
    rows, columns = places // tile_columns, places % tile_columns
    order = sorted(range(len(places)), key=lambda r: (rows[r, 0], tuple(columns[r])))
    by = columns[order].reshape(ROWS, -1)
    if (rows != rows[:, :1]).any() or (by != by[0]).any():
        raise DeclarationError("rows of this lowering differ in their columns", where=lowering.name)
    return replace(
        lowering,
        registers=tuple(lowering.registers[r] for r in order),
        places=tuple(int(p) for p in places[order].reshape(-1)),
    )
