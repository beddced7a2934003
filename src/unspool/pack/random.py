"""Coded matrices of random bits: all patterns are legal, so trying a kernel needs no encoder."""

from __future__ import annotations

import numpy as np

from unspool.pack.matrix import (
    CODES,
    SCALE,
    TABLE,
    TENSOR_SCALE,
    CodedMatrix,
    array_specs,
    coded_matrix,
)
from unspool.spec.format import Format

_FINITE_BYTES = np.uint32(0xBFBFBFBF)
"""Clears a bit of every byte's exponent, so that no plain FP8 code is a NaN."""

_TENSOR_SCALE = 2.0**-5
_SMALLEST, _LARGEST = 0.25, 4.0
_TABLE_PATTERNS = 0x70
"""Patterns of a table's entries: positive, finite E4M3."""


def random_matrix(fmt: Format, n: int, k: int, seed: int = 0) -> CodedMatrix:
    """An `[n, k]` matrix of random codes, of scales within a factor of 16, of random tables."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, spec in array_specs(fmt, n, k).items():
        if name == TENSOR_SCALE:
            arrays[name] = np.array(_TENSOR_SCALE, np.float32)
        elif name == SCALE:
            arrays[name] = rng.choice(_usual_scales(fmt), spec.shape).astype(spec.dtype)
        elif name == TABLE:
            arrays[name] = rng.integers(0, _TABLE_PATTERNS, spec.shape).astype(spec.dtype)
        else:
            arrays[name] = rng.integers(0, 1 << 32, spec.shape, dtype=np.uint32)
    if fmt.code.bits_per_weight == 8 and not fmt.code.operand.integer:
        arrays[CODES] &= _FINITE_BYTES
    return coded_matrix(fmt, (n, k), arrays)


def _usual_scales(fmt: Format) -> np.ndarray:
    """Bit patterns of scales that are neither large nor small."""
    assert fmt.scale.operand is not None
    values = fmt.scale.operand.values()
    return np.flatnonzero(np.isfinite(values) & (values >= _SMALLEST) & (values <= _LARGEST))
