"""What a kernel makes of activations: the definition that `activations.cuh` is compared with.

    row --signs, Hadamard--> y    largest magnitude of a row: top
    FP8      y * (448 / top), then E4M3, nearest even; further terms are 16, 256 times what is left
    binary16 y * 2**e with top in [2**14, 2**15), then nearest even
    INT8     y * (127 / top), nearest even: as `matmul.integer` has it, of a row instead of a block
    bfloat16 y, nearest even; for a library's product alone
    FP4      z = y * (2688 / top); per 16 operands side by side s = E4M3 of their
             largest |z| * (1 / 6), then E2M1 of z * (1 / s), at most 6, both nearest even; zeros
             where s is zero

A row with an infinity or NaN has a scale of NaN: its results are NaN, and no other's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.encode.nearest import nearest
from unspool.encode.rotate import hadamard, signs
from unspool.matmul.cuda.recipe import BFLOAT16, UNIT_BLOCK, Recipe
from unspool.matmul.integer import TINIEST
from unspool.spec.operand import BF16, E2M1, E4M3, FP16, INT8

if TYPE_CHECKING:
    from jaxtyping import Float32

LARGEST = np.float32(448)
"""The largest E4M3."""

TERM_STEP = np.float32(16)
"""Half a last place of E4M3 is 2**-4 of its number, at most 16 of 448: the next term fits again."""
SMALLEST = np.float32(2.0**-116)
"""Rows of smaller magnitudes become zeros: 2688 over them is no FP32. INT8: `integer.TINIEST`."""
_OPERANDS = {"float16": FP16, "int8": INT8, BFLOAT16: BF16}
"""What activations become; E4M3 by all other names."""

_LARGEST_E2M1 = np.float32(E2M1.largest)
_LARGEST_INT8 = np.float32(INT8.largest)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Activations as the matrix unit reads them."""

    #: values of every term `[terms, m, k]`; token = scale * sum of term_i / 16**i. FP4: with the
    #: scales of blocks
    terms: Float32[np.ndarray, "terms m k"]
    scales: Float32[np.ndarray, " m"]

    @property
    def values(self) -> np.ndarray:
        """What they stand for, in float64 `[m, k]`."""
        weights = float(TERM_STEP) ** -np.arange(len(self.terms))
        total = np.tensordot(weights, self.terms.astype(np.float64), axes=1)
        return np.asarray(total * self.scales[:, None])


def largest_of(made: Recipe) -> np.float32:
    """What the largest magnitude of a row becomes; binary16 goes by powers of two instead."""
    if made.whole:
        return _LARGEST_INT8
    return LARGEST * _LARGEST_E2M1 if made.block_scaled else LARGEST


def smallest_of(made: Recipe) -> np.float32:
    """The smallest magnitude of a row that is not made zeros."""
    if made.activations == BFLOAT16:
        return np.float32(0)
    return TINIEST if made.whole else SMALLEST


def quantize(activations: Float32[np.ndarray, "m k"], made: Recipe) -> Quantized:
    """Rotated, scaled and rounded activations; k is padded to the format's whole transforms."""
    rotated = rotated_input(activations, made)
    with np.errstate(invalid="ignore", over="ignore"):
        top = np.abs(rotated).max(axis=1, initial=0)
        finite = np.isfinite(top)
        usable = finite & (top >= smallest_of(made))
        safe = np.where(usable, top, np.float32(1)).astype(np.float32)
        inverse, scale = _scaling(safe, made)
        scaled = np.where(usable[:, None], rotated * inverse[:, None], np.float32(0))
    scales = np.where(usable, scale, np.where(finite, np.float32(0), np.float32(np.nan)))
    if made.block_scaled:
        return Quantized(terms=_by_block(scaled, made)[None], scales=scales.astype(np.float32))
    operand = _OPERANDS.get(made.activations, E4M3)
    values, terms = operand.values().astype(np.float32), []
    for _ in range(made.terms):
        term = values[nearest(values, scaled)]
        terms.append(term)
        scaled = (scaled - term) * TERM_STEP
    return Quantized(terms=np.stack(terms), scales=scales.astype(np.float32))


def rotated_input(activations: Float32[np.ndarray, "m k"], made: Recipe) -> np.ndarray:
    """Activations in the coordinates of the stored weights `[m, padded k]`."""
    fmt = made.format
    _, columns = fmt.padded(1, activations.shape[1])
    padded = np.pad(activations, ((0, 0), (0, columns - activations.shape[1])))
    size = fmt.rotation.input_size
    if not size:
        return padded.astype(np.float32)
    flips = signs(columns, fmt.rotation.seed, "in")
    return hadamard(padded.astype(np.float32), size, flips)


def _by_block(scaled: Float32[np.ndarray, "m k"], made: Recipe) -> Float32[np.ndarray, "m k"]:
    """NVFP4: E2M1 times the E4M3 scale of the UNIT_BLOCK operands beside it."""
    rows, columns = scaled.shape
    span, order = made.geometry.span_columns, made.geometry.columns().reshape(-1)
    padded = np.pad(scaled, ((0, 0), (0, -columns % span)))
    blocks = padded.reshape(rows, -1, span)[:, :, order].reshape(-1, UNIT_BLOCK)
    of_scale, of_operand = (f.values().astype(np.float32) for f in (E4M3, E2M1))
    top = np.abs(blocks).max(axis=1, keepdims=True)
    scale = of_scale[nearest(of_scale, top * (np.float32(1) / _LARGEST_E2M1))]
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    rounded = of_operand[nearest(of_operand, blocks * inverse)]
    found = np.empty_like(padded).reshape(rows, -1, span)
    found[:, :, order] = (rounded * scale).reshape(rows, -1, span)
    return found.reshape(rows, -1)[:, :columns]


def _scaling(top: np.ndarray, made: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """(what values are multiplied with, its inverse) for rows of that largest magnitude."""
    if made.activations == BFLOAT16:
        return np.ones_like(top), np.ones_like(top)
    if made.activations != "float16":
        return largest_of(made) / top, top / largest_of(made)
    exponent = np.frexp(top)[1] - 1  # top in [2**exponent, 2**(exponent + 1))
    shift = np.minimum(14 - exponent, 126)
    return np.ldexp(np.float32(1), shift), np.ldexp(np.float32(1), -shift)
