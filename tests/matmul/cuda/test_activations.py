"""What FP4 and INT8 keep of activations, and which weights they take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unspool.decode.machine import MACHINES
from unspool.errors import DeclarationError, WeightError
from unspool.matmul.cuda.activations import quantize, rotated_input
from unspool.matmul.cuda.arrange import arrange
from unspool.matmul.cuda.device import machine_of
from unspool.matmul.cuda.recipe import UNIT_BLOCK, Recipe, recipe
from unspool.matmul.integer import quantize_activations
from unspool.pack.random import random_matrix
from unspool.spec.catalog import FORMATS, parse
from unspool.spec.operand import E2M1, E4M3

SM120 = MACHINES["sm120"]


@pytest.mark.parametrize("name", ["nvfp4", "m2-e2m1"])
def test_fp4_is_off_by_half_a_gap_of_its_block(name):
    made = recipe(FORMATS[name], SM120, "fp4")
    x = np.random.default_rng(0).standard_normal((64, 640)).astype(np.float32)
    x[:, ::7] *= 20
    exact = rotated_input(x, made).astype(np.float64)
    order = made.geometry.columns().reshape(-1, UNIT_BLOCK)
    error, magnitude = (
        np.abs(of).reshape(64, -1, made.geometry.step_columns)[:, :, order]
        for of in (quantize(x, made).values - exact, exact)
    )
    # a scale is 1/6 of the largest, rounded up by 1/16 of it at most; the widest gap, from 4 to 6,
    # is two of it. Rounded down, the largest is 6.4 scales: .4 over the top. And FP32 roundings
    bound = magnitude.max(axis=-1) / 6 * (1 + 2.0**-4) * (1 + 2.0**-20)
    assert (error.max(axis=-1) <= bound).all()


def test_fp4_of_gaussian_activations_is_off_by_a_tenth_of_their_size():
    made = recipe(FORMATS["m2-e2m1"], SM120, "fp4")
    x = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    exact = rotated_input(x, made).astype(np.float64)
    error = quantize(x, made).values - exact
    assert 0.094 < np.sqrt((error**2).mean() / (exact**2).mean()) < 0.097  # FP8: 0.0265


def test_sixteen_operands_of_one_scale_are_sixteen_columns_of_a_plain_format():
    made = recipe(FORMATS["nvfp4"], SM120, "fp4")
    order = made.geometry.columns().reshape(-1, UNIT_BLOCK)
    np.testing.assert_array_equal(order, np.arange(order.size).reshape(-1, UNIT_BLOCK))


@pytest.mark.parametrize(
    ("name", "machine", "reason"),
    [
        ("m2-e4m3", "sm120", "do not multiply the code's values as packed E2M1"),
        ("m2-e2m1", "sm90", "do not multiply the code's values as packed E2M1"),
        ("m2-e4m3", "sm100", "do not multiply the code's values as packed E2M1"),
        ("m2-e2m1:b16-e4m3", "sm100", "blocks of 16 columns end among 16 operands of one scale"),
        ("m2-e2m1:b128-fp16", "sm120", "not E4M3"),
        ("m2-e2m1:b16-e4m3", "sm120", "blocks of 16 columns end among 16 operands of one scale"),
    ],
)
def test_what_fp4_does_not_multiply_is_refused_with_the_reason(name, machine, reason):
    with pytest.raises(DeclarationError, match=reason):
        recipe(parse(name), MACHINES[machine], "fp4")


@pytest.mark.parametrize(("name", "wrong"), [("nvfp4", 0x80 | 0x38), ("mxfp4", 90)])
def test_scales_that_the_unit_cannot_read_are_refused(name, wrong):
    fmt = FORMATS[name]
    matrix = random_matrix(fmt, 16, 64)
    scale = matrix.scale.copy()
    scale[3, 1] = wrong
    with pytest.raises(WeightError, match=r"row 3.*fp8x2"):
        arrange(replace(matrix, scale=scale), recipe(fmt, SM120, "fp4"))


@pytest.mark.parametrize(("machine", "m"), [("sm120", 9), ("sm100", 9), ("sm100", 40)])
def test_the_kernel_makes_the_operands_and_scales_of_the_definition(product, tokens, machine, m):
    found, x = product("m2-e2m1", machine, "fp4"), tokens(m, 520)
    planned, made = found.plan(m), found.made
    raw, token_scales = found.prepare(x, planned)
    columns, stage = planned.columns, made.geometry.stage_columns
    stages = raw.reshape(planned.stages, -1)
    operands, scales = np.split(stages, [stage // 2 * columns], axis=1)
    # [16 bytes of 32 operands][block of 8 tokens][token][byte], then words of four scales
    halves = operands.reshape(planned.stages, stage // 32, columns // 8, 8, 16)
    nibbles = np.stack((halves & 15, halves >> 4), axis=-1)
    codes = nibbles.transpose(2, 3, 0, 1, 4, 5).reshape(columns, -1, UNIT_BLOCK)
    of_block = scales[:, scale_bytes(made, columns, stage // 64)].swapaxes(0, 1)
    of_block = of_block.reshape(columns, -1)
    placed = E2M1.values()[codes] * E4M3.values()[of_block][:, :, None]
    order = made.geometry.columns().reshape(-1)
    values = np.empty((columns, codes.size // columns // order.size, order.size))
    values[:, :, order] = placed.reshape(values.shape)
    want = quantize(x, made)
    width = want.terms.shape[2]
    np.testing.assert_array_equal(values.reshape(columns, -1)[:m, :width], want.terms[0])
    np.testing.assert_array_equal(token_scales[:m], want.scales)


def scale_bytes(made: Recipe, columns: int, slices: int) -> np.ndarray:
    """Where the scales of a token, slice and block of 16 stand behind the operands."""
    token, one = np.arange(columns)[:, None], np.arange(slices)
    if made.loop == "mma_sync":  # [token][slice]
        at = 4 * (slices * token + one)
    else:  # two columns of tensor memory per slice: rows of 16 bytes are two slices of a token
        at = 512 * (one // 2) + 16 * (token % 32) + 8 * (one % 2) + 4 * (token // 32)
    return at[:, :, None] + np.arange(4)


def test_int8_of_gaussian_activations_is_off_by_less_than_a_hundredth():
    made = recipe(FORMATS["m2-e2m1"], MACHINES["sm80"], "int8")
    x = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    exact = rotated_input(x, made).astype(np.float64)
    error = quantize(x, made).values - exact
    # a step is 1/127 of the largest of 4096, some 3.8 standard deviations, and 1/sqrt(12) its rms
    assert 0.0084 < np.sqrt((error**2).mean() / (exact**2).mean()) < 0.0088  # FP8: 0.0265


def rows_of_every_kind() -> np.ndarray:
    """Gaussian, ties, the smallest that count, zeros, the largest, not finite `[m, 128]`."""
    x = np.random.default_rng(0).standard_normal((12, 128)).astype(np.float32)
    x[1] = np.arange(128) / 2
    x[1, -1] = 127  # a scale of 1: half of all are ties
    x[2] = -x[1]
    x[3] *= 2.0**-118
    x[4, :], x[4, 7] = 0, 2.0**-120
    x[5, :], x[5, 7] = 0, np.nextafter(np.float32(2.0**-120), np.float32(0))
    x[6], x[7] = 0, x[7] * 1e38
    x[8, 3], x[9, 4], x[10, 5] = np.nan, np.inf, -np.inf
    x[7] = np.clip(x[7], -3e38, 3e38)
    return x


@pytest.mark.parametrize("machine", ["sm80", "sm90", "sm100"])
def test_int8_is_rounded_as_cpus_round_it(product, machine):
    """On a CPU a scale is of 128 columns: for so many both have the same."""
    found, x = product("int4", machine, "int8", k=128), rows_of_every_kind()
    want, scales = quantize_activations(x)
    defined = quantize(x, found.made)
    np.testing.assert_array_equal(defined.terms[0], want)
    np.testing.assert_array_equal(defined.scales, scales[:, 0])
    planned = found.plan(len(x))
    raw, token_scales = found.prepare(x, planned)
    np.testing.assert_array_equal(token_scales[: len(x)], scales[:, 0])
    np.testing.assert_array_equal(operands(raw, planned.columns, found.made)[:12, :128], want)


def operands(raw: np.ndarray, columns: int, made: Recipe) -> np.ndarray:
    """INT8 `[column, k]` of prepared activations: [half of a slice][column block][column][byte]."""
    halves = raw.view(np.int8).reshape(-1, columns // 8, 8, 16).transpose(1, 2, 0, 3)
    order = made.geometry.columns().reshape(-1)
    values = np.empty((columns, halves.size // columns // order.size, order.size), np.int8)
    values[:, :, order] = halves.reshape(values.shape)
    return values.reshape(columns, -1)


def test_the_kernel_makes_the_int8_of_the_definition(product, tokens):
    found, x = product("m2-e2m1", "sm80", "int8", k=1300), tokens(9, 1300)
    planned, want = found.plan(9), quantize(x, found.made)
    raw, token_scales = found.prepare(x, planned)
    width = want.terms.shape[2]
    values = operands(raw, planned.columns, found.made)[:9, :width]
    np.testing.assert_array_equal(values, want.terms[0])
    np.testing.assert_array_equal(token_scales[:9], want.scales)
    assert np.abs(values).max(axis=1).tolist() == [127] * 9


@pytest.mark.parametrize(
    ("name", "machine", "reason"),
    [
        ("fp8-e4m3", "sm80", "do not multiply the code's values as INT8"),
        ("lut3-row", "sm80", "do not multiply the code's values as INT8"),
        ("nvfp4", "sm80", "blocks of 16 columns end inside a step of 32"),
    ],
)
def test_what_int8_does_not_multiply_is_refused_with_the_reason(name, machine, reason):
    with pytest.raises(DeclarationError, match=reason):
        recipe(FORMATS[name], MACHINES[machine], "int8")


def test_a_gpu_without_integer_products_refuses_int8_with_the_reason():
    assert recipe(FORMATS["t2-e2m1"], machine_of((10, 0)), "int8").kind == "s8"
    with pytest.raises(DeclarationError, match=r"sm_103a has no matrix unit for INT8.*fp8x2"):
        recipe(FORMATS["t2-e2m1"], machine_of((10, 3)), "int8")
