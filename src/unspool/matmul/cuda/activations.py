"""What a kernel makes of activations: the definition that `activations.cuh` is compared with.

    row --signs, Hadamard--> y    largest magnitude of a row: top
    FP8      y * (448 / top), then E4M3, nearest even; further terms are 16, 256 times what is left
    binary16 y * 2**e with top in [2**14, 2**15), then nearest even

A row with an infinity or NaN has a scale of NaN: its results are NaN, and no other's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.encode.nearest import nearest
from unspool.encode.rotate import hadamard, signs
from unspool.matmul.cuda.recipe import Recipe
from unspool.spec.operand import E4M3, FP16

if TYPE_CHECKING:
    from jaxtyping import Float32

LARGEST = np.float32(448)
"""The largest E4M3."""

TERM_STEP = np.float32(16)
"""Half a last place of E4M3 is 2**-4 of its number, at most 16 of 448: the next term fits again."""
_SMALLEST = np.float32(2.0**-126)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Activations as the matrix unit reads them."""

    #: values of every term `[terms, m, k]`; token = scale * sum of term_i / 16**i
    terms: Float32[np.ndarray, "terms m k"]
    scales: Float32[np.ndarray, " m"]

    @property
    def values(self) -> np.ndarray:
        """What they stand for, in float64 `[m, k]`."""
        weights = float(TERM_STEP) ** -np.arange(len(self.terms))
        total = np.tensordot(weights, self.terms.astype(np.float64), axes=1)
        return np.asarray(total * self.scales[:, None])


def quantize(activations: Float32[np.ndarray, "m k"], made: Recipe) -> Quantized:
    """Rotated, scaled and rounded activations; k is padded to the format's whole transforms."""
    rotated = rotated_input(activations, made)
    with np.errstate(invalid="ignore", over="ignore"):
        top = np.abs(rotated).max(axis=1, initial=0)
        finite = np.isfinite(top)
        usable = finite & (top >= _SMALLEST)
        safe = np.where(usable, top, np.float32(1)).astype(np.float32)
        inverse, scale = _scaling(safe, wide=made.activations == "float16")
        scaled = np.where(usable[:, None], rotated * inverse[:, None], np.float32(0))
    scales = np.where(usable, scale, np.where(finite, np.float32(0), np.float32(np.nan)))
    operand = FP16 if made.activations == "float16" else E4M3
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


def _scaling(top: np.ndarray, *, wide: bool) -> tuple[np.ndarray, np.ndarray]:
    """(what values are multiplied with, its inverse) for rows of that largest magnitude."""
    if not wide:
        return LARGEST / top, top / LARGEST
    exponent = np.frexp(top)[1] - 1  # top in [2**exponent, 2**(exponent + 1))
    shift = np.minimum(14 - exponent, 126)
    return np.ldexp(np.float32(1), shift), np.ldexp(np.float32(1), -shift)
