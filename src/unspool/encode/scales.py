"""Scales: chosen per row or block, rounded to their stored format, refitted to the codes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.encode.nearest import boundaries, nearest_among
from unspool.pack.matrix import bits_dtype
from unspool.spec.operand import E4M3, Operand
from unspool.spec.scale import Scale

if TYPE_CHECKING:
    from jaxtyping import Float32


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Stored scales of a matrix, and what they multiply with.

    bits       bit patterns [rows, blocks]; None without row or block scales
    effective  float32 [rows, blocks] ([1, 1] without those), the tensor scale in it
    """

    bits: np.ndarray | None
    effective: Float32[np.ndarray, "rows blocks"]


def in_blocks(matrix: np.ndarray, scale: Scale) -> np.ndarray:
    """`[n, k]` -> `[rows, blocks, weights]`, one scale each; a view."""
    n, k = matrix.shape
    if scale.operand is None:
        return matrix.reshape(1, 1, n * k)
    return matrix.reshape(n, scale.count(n, k)[1], -1)


def store(
    wanted: Float32[np.ndarray, "rows blocks"], scale: Scale, tensor: np.ndarray | None
) -> Scales:
    """The wanted scales, rounded to the nearest stored ones beside the tensor scale."""
    unit = np.float32(1) if tensor is None else np.float32(tensor)
    if scale.operand is None:
        return Scales(bits=None, effective=np.full((1, 1), unit))
    values, bounds = _stored_scales(scale.operand)
    asked = np.ascontiguousarray(wanted / (unit or 1), np.float32)
    bits = nearest_among(bounds, asked.reshape(1, -1)).reshape(asked.shape)
    stored = bits.astype(bits_dtype(scale.operand))
    return Scales(bits=stored, effective=values[bits] * unit)


@functools.cache
def _stored_scales(operand: Operand) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """What a scale may be and the boundaries between: 20 ms for FP16, over half of a small layer.

    Not to be written to.
    """
    values = operand.values().astype(np.float32)
    return values, boundaries(np.where(values >= 0, values, np.float32(np.nan))[None])


def divide(matrix: np.ndarray, scales: Scales, scale: Scale) -> Float32[np.ndarray, "n k"]:
    """The matrix in units of values: every block over its scale; zero where the scale is zero."""
    return (in_blocks(matrix, scale) * inverse(scales.effective)[..., None]).reshape(matrix.shape)


def inverse(effective: np.ndarray) -> np.ndarray:
    """1 / scale; zero for a scale of zero, whose values are zeros whatever is chosen."""
    return np.divide(1, effective, out=np.zeros_like(effective), where=effective > 0)


def errors(
    matrix: np.ndarray, values: np.ndarray, scales: Scales, scale: Scale
) -> Float32[np.ndarray, "rows blocks"]:
    """Squared error of every block when its values are multiplied with its scale."""
    difference = in_blocks(matrix, scale) - in_blocks(values, scale) * scales.effective[..., None]
    return np.einsum("rbw,rbw->rb", difference, difference)


def refit(
    matrix: np.ndarray,
    values: np.ndarray,
    scales: Scales,
    scale: Scale,
    tensor: np.ndarray | None,
) -> Scales:
    """The least-squares scale of every block for values already chosen, kept where it helps.

    <w, v> / <v, v> minimises |w - s v|^2; rounding s to its format can undo the gain.
    """
    blocks, chosen = in_blocks(matrix, scale), in_blocks(values, scale)
    power = np.einsum("rbw,rbw->rb", chosen, chosen)
    product = np.einsum("rbw,rbw->rb", blocks, chosen)
    best = np.divide(product, power, out=np.zeros_like(power), where=power > 0)
    refitted = store(np.maximum(best, 0), scale, tensor)
    costs = (errors(matrix, values, each, scale) for each in (scales, refitted))
    return better(scales, next(costs), refitted, next(costs))[0]


def better(
    best: Scales | None, least: np.ndarray | None, candidate: Scales, cost: np.ndarray
) -> tuple[Scales, np.ndarray]:
    """Per block the scale of lower cost, the first of equals, and that cost."""
    if best is None or least is None:
        return candidate, cost
    lower = cost < least
    bits = None
    if best.bits is not None and candidate.bits is not None:
        bits = np.where(lower, candidate.bits, best.bits)
    effective = np.where(lower, candidate.effective, best.effective)
    return Scales(bits=bits, effective=effective), np.where(lower, cost, least)


def tensor_scale(largest: float, operand: Operand | None) -> np.ndarray:
    """A float32 that brings scales up to `largest` into the range of their format.

    E4M3: the largest becomes 448, as NVFP4 has it. FP16: a power of two, so that products with the
    tensor scale stay exact, with the largest in [1, 2). No row scales: the largest itself.
    """
    if largest == 0:
        return np.array(0, np.float32)
    if operand is None:
        return np.array(largest, np.float32)
    if operand is E4M3:
        return np.array(largest / operand.largest, np.float32)
    return np.array(2.0 ** np.floor(np.log2(largest)), np.float32)
