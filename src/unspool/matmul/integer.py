"""The product with int8 activations in numpy: the definition that every kernel meets to the bit.

Activations are rotated, then rounded per row and block of 128 columns: with `top` the largest
magnitude, q = rint(x * (127 / top)) and scale = top / 127, all float32; zeros where top < 2^-120,
and a scale of NaN where a number is not finite. Columns are cut into groups that share all scales.
Over the groups in ascending order:

    total = total + float32(sum of level * q) * scale          sums are exact integers

with scale the activation's, times the weight's where that is per block; a weight scale per row
multiplies the total. Every operation is rounded once to float32; the scale of a weight is
float32(stored * (tensor scale * unit)).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from unspool.matmul.choose import BLOCK
from unspool.matmul.reference import decode_operands
from unspool.matmul.tables import integer_levels, operand_values
from unspool.pack.matrix import CodedMatrix

if TYPE_CHECKING:
    from jaxtyping import Float32, Int8, Int64

TINIEST = np.float32(2.0**-120)
"""Blocks below count as zero: 127 / top would overflow."""

_TO_INTEGER = np.float32(1.5 * 2**23)


def quantize_activations(
    x: Float32[np.ndarray, "m k"],
) -> tuple[Int8[np.ndarray, "m k"], Float32[np.ndarray, "m blocks"]]:
    """int8 and the scales of blocks of 128 columns; the last block may be shorter."""
    m, k = x.shape
    blocks = -(-k // BLOCK)
    padded = np.zeros((m, blocks * BLOCK), np.float32)
    padded[:, :k] = x
    cut = padded.reshape(m, blocks, BLOCK)
    with np.errstate(all="ignore"):
        top = np.abs(cut).max(axis=2)
        finite = np.isfinite(cut).all(axis=2)
        counts = finite & (top >= TINIEST)
        inverse = np.float32(127) / top
        scaled = cut * inverse[:, :, None] + _TO_INTEGER
        scale = top / np.float32(127)
    low = scaled.astype(np.float32).view(np.int32).astype(np.int8)
    q = np.where(counts[:, :, None], low, np.int8(0))
    scale = np.where(finite, np.where(counts, scale, np.float32(0)), np.float32(np.nan))
    return q.reshape(m, -1)[:, :k], scale.astype(np.float32)


def stored_levels(matrix: CodedMatrix) -> Int64[np.ndarray, "rows columns"]:
    """The stored weight's values in units of the code; formats with `integer_levels` alone."""
    found = integer_levels(matrix.format.code)
    assert found is not None
    values = operand_values(matrix.format.code.operand)
    return (values[decode_operands(matrix)] / np.float32(found.unit)).astype(np.int64)


def integer_product(
    turned: Float32[np.ndarray, "m columns"], matrix: CodedMatrix
) -> Float32[np.ndarray, "m rows"]:
    """Padded and rotated activations times the stored weight."""
    k = turned.shape[1]
    q, x_scales = quantize_activations(turned)
    levels, scales = stored_levels(matrix), _scales(matrix)
    per_row = scales.shape[1] == 1
    block = k if per_row else k // scales.shape[1]
    group = BLOCK if per_row else math.gcd(block, BLOCK)
    totals = np.zeros((len(turned), len(levels)), np.float32)
    for first in range(0, k, group):
        columns = slice(first, first + group)
        sums = (q[:, columns].astype(np.int64) @ levels[:, columns].T).astype(np.float32)
        both = x_scales[:, first // BLOCK][:, None]
        if not per_row:
            both = scales[:, first // block][None] * both
        totals = totals + sums * both
    return totals * scales[:, 0] if per_row else totals


def _scales(matrix: CodedMatrix) -> Float32[np.ndarray, "rows blocks"]:
    """Weight scales times tensor scale and unit; one column where there is one per row."""
    found = integer_levels(matrix.format.code)
    assert found is not None
    tensor = np.float32(1 if matrix.tensor_scale is None else matrix.tensor_scale)
    factor = tensor * np.float32(found.unit)
    if matrix.scale is None:
        rows, _ = matrix.format.padded(*matrix.shape)
        return np.full((rows, 1), factor, np.float32)
    operand = matrix.format.scale.operand
    assert operand is not None
    return operand_values(operand)[matrix.scale] * factor
