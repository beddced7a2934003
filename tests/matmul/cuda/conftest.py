"""Kernels run on the CPU: a product of a coded matrix, from its arrays to its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from unspool.decode.machine import MACHINES
from unspool.matmul import reference
from unspool.matmul.cuda import simulate
from unspool.matmul.cuda.activations import quantize
from unspool.matmul.cuda.arrange import arrange
from unspool.matmul.cuda.launch import Arguments, Plan, plan
from unspool.matmul.cuda.recipe import Recipe, recipe
from unspool.matmul.cuda.source import multiply_kernel
from unspool.pack.matrix import CodedMatrix


@pytest.fixture(scope="session", autouse=True)
def _compiler() -> None:
    if simulate.why_not():
        pytest.skip(simulate.why_not())


@dataclass(frozen=True, kw_only=True)
class Product:
    """What a kernel found, and what it should have."""

    found: np.ndarray
    expected: np.ndarray
    #: sum of |weight * activation| of every result: what rounding errors are relative to
    magnitude: np.ndarray

    @property
    def error(self) -> float:
        """The largest error in units of the magnitude."""
        floor = np.finfo(np.float32).tiny
        return float(np.max(np.abs(self.found - self.expected) / (self.magnitude + floor)))


def _operand_b(terms: np.ndarray, made: Recipe, laid: Plan) -> np.ndarray:
    """Terms `[terms, m, k]` in the order [tile][stage][step, slice, half][column block][8][16 B]."""
    wide = made.activations == "float16"
    per_half = 8 if wide else 16
    k = laid.stages * made.geometry.stage_columns
    tokens = laid.tiles * laid.tokens
    grid = np.zeros((len(terms), tokens, k), np.float32)
    grid[:, : terms.shape[1], : min(k, terms.shape[2])] = terms[..., :k]
    grid = grid.reshape(len(terms), laid.tiles, laid.tokens // 8, 8, laid.stages, -1,
                        made.geometry.step_columns)  # fmt: skip
    ordered = grid[..., made.geometry.columns().reshape(-1)]
    halves = ordered.reshape(*grid.shape[:6], -1, per_half)
    placed = halves.transpose(1, 4, 5, 6, 0, 2, 3, 7)  # tile stage step half term block token slot
    flat = np.ascontiguousarray(placed)
    return flat.astype(np.float16).view(np.uint8) if wide else _e4m3_bits(flat)


def _e4m3_bits(values: np.ndarray) -> np.ndarray:
    from ml_dtypes import float8_e4m3fn

    return values.astype(float8_e4m3fn).view(np.uint8)


def _multiply(
    matrix: CodedMatrix, machine: str, *, activations: str = "auto", m: int = 5, blocks: int = 1,
    seed: int = 0, change: Callable[[str], str] = lambda source: source,
) -> Product:  # fmt: skip
    made = recipe(matrix.format, MACHINES[machine], activations)
    arranged = arrange(matrix, made)
    laid = plan(made, m, arranged.row_blocks, arranged.stages, blocks=blocks)
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((m, matrix.shape[1])).astype(np.float32)
    quantized = quantize(inputs, made)
    scales = np.zeros(laid.tiles * laid.tokens, np.float32)
    scales[:m] = quantized.scales
    n = matrix.shape[0]
    arrays = {
        "weights": arranged.units,
        "activations": _operand_b(quantized.terms, made, laid),
        "row_scales": arranged.row_scales,
        "token_scales": scales,
        "levels": arranged.levels,
        "output": np.full((m, n), np.nan, np.float32),
        "partials": np.full(laid.partial_bytes // 4, np.nan, np.float32),
        "arrivals": np.zeros(laid.arrivals, np.int32),
    }
    kernel = multiply_kernel(made, tokens=laid.tokens, output="float32", slots=3)
    given = Arguments(
        **{name: simulate.address(array) for name, array in arrays.items()},
        m=m, n=n, row_blocks=laid.row_blocks, stages=laid.stages, across=arranged.levels.shape[1],
    )  # fmt: skip
    simulate.run(
        simulate.build(change(kernel.source)), kernel.name, given, arrays,
        grid=(laid.blocks, laid.tiles), threads=kernel.threads,
        shared_bytes=kernel.shared_bytes, seed=seed,
    )  # fmt: skip
    assert not arrays["arrivals"].any()
    weights = reference.decode_values(matrix).astype(np.float64)[:n]
    values = quantized.values[:, : weights.shape[1]]
    return Product(
        found=arrays["output"].astype(np.float64),
        expected=values @ weights.T,
        magnitude=np.abs(values) @ np.abs(weights).T,
    )


@pytest.fixture(scope="session")
def multiply() -> Callable[..., Product]:
    return _multiply
