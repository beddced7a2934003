"""Scales: chosen per row or block, rounded to their stored format, refitted to the codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from unspool.encode.nearest import nearest
from unspool.pack.matrix import bits_dtype
from unspool.spec.operand import E4M3, Operand
from unspool.spec.scale import Scale


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Stored scales of a matrix, and what they multiply with.

    bits       bit patterns [rows, blocks], or None
    tensor     float32 [], or None
    effective  float32 [rows, blocks] ([1, 1] without row or block scales): both together
    """

    bits: np.ndarray | None
    tensor: np.ndarray | None
    effective: Float32[np.ndarray, "rows blocks"]


def in_blocks(matrix: np.ndarray, scale: Scale) -> np.ndarray:
    """`[n, k]` -> `[rows, blocks, weights]`, one scale each; a view."""
    n, k = matrix.shape
    if scale.operand is None:
        return matrix.reshape(1, 1, n * k)
    return matrix.reshape(n, scale.count(n, k)[1], -1)


def store(
    wanted: Float32[np.ndarray, "rows blocks"], scale: Scale, tensor: np.ndarray | None = None
) -> Scales:
    """The wanted scales, rounded to the nearest stored ones. `tensor`: keep this tensor scale."""
    if scale.tensor and tensor is None:
        tensor = _tensor_scale(wanted, scale.operand)
    unit = np.float32(1) if tensor is None else np.float32(tensor)
    if scale.operand is None:
        return Scales(bits=None, tensor=tensor, effective=np.full((1, 1), unit))
    values = scale.operand.values().astype(np.float32)
    candidates = np.where(values >= 0, values, np.float32(np.nan))
    bits = nearest(candidates, (wanted / (unit or 1)).astype(np.float32))
    effective = values[bits] * unit
    return Scales(bits=bits.astype(bits_dtype(scale.operand)), tensor=tensor, effective=effective)


def divide(matrix: np.ndarray, scales: Scales, scale: Scale) -> Float32[np.ndarray, "n k"]:
    """The matrix in units of values: every block over its scale; zero where the scale is zero."""
    effective = scales.effective
    inverse = np.divide(1, effective, out=np.zeros_like(effective), where=effective > 0)
    return (in_blocks(matrix, scale) * inverse[..., None]).reshape(matrix.shape)


def errors(
    matrix: np.ndarray, values: np.ndarray, scales: Scales, scale: Scale
) -> Float32[np.ndarray, "rows blocks"]:
    """Squared error of every block when its values are multiplied with its scale."""
    difference = in_blocks(matrix, scale) - in_blocks(values, scale) * scales.effective[..., None]
    return np.einsum("rbw,rbw->rb", difference, difference)


def refit(matrix: np.ndarray, values: np.ndarray, scales: Scales, scale: Scale) -> Scales:
    """The least-squares scale of every block for values already chosen, kept where it helps.

    <w, v> / <v, v> minimises |w - s v|^2; rounding s to its format can undo the gain.
    """
    if scales.bits is None:
        return scales
    blocks, chosen = in_blocks(matrix, scale), in_blocks(values, scale)
    power = np.einsum("rbw,rbw->rb", chosen, chosen)
    product = np.einsum("rbw,rbw->rb", blocks, chosen)
    best = np.divide(product, power, out=np.zeros_like(power), where=power > 0)
    refitted = store(np.maximum(best, 0), scale, scales.tensor)
    return choose(
        [scales, refitted], [errors(matrix, values, s, scale) for s in (scales, refitted)]
    )


def choose(candidates: list[Scales], costs: list[np.ndarray]) -> Scales:
    """Per block the candidate of the lowest cost, the first of equals."""
    best = np.argmin(costs, axis=0)

    def pick(arrays: list[np.ndarray]) -> np.ndarray:
        return np.take_along_axis(np.stack(arrays), best[None], axis=0)[0]

    bits = [c.bits for c in candidates if c.bits is not None]
    return Scales(
        bits=pick(bits) if bits else None,
        tensor=candidates[0].tensor,
        effective=pick([c.effective for c in candidates]),
    )


def _tensor_scale(wanted: np.ndarray, operand: Operand | None) -> np.ndarray:
    """A float32 that brings the wanted scales into the range of their format.

    E4M3: the largest becomes 448, as NVFP4 has it. FP16: a power of two, so that products with the
    tensor scale stay exact, with the largest in [1, 2). No row scales: the largest itself.
    """
    largest = float(wanted.max(initial=0))
    if largest == 0:
        return np.array(0, np.float32)
    if operand is None:
        return np.array(largest, np.float32)
    if operand is E4M3:
        return np.array(largest / operand.largest, np.float32)
    return np.array(2.0 ** np.floor(np.log2(largest)), np.float32)
