"""Many tokens: a recipe's weights decoded to a matrix, for the vendor's GEMM. Pure choices.

    stored units --decode, widen--> W [rows, K]      x --rotate, scale, round--> [m, K]

    weights                          W                                       x
    scales per row, fp8 or fp4       E4M3, exactly                           E4M3, scale per token
    scales per row, int8             INT8, exactly                           INT8, scale per token
    scales per row, other names      binary16, exactly                       binary16, power of two
    tables that move with blocks     binary16 with the scales, exactly       binary16, power of two
    scales of blocks, exact in it    bfloat16 with the scales, exactly       bfloat16, no scale
    scales of blocks, all others     binary16 with the scales, rounded once  binary16, power of two

A value times its block's scale is exact in FP32: eleven bits times eleven. bfloat16 holds it where
the code's and the scale's bits are eight together (MX formats, NVFP4), and is then as exact as
what it is multiplied with; binary16 rounds all others once, nearest even, to eleven bits, and is
also what activations get that keep more than bfloat16 (`float16`, `fp8x3`). A power of two per row
puts a row's largest scale times the code's largest value below 2**15, so what is less than 2**-29
of that has fewer bits. What is common to a row (that power, the tensor's scale, scales per row)
multiplies the finished sum.

Units are read as they are stored for the fused product, whatever its slot (`decode.widen`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.machine import PACKED, Slot
from unspool.decode.widen import why_not_widened, widened
from unspool.encode.nearest import nearest
from unspool.errors import DeclarationError
from unspool.matmul.cuda.arrange import TOP, UNIT_TOP
from unspool.matmul.cuda.geometry import BLOCK_ROWS, SLICE_BYTES, by_row
from unspool.matmul.cuda.recipe import BFLOAT16, REGISTERS, ROW, TABLE, UNIT, Recipe
from unspool.matmul.reference import decode_operands
from unspool.pack.matrix import CodedMatrix
from unspool.spec.format import Format
from unspool.spec.operand import BF16, E4M3, FP16, INT8, Operand

if TYPE_CHECKING:
    from jaxtyping import Float64

LIBRARY_ROWS = 512
"""Rows from which on this is used: there a fused kernel has decoded every weight at least eight
times. An estimate from counts, not yet measured."""

MOST_WHOLE = 1 << 17
"""Columns of INT8 whose sums, 2**14 each, stay in 32 bits."""

_KEEP_MORE = ("float16", "fp8x3")
"""Activations that keep more than the eight bits of bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """A recipe's weights as a matrix."""

    #: of the fused product, whose units these are
    stored: Recipe
    #: the same with registers of the matrix's operands, and a library's activations
    recipe: Recipe
    #: of the matrix
    operand: Operand
    #: whether scales of blocks are multiplied in
    scaled: bool

    @property
    def shift(self) -> int:
        """Decoded weights times stored scales are multiplied with 2**shift."""
        if not self.scaled or self.stored.scales == REGISTERS:  # there weights have their room
            return 0
        values = self.stored.format.code.operand.values()
        largest = float(np.abs(values[np.isfinite(values)]).max())
        weight = math.ceil(math.log2(largest)) + self.recipe.geometry.lowering.exponent
        four = self.stored.scales == UNIT and self.stored.block_scaled
        return TOP - (int(math.log2(UNIT_TOP)) + 1 if four else TOP) - weight

    @property
    def factor(self) -> float:
        """What row scales of the fused product are multiplied with, a power of two."""
        fused, own = self.stored.geometry.lowering, self.recipe.geometry.lowering
        return 2.0 ** (fused.exponent - own.exponent - self.shift)

    def row_bytes(self, stages: int) -> int:
        """Bytes of a row of the matrix; of the activations as many."""
        made = self.recipe.geometry
        return stages * made.steps * made.slices * SLICE_BYTES

    def nbytes(self, row_blocks: int, stages: int) -> int:
        """Bytes of the matrix."""
        return BLOCK_ROWS * row_blocks * self.row_bytes(stages)


def expansion(made: Recipe) -> Expansion:
    """How a recipe's weights become a matrix.

    Raises DeclarationError where no library multiplies them.
    """
    if made.whole and made.scales == ROW:
        return _expansion(made, INT8, "int8")
    exact = made.scales == ROW and made.activations in ("fp8", "fp4")
    if exact and not why_not_widened(made.geometry.lowering, Slot(E4M3), made.machine):
        return _expansion(made, E4M3, "fp8")
    scaled = made.scales not in (ROW, TABLE)
    if scaled and made.activations not in _KEEP_MORE and _fits_bfloat16(made.format):
        return _expansion(made, BF16, BFLOAT16, scaled=True)
    return _expansion(made, FP16, "float16", scaled=scaled)


def why_not(made: Recipe, columns: int) -> str:
    """Why a recipe's weights are no matrix for a library; empty where they are."""
    if made.whole and made.scales == ROW and columns >= MOST_WHOLE:
        return f"sums of {columns} columns may need more than 32 bits"
    try:
        expansion(made)
    except DeclarationError as error:
        return str(error)
    return ""


@functools.lru_cache(maxsize=256)
def _expansion(made: Recipe, operand: Operand, activations: str, scaled: bool = False) -> Expansion:
    slot = Slot(FP16 if operand is BF16 else operand, PACKED)
    geometry = made.geometry
    wide = by_row(widened(geometry.lowering, slot, made.machine), geometry.tile_columns)
    own = replace(made, geometry=replace(geometry, lowering=wide), activations=activations)
    return Expansion(stored=made, recipe=own, operand=operand, scaled=scaled)


def _fits_bfloat16(fmt: Format) -> bool:
    """Whether every value times every scale of a block is a bfloat16."""
    scale = fmt.scale.operand
    if scale is None:
        return True
    bits = fmt.code.operand.mantissa_bits + (not fmt.code.operand.integer)
    of_scale = scale.mantissa_bits + 1
    return bits + (of_scale if of_scale > 1 else 0) <= BF16.mantissa_bits + 1


def expanded(
    matrix: CodedMatrix, row_scales: np.ndarray, found: Expansion
) -> Float64[np.ndarray, "rows columns"]:
    """The definition: what stands in the matrix, columns in place, whole tiles and no more.

    `row_scales` as `arrange` made them for the fused product.
    """
    values = matrix.format.code.operand.values()[decode_operands(matrix)]
    if found.stored.scales == ROW:
        return np.ldexp(values, found.recipe.geometry.lowering.exponent)
    exact = values * _scales(matrix, values.shape[1])  # 11, 11 and 24 bits
    exact /= (row_scales[: len(exact)].astype(np.float64) * found.factor)[:, None]
    return rounded(exact, found.operand)


def rounded(exact: Float64[np.ndarray, "..."], operand: Operand) -> Float64[np.ndarray, "..."]:
    """The operand's nearest values, ties to even; of float64 that float32 holds."""
    values = operand.values()
    single = exact.astype(np.float32)
    if not np.array_equal(single, exact):
        raise DeclarationError("a product of value and scale is no float32", found=operand.name)
    return values[nearest(values.astype(np.float32), single)]


def _scales(matrix: CodedMatrix, columns: int) -> Float64[np.ndarray, "rows columns"]:
    """Of every stored weight, the tensor's included, in float64."""
    tensor = np.float64(1 if matrix.tensor_scale is None else matrix.tensor_scale)
    operand = matrix.format.scale.operand
    assert operand is not None
    assert matrix.scale is not None
    each = operand.values()[matrix.scale] * tensor
    return np.repeat(each, columns // each.shape[1], axis=1)
