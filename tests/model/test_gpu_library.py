"""Weights decoded to a matrix, activations to its operands, by kernels on a CPU playing a GPU.

Compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unspool.decode.machine import MACHINES
from unspool.errors import DeclarationError, UnspoolError
from unspool.matmul.cuda import simulate
from unspool.matmul.cuda.activations import quantize, rotated_input
from unspool.matmul.cuda.arrange import arrange
from unspool.matmul.cuda.library import MOST_WHOLE, expanded, expansion, why_not
from unspool.matmul.cuda.recipe import ACTIVATIONS, recipe
from unspool.matmul.reference import decode_values
from unspool.model import gpu_library
from unspool.model.gpu import GpuMatrix, upload
from unspool.model.processors import SimulatedProcessor
from unspool.pack.random import random_matrix
from unspool.spec.catalog import FORMATS, parse

N, K = 40, 392

QUICK = [
    ("m2-e2m1", "sm120", "fp4", "E4M3"),  # from packed E2M1
    ("s2-e4m3", "sm100", "fp8", "E4M3"),  # from E2M3 in bytes
    ("v1.5-e2m1", "sm120", "fp8", "E4M3"),  # from E2M1 in bytes
    ("lut-b", "sm90", "fp8", "E4M3"),  # tables of tiles
    ("fp8-e5m2", "sm89", "fp8", "FP16"),
    ("t2-e2m1", "sm90", "fp8x2", "FP16"),  # tables in shared memory
    ("t2-e2m1", "sm80", "int8", "INT8"),
    ("int8", "sm80", "float16", "FP16"),
    ("mxfp4", "sm90", "fp8", "FP16"),  # tables that move
    ("mxfp4", "sm120", "fp4", "BF16"),  # E4M3 that the matrix unit reads
    ("nvfp4", "sm120", "fp4", "BF16"),
    ("mxfp4", "sm100", "fp4", "BF16"),  # the same in the order of tensor memory
    ("nvfp4", "sm100", "fp4", "BF16"),
    ("nvfp4", "sm80", "float16", "FP16"),
    ("mxfp8", "sm90", "fp8", "BF16"),
    ("mxfp6-e3m2", "sm100", "fp8x3", "FP16"),
    ("mxfp4", "sm89", "int8", "BF16"),
    ("int4", "sm90", "fp8x2", "FP16"),
    ("int4", "sm80", "int8", "FP16"),
    ("nf4", "sm100", "float16", "FP16"),
    ("mxfp6-e2m3", "sm120", "fp8", "BF16"),  # E8M0 that the matrix unit reads
    ("mxfp8", "sm120", "fp8x3", "FP16"),
]


@pytest.fixture(autouse=True)
def compiler() -> None:
    reason = simulate.why_not()
    if reason:
        pytest.skip(reason)


def uploaded(name: str, target: str, activations: str, n: int = N, k: int = K) -> GpuMatrix:
    matrix = random_matrix(parse(name), n, k)
    found = upload(matrix, SimulatedProcessor(target), activations=activations, library_rows=1)
    found.coded = matrix
    return found


def in_place(values: torch.Tensor, found: GpuMatrix) -> np.ndarray:
    """Columns of a matrix whose columns stand as decoders leave them."""
    order = found.library.found.recipe.geometry.columns().reshape(-1)
    given = values.double().numpy()
    split = given.reshape(len(given), -1, order.size)
    placed = np.empty_like(split)
    placed[:, :, order] = split
    return placed.reshape(given.shape)


def decoded(found: GpuMatrix) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel decodes and what it has to be."""
    scales = found.row_scales.view(torch.float32).numpy()
    want = expanded(found.coded, scales, found.library.found)
    got = in_place(found.library.expanded(), found)[: want.shape[0], : want.shape[1]]
    return got, want


@pytest.mark.parametrize(("name", "target", "activations", "operand"), QUICK)
def test_weights_are_decoded_to_the_definition(name, target, activations, operand):
    found = uploaded(name, target, activations)
    assert found.library.found.operand.name == operand
    got, want = decoded(found)
    np.testing.assert_array_equal(got, want)
    assert np.abs(want).max() < 2.0**16 or operand != "FP16"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("target", ["sm80", "sm90", "sm120"])
