"""Coded matrices of random words: every format, any size, no encoder needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from unspool.pack.matrix import CodedMatrix, array_specs
from unspool.spec.catalog import parse
from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import INT8
from unspool.spec.program import STATE, Instruction, Program, Table
from unspool.spec.scale import Scale

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


def _table_format(planes: str, levels: Sequence[int], scale: str = "row-fp16") -> Format:
    """Levels of every state, one lane; planes as in "5,1 2,2" (window, stride)."""
    cut = [plane.split(",") for plane in planes.split()]
    program = Program(
        instructions=(Instruction("level", "table", ("levels", STATE)),),
        outputs=(("level", 0),),
        tables=(Table(name="levels", entries=tuple(int(level) & 0xFF for level in levels)),),
    )
    code = Code(
        name=f"table {planes}",
        planes=tuple(Plane(window=int(window), stride=int(stride)) for window, stride in cut),
        operand=INT8,
        program=program,
    )
    return Format(name=f"table {planes}", code=code, scale=Scale.parse(scale))


def _same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    """float32 equal bit by bit, signs of zeros included; a NaN is any NaN."""
    either = np.isnan(found) & np.isnan(expected)
    return bool(np.all((found.view(np.uint32) == expected.view(np.uint32)) | either))


@pytest.fixture
def random_matrix() -> Callable[..., CodedMatrix]:
    return _random_matrix


@pytest.fixture
def table_format() -> Callable[..., Format]:
    return _table_format


@pytest.fixture
def same_bits() -> Callable[..., bool]:
    return _same_bits
