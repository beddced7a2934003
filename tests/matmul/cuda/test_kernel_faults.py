"""Faults put into the real kernels: each is caught, or spoils the product.

The text of a kernel is compiled once per main loop, with every fault in it, asleep until its number
is chosen.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from ml_dtypes import float8_e4m3fn

from unspool.decode.emit_cuda import header
from unspool.decode.machine import MACHINES
from unspool.errors import UnspoolError
from unspool.matmul import reference
from unspool.matmul.cuda import simulate
from unspool.matmul.cuda.activations import quantize
from unspool.matmul.cuda.arrange import arrange
from unspool.matmul.cuda.launch import Arguments, Plan, plan
from unspool.matmul.cuda.recipe import Recipe, recipe
from unspool.matmul.cuda.source import multiply_kernel
from unspool.pack.matrix import CodedMatrix


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
    """Terms `[terms, m, k]` as [tile][stage][step, slice, half][column block][8 x 16 bytes]."""
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
    return values.astype(float8_e4m3fn).view(np.uint8)


def _multiply(
    matrix: CodedMatrix, machine: str, *, fault: int = 0, activations: str = "auto", m: int = 5,
    blocks: int = 3, seed: int = 0, change: Callable[[str], str] = lambda source: source,
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
    built = simulate.build(change(kernel.source))
    ctypes.c_int.in_dll(built.library, "fault_number").value = fault
    simulate.run(
        built, kernel.name, given, arrays,
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


Fault = tuple[str, str]
"""Right text, wrong text. FAULT is 1 where the fault is chosen, else 0."""


def skip(text: str, *, after: str = "") -> Fault:
    """A statement that is left out; what precedes and what follows it tell it from others."""
    return after + text, f"{after}if (!FAULT) {text}"


FINISH = (
    skip("fence_global();", after="place);\n        "),
    skip("sync_named(1, threads);\n        if"),
    skip("sync_named(1, threads);\n        const"),
    skip("fence_global();", after="return;\n        "),
    ("before == last - first", "before == last - first - FAULT"),
    ("block <= last; ++block) add", "block <= last - FAULT; ++block) add"),
    ("16 * (threads * i + thread)", "16 * (threads * i + thread + FAULT)"),
)

MMA_SYNC = (
    ("copy_wait<slots - 2>();", "if (FAULT) copy_wait<slots - 1>(); else copy_wait<slots - 2>();"),
    skip("sync_block();  // the stage"),
    skip("copy_commit();  // also"),
    ("ahead < slots - 1", "ahead < slots - 1 - FAULT"),
    ("if (++feed.slot == slots)", "if (++feed.slot == slots - FAULT)"),
    ("if (++feed.stage == a.stages)", "if (++feed.stage == a.stages + FAULT)"),
    ("lane % 8 * 16;\n    const char* single", "(lane % 8 ^ FAULT) * 16;\n    const char* single"),
    ("block = lane / 16", "block = lane / 16 ^ FAULT"),
    ("128 * matrices * slices * step", "128 * matrices * slices * (step ^ FAULT)"),
    ("copy_async(shared + at + 16 * thread,", "copy_async(shared + at + 16 * (thread ^ FAULT),"),
)

PIPELINE = (
    skip("barrier_wait(pipeline.empty"),
    ("turn.round ^ 1);  // the first", "turn.round ^ 1 ^ FAULT);  // the first"),
    ("barrier_expect(full, stage_bytes)", "barrier_expect(full, stage_bytes - 16 * FAULT)"),
    ("if (++stage == a.stages) stage", "if (++stage == a.stages + FAULT) stage"),
    ("empty + slot, readers)", "empty + slot, readers - FAULT)"),
    ("barrier_init(pipeline.full + slot, 1)", "barrier_init(pipeline.full + slot, 1 + FAULT)"),
    ("slot = 0, turn.round ^= 1;", "slot = 0, turn.round ^= !FAULT;"),
)

WGMMA = (
    skip("barrier_init_fence();\n}\n\n// The whole work"),
    skip("barrier_wait(pipeline.full + turn.slot, turn.round);\n            use"),
    ("wgmma_wait<1>();", "if (FAULT) wgmma_wait<2>(); else wgmma_wait<1>();"),
    ("if (step == 1 && previous)", "if (step == 1 - FAULT && previous)"),
    skip("sync_named(1, consumers);"),
    skip("wgmma_fence();\n#pragma"),
    skip("wgmma_commit();\n}\n\nUNSPOOL_DEVICE void add("),
    skip("wgmma_wait<0>();\n        add("),
    ("column_blocks, 128);\n}", "column_blocks, 128 + 16 * FAULT);\n}"),
    ("descriptor(stage, 128", "descriptor(stage, (128 - 16 * FAULT)"),
    ("2 * columns * slices * step", "2 * columns * slices * (step ^ FAULT)"),
    ("mine.weights[step % 2]", "mine.weights[FAULT ? 0 : step % 2]"),
    skip("sync_block();\n    if (thread < consumers)"),
)

WGMMA_ONE_TERM = (skip("wgmma_wait<0>();\n        finish"),)

TCGEN05 = (
    skip("tmem_store_wait();\n    tmem"),
    skip("tmem_fence_before();\n}\n\nUNSPOOL_DEVICE void load_sums"),
    skip("tmem_fence_after();\n#pragma"),
    skip("sync_named(1, decoders);"),
    skip("tmem_load_wait();\n"),
    skip("barrier_wait(hands.sums_ready"),
    skip("barrier_arrive(hands.sums_free)"),
    skip("barrier_wait(hands.free + buffer"),
    skip("tmem_fence_after();\n    store"),
    skip("barrier_arrive(hands.ready + buffer)"),
    skip("barrier_wait(hands.ready + buffer"),
    skip("tmem_fence_after();\n            for"),
    ("columns, !begins || q > 0);", "columns, FAULT || !begins || q > 0);"),
    skip("tmem_commit(hands.free + buffer)"),
    skip("tmem_commit(pipeline.empty"),
    ("warp, j % 2), weights[q][j]", "warp, j % 2 ^ FAULT), weights[q][j]"),
    ("128 * column_blocks, 128),\n", "128 * column_blocks, 128 + 16 * FAULT),\n"),
    ("if (warp == 5) tmem_release", "if (warp == 5 && !FAULT) tmem_release"),
    skip("barrier_wait(pipeline.full + slot, mine"),
    skip("barrier_arrive(pipeline.empty + slot)"),
)

FAULTS: dict[tuple[str, str], tuple[Fault, ...]] = {
    ("sm89", "fp8x2"): FINISH + MMA_SYNC,
    ("sm90", "fp8x2"): FINISH + PIPELINE + WGMMA,
    ("sm90", "fp8"): WGMMA_ONE_TERM,
    ("sm100", "fp8x2"): FINISH + PIPELINE + TCGEN05,
}
"""By machine and activations."""


def with_faults(faults: tuple[Fault, ...]) -> Callable[[str], str]:
    def change(source: str) -> str:
        for number, (right, wrong) in enumerate(faults, 1):
            assert source.count(right) == 1, right
            source = source.replace(right, wrong.replace("FAULT", f"(fault_number == {number})"))
        number = 'extern "C" { int fault_number = 0; }\n'
        return header() + number + source.removeprefix(header())

    return change


@pytest.fixture
def multiply(random_matrix) -> Callable[[tuple[str, str], int], Product]:
    if simulate.why_not():
        pytest.skip(simulate.why_not())
    matrix = random_matrix("t2-e2m1", 261, 1800)

    def run(case: tuple[str, str], fault: int) -> Product:
        machine, activations = case
        change = with_faults(FAULTS[case])
        return _multiply(matrix, machine, activations=activations, fault=fault, change=change)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", FAULTS, ids=" ".join)
def test_without_a_fault_the_product_is_right(multiply, case):
    # FP32 sums of 1800 terms, one rounding per slice of 32, and those of scales
    assert multiply(case, 0).error <= (1800 / 16 + 8) * 2.0**-24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "fault"),
    [
        pytest.param(case, number, id=f"{case[0]} {wrong.splitlines()[0]} {number}")
        for case, faults in FAULTS.items()
        for number, (_, wrong) in enumerate(faults, 1)
    ],
)
def test_a_fault_is_caught_or_spoils_the_product(multiply, case, fault):
    try:
        found = multiply(case, fault)
    except UnspoolError:
        return
    assert not found.error <= 1e-5