def test_every_format_is_decoded_to_the_definition_from_every_slot(name, target):
    # sm89 has the slots of sm90, sm100 those of sm120 but for the order of FP4 scales (QUICK)
    seen = set()
    for activations in ACTIVATIONS[1:]:
        try:
            recipe(FORMATS[name], MACHINES[target], activations)
        except DeclarationError:
            continue
        found = uploaded(name, target, activations)
        kernel = gpu_library.expand_kernel(found.library.found)
        if kernel.source not in seen:
            got, want = decoded(found)
            np.testing.assert_array_equal(got, want)
        seen.add(kernel.source)
    assert seen


@pytest.mark.parametrize("name", ["nvfp4", "int4", "s3-e4m3", "mxfp8"])
def test_the_definition_is_the_weight_but_for_one_rounding(name):
    fmt = FORMATS[name]
    made, matrix = recipe(fmt, MACHINES["sm90"]), random_matrix(fmt, 48, 384)
    found, row_scales = expansion(made), arrange(matrix, made).row_scales[:48, None]
    want = decode_values(matrix).astype(np.float64)
    got = expanded(matrix, row_scales[:, 0], found) * row_scales * found.factor
    # half a last place of binary16 where scales are FP16; else the FP32 of the reference alone
    half = 2.0**-11 if name == "int4" else 2.0**-24
    assert (np.abs(got - want) <= half * np.abs(want)).all()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 131), (257, 769)])
