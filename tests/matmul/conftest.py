"""Coded matrices of random words: every format, any size, no encoder needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from unspool.pack.matrix import CodedMatrix, array_specs
from unspool.spec.catalog import parse
from unspool.spec.format import Format

EXPONENT_TOPS = np.uint32(0xBBBBBBBB)
"""Cleared upper exponent bits keep E4M3 and E5M2 words finite; other codes take any word."""


def _random_matrix(fmt: Format | str, n: int, k: int, seed: int = 0) -> CodedMatrix:
    fmt = parse(fmt) if isinstance(fmt, str) else fmt
    rng, arrays = np.random.default_rng(seed), {}
    for part, spec in array_specs(fmt, n, k).items():
        low, top = {
            "codes": (0, 1 << 32),
            "scale": (96, 120),
            "table": (0, 120),
            "tensor_scale": (1, 4),
        }[part]
        arrays[part] = rng.integers(low, top, spec.shape, np.uint64).astype(spec.dtype)
    if fmt.code.operand.name in ("E4M3", "E5M2") and fmt.code.memory == 0:
        arrays["codes"] &= EXPONENT_TOPS
    return CodedMatrix(format=fmt, shape=(n, k), **arrays)


@pytest.fixture
def random_matrix() -> Callable[..., CodedMatrix]:
    return _random_matrix