@pytest.mark.parametrize(("name", "target"), [("mxfp4", "sm90"), ("nvfp4", "sm120")])
def test_odd_sizes_are_decoded(name, target, n, k):
    got, want = decoded(uploaded(name, target, "fp8" if target == "sm90" else "fp4", n, k))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("name", "target", "activations", "step"),
    [
        ("s3-e4m3", "sm90", "fp8", 2.0**-4),
        ("mxfp8", "sm90", "fp8", 2.0**-8),
        ("s3-e4m3", "sm90", "fp8x2", 2.0**-11),
        ("mxfp4", "sm90", "fp8", 2.0**-11),
        ("t2-e2m1", "sm80", "int8", 2.0**-4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_rounded_to_the_definition(name, target, activations, step, dtype):
    found = uploaded(name, target, activations)
    x = torch.randn(5, K, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[3] = 0
    made, scales = found.library.rounded(x)
    want = quantize(x.float().numpy(), found.library.found.recipe)
    np.testing.assert_array_equal(scales[:, 0].numpy(), want.scales)
    got = in_place(made, found)[:5]
    width = want.terms.shape[2]
    np.testing.assert_array_equal(got[:, :width], want.terms[0])
    assert not got[:, width:].any()
    exact = rotated_input(x.float().numpy(), found.library.found.recipe)
    error, top = np.abs(got[:, :width] * want.scales[:, None] - exact), np.abs(exact).max(axis=1)
    assert (error <= step * np.maximum(np.abs(exact), top[:, None] / 8)).all()


@pytest.mark.parametrize(("name", "target", "activations", "operand"), QUICK)
def test_products_are_those_of_what_was_decoded_and_rounded(name, target, activations, operand):
    found = uploaded(name, target, activations)
    x = torch.randn(6, K, generator=torch.Generator().manual_seed(2))
    made = found.library.found
    _, weight = decoded(found)
    scales = found.row_scales.view(torch.float32).numpy()[:N, None].astype(np.float64)
    weight = weight[:N] * scales * made.factor
    rounded = quantize(x.numpy(), made.recipe).values[:, : weight.shape[1]]
    want, magnitude = rounded @ weight.T, np.abs(rounded) @ np.abs(weight).T
    assert (np.abs(found.multiply(x).numpy() - want) <= (K + 8) * 2.0**-24 * magnitude).all()


def test_a_token_that_is_not_finite_spoils_its_own_row_alone():
    for name in ("mxfp8", "int4", "s3-e4m3"):
        found = uploaded(name, "sm90", "fp8")
        x = torch.randn(3, K)
        clean = found.multiply(x)
        x[1, 7] = torch.inf
        spoilt = found.multiply(x)
        assert spoilt[1].isnan().all()
        assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(
    ("name", "target", "activations", "right", "wrong"),
    [
        ("nvfp4", "sm120", "fp4", "row / 2 * 4;", "(row / 2 * 4 ^ 4);"),
        ("nvfp4", "sm120", "fp4", "pair * 2 + row % 2", "pair + row % 2 * 2"),
        ("nvfp4", "sm120", "fp4", "i % 2 * 2 + place.t / 2", "i % 2 * 2"),
        ("nvfp4", "sm100", "fp4", "tile = row / 4", "tile = 1 - row / 4"),
        ("nvfp4", "sm100", "fp4", "8 * (row % 2)", "8 * (1 - row % 2)"),
        ("nvfp4", "sm100", "fp4", "4 * place.warp", "4 * (place.warp ^ 1)"),
        ("nvfp4", "sm100", "fp4", "2 * slice + tile", "2 * (slice ^ 1) + tile"),
        ("mxfp6-e2m3", "sm120", "fp8", ": slice % 4;", ": 0;"),
        ("mxfp6-e2m3", "sm100", "fp8", "slice : slice / 4, row", "slice : slice / 8, row"),
        ("mxfp6-e2m3", "sm120", "fp8", "bits << 23", "bits << 22"),
        ("nvfp4", "sm90", "float16", "threads * (step / scale_steps)", "threads * step"),
        ("int4", "sm90", "fp8", "512 * (step / scale_steps)", "512 * step"),
        ("int4", "sm90", "fp8", "of_rows + 2 * row)", "of_rows)"),
        ("mxfp8", "sm90", "fp8", "? bf16_of(low)", "? f16_of(low)"),
        ("mxfp4", "sm90", "fp8", "0x4440 + row % 4", "0x4440"),
        (
            "mxfp4",
            "sm90",
            "fp8",
            "move_tables(tables, scales, step /",
            "move_tables(tables, scales, 0 /",
        ),
        ("lut-b", "sm90", "fp8", "stage, step / level_steps, place", "stage, 0, place"),
        ("lut-b", "sm90", "fp8", "copy_wait<0>();\n    sync_block();", "copy_wait<0>();"),
    ],
)
def test_a_fault_in_the_kernel_is_found(monkeypatch, name, target, activations, right, wrong):
    def faulty(found):
        kernel = sound(found)
        assert kernel.source.count(right) == 1
        return replace(kernel, source=kernel.source.replace(right, wrong))

    sound = gpu_library.expand_kernel
    found = uploaded(name, target, activations)
    monkeypatch.setattr(gpu_library, "expand_kernel", faulty)
    try:
        got, want = decoded(found)
    except UnspoolError:
        return
    assert (got != want).any()


def test_int8_of_more_columns_than_32_bits_hold_is_no_librarys():
    made = recipe(FORMATS["int8"], MACHINES["sm80"], "int8")
    assert "32 bits" in why_not(made, MOST_WHOLE)
    assert not why_not(made, 49152)


def test_warming_up_compiles_what_many_rows_run(monkeypatch):
    found, ready, ran = uploaded("nvfp4", "sm90", "float16"), [], []
    found.library_rows = 8
    processor = found.processor
    run = processor.run
    monkeypatch.setattr(processor, "ready", ready.extend)
    monkeypatch.setattr(processor, "run", lambda k, *given: (ran.append(k), run(k, *given)))
    found.warm_up([1, 8], torch.float32)
    found.multiply(torch.randn(8, K))
    found.multiply(torch.randn(1, K))
    names = ["unspool_prepare", "unspool_expand", "unspool_prepare", "unspool_multiply"]
    assert [kernel.name for kernel in ran] == names
    assert set(ran) == set(ready)
