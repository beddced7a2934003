"""Fused products, run on the CPU thread by thread, against float64.

The bound: FP32 sums of k terms, each rounded once per slice, and a few roundings of scales:
(k / 16 + 8) * 2**-24 of the sum of magnitudes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unspool.decode.machine import MACHINES
from unspool.matmul.cuda.activations import quantize
from unspool.matmul.cuda.arrange import recipe_of
from unspool.matmul.cuda.recipe import SUMS, TABLE
from unspool.matmul.cuda.simulated import Product
from unspool.matmul.integer import stored_levels
from unspool.matmul.reference import decode_values
from unspool.pack.random import random_matrix
from unspool.spec.catalog import FORMATS

K = 520
BOUND = (K / 16 + 8) * 2.0**-24

#: each main loop with every way of decoding, scaling and containing; all others are marked slow
QUICK = [
    ("m2-e4m3-quick", "sm80", "auto"),
    ("nvfp4", "sm80", "auto"),
    ("t2-e2m1", "sm89", "auto"),
    ("m2-e4m3", "sm90", "auto"),
    ("mxfp4", "sm90", "auto"),
    ("mxfp4", "sm80", "auto"),
    ("mxfp4", "sm100", "fp8"),
    ("mxfp4", "sm100", "float16"),
    ("mxfp6-e2m3", "sm100", "fp8x2"),
    ("mxfp8", "sm90", "fp8"),
    ("lut-b", "sm90", "fp8"),
    ("nvfp4", "sm90", "auto"),
    ("t3.5-e2m3", "sm90", "fp8x3"),
    ("m2-e2m1", "sm100", "auto"),
    ("int4", "sm100", "auto"),
    ("nf4", "sm100", "auto"),
    ("t2-e2m1", "sm100", "int8"),
    ("s3-e4m3", "sm120", "auto"),
    ("v1.5-e2m1", "sm120", "fp8x3"),
    ("m2-e2m1", "sm120", "fp4"),
    ("nvfp4", "sm120", "fp4"),
    ("m2-e2m1", "sm100", "fp4"),
    ("nvfp4", "sm100", "fp4"),
    ("mxfp4", "sm120", "fp8"),
    ("mxfp8", "sm120", "fp8x2"),
    ("mxfp6-e2m3", "sm120", "fp8"),
]
FP4 = ("t1-e2m1", "v1.5-e2m1", "t1.5-e2m1", "t2-e2m1", "m3-e2m1", "mxfp4")
INTEGERS = ("s2-e4m3", "s3-e4m3", "t2-e2m1", "t4-e2m3", "v1.5-e2m1", "m2-e2m1", "m3-e4m3", "int8",
            "int4", "mxfp4")  # fmt: skip
NAMES = ("t1-e2m1", "t2.5-e2m3", "t4-e2m3", "m3-e2m3", "m3-e4m3", "s4-e4m3", "fp8-e4m3", "fp8-e5m2",
         "mxfp8", "mxfp6-e2m3", "mxfp6-e3m2", "int8", "lut3-row", "m2-e4m3", "t2-e2m1")  # fmt: skip
SLOW = [
    pytest.param(name, machine, "auto", marks=pytest.mark.slow)
    for name in NAMES
    for machine in ("sm80", "sm89", "sm90", "sm100", "sm120")
]
SLOW += [
    pytest.param(name, machine, "fp4", marks=pytest.mark.slow)
    for name in FP4
    for machine in ("sm100", "sm120")
]
SLOW += [
    pytest.param(name, machine, "int8", marks=pytest.mark.slow)
    for name in INTEGERS
    for machine in ("sm80", "sm89", "sm90", "sm100", "sm120")
]


@pytest.mark.parametrize(("name", "machine", "activations"), [*QUICK, *SLOW])
def test_products_are_those_of_the_decoded_weights(
    product, expected, tokens, name, machine, activations
):
    found, x = product(name, machine, activations, k=K), tokens(3, K)
    want, magnitude = expected(found, x)
    error = np.abs(found(x) - want) / magnitude
    assert error.max() <= BOUND, f"{error.max():.1e} of the magnitude"


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 131), (256, 256), (257, 769)])
@pytest.mark.parametrize("machine", ["sm89", "sm90", "sm100"])
def test_odd_sizes(product, expected, tokens, machine, n, k):
    found, x = product("s3-e4m3", machine, n=n, k=k), tokens(2, k)
    want, magnitude = expected(found, x)
    assert (np.abs(found(x) - want) <= BOUND * magnitude + 1e-30).all()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (257, 769)])
@pytest.mark.parametrize("machine", ["sm100", "sm120"])
def test_odd_sizes_of_fp4(product, expected, tokens, machine, n, k):
    found, x = product("nvfp4", machine, "fp4", n=n, k=k), tokens(2, k)
    want, magnitude = expected(found, x)
    assert (np.abs(found(x) - want) <= BOUND * magnitude + 1e-30).all()


@pytest.mark.parametrize("name", ["m2-e2m1", "nvfp4"])
def test_scales_of_more_tokens_than_lanes_stand_in_the_next_column(product, expected, tokens, name):
    found, x = product(name, "sm100", "fp4"), tokens(40, K)
    want, magnitude = expected(found, x)
    assert found.plan(40).tokens == 64
    assert (np.abs(found(x) - want) <= BOUND * magnitude).all()


@pytest.mark.parametrize("machine", ["sm100", "sm120"])
def test_blocks_that_share_fp4_rows_give_a_token_the_same_bits_in_any_batch(
    product, expected, tokens, machine
):
    found, x = product("nvfp4", machine, "fp4", n=520, k=1200, blocks=5), tokens(12, 1200)
    whole, (want, magnitude) = found(x), expected(found, x)
    assert (np.abs(whole - want) <= 2 * BOUND * magnitude).all()
    for first, last in ((0, 1), (3, 11), (11, 12)):
        np.testing.assert_array_equal(found(x[first:last]), whole[first:last])


@pytest.mark.parametrize("machine", ["sm80", "sm90", "sm100"])
@pytest.mark.parametrize("blocks", [1, 5])
def test_sums_of_int8_are_exact_whoever_adds_them(product, tokens, machine, blocks):
    found, x = product("t2-e2m1", machine, "int8", n=520, k=1200, blocks=blocks), tokens(11, 1200)
    rounded, row_scales = quantize(x, found.made), found.arranged[0].row_scales[:520]
    levels = decode_values(found.matrix)[:520].astype(np.float64) / row_scales[:, None]
    whole = np.rint(levels).astype(np.int64)
    assert np.abs(levels - whole).max() < 2.0**-20  # FP32 values over their scales
    sums = rounded.terms[0].astype(np.int64) @ whole.T
    # to FP32 once, then the row's scale and the token's
    want = sums.astype(np.float32) * row_scales * rounded.scales[:, None]
    np.testing.assert_array_equal(found(x), want)


@pytest.mark.parametrize("machine", ["sm80", "sm90", "sm100"])
def test_blocks_of_int8_are_whole_sums_times_their_scales(product, tokens, machine):
    found, x = product("int4", machine, "int8", n=260, k=640, blocks=1), tokens(3, 640)
    matrix, rounded = found.matrix, quantize(x, found.made)
    row_scales, levels = found.arranged[0].row_scales[:260], stored_levels(matrix)[:260, :640]
    stored = matrix.format.scale.operand.values()[matrix.scale[:260]]
    halves = stored * np.float64(matrix.tensor_scale) / row_scales[:, None]
    assert np.array_equal(halves, halves.astype(np.float16))  # a power of two per row
    q, total = rounded.terms[0].astype(np.int64), np.zeros((3, 260), np.float32)
    for block, first in enumerate(range(0, 640, 128)):
        sums = q[:, first : first + 128] @ levels[:, first : first + 128].T
        # a fused multiply-add, rounded once from 64 bits
        added = sums.astype(np.longdouble) * halves[:, block] + total
        total = added.astype(np.float32)
    np.testing.assert_array_equal(found(x), total * row_scales * rounded.scales[:, None])


@pytest.mark.parametrize("machine", ["sm89", "sm90"])
@pytest.mark.parametrize("lowest", [1, 26, 27])
def test_scales_of_blocks_as_far_apart_as_a_table_moves_and_farther(
    expected, tokens, compiler, machine, lowest
):
    matrix = random_matrix(FORMATS["mxfp4"], 261, K)
    powers = np.random.default_rng(0).integers(127 - lowest, 128, matrix.scale.shape)
    powers[:, :2] = 127, 127 - lowest
    matrix = replace(matrix, scale=powers.astype(matrix.scale.dtype))
    made = recipe_of((matrix,), MACHINES[machine], "fp8")
    assert made.scales == (TABLE if lowest < 27 else SUMS)
    found, x = Product(matrices=(matrix,), made=made), tokens(17, K)
    want, magnitude = expected(found, x)
    whole = found(x)
    assert (np.abs(whole - want) <= BOUND * magnitude).all()
    for first, last in ((0, 1), (3, 11), (16, 17)):
        np.testing.assert_array_equal(found(x[first:last]), whole[first:last])


@pytest.mark.parametrize("activations", [pytest.param("fp8", marks=pytest.mark.slow), "fp4"])
def test_tokens_too_small_for_a_scale_are_zeros(product, tokens, activations):
    x = tokens(2, K)
    x[0] *= 2.0**-124
    x[0, 5] = 0
    assert (product("m2-e2m1", "sm120", activations)(x)[0] == 0).all()


@pytest.mark.parametrize("machine", ["sm89", "sm90", "sm100"])
@pytest.mark.parametrize("blocks", [1, 2, 5, 7])
def test_any_number_of_blocks_shares_the_work(product, expected, tokens, machine, blocks):
    found, x = product("s3-e4m3", machine, n=520, k=1200, blocks=blocks), tokens(1, 1200)
    want, magnitude = expected(found, x)
    assert (np.abs(found(x) - want) <= 2 * BOUND * magnitude).all()


@pytest.mark.parametrize("machine", ["sm89", "sm90", "sm100"])
def test_a_tokens_result_does_not_depend_on_its_batch(product, tokens, machine):
    found, x = product("s3-e4m3", machine), tokens(40, K)
    whole = found(x)
    for first, last in ((0, 1), (3, 20), (17, 18), (8, 40)):
        np.testing.assert_array_equal(found(x[first:last]), whole[first:last])


@pytest.mark.parametrize(
    ("name", "machine", "activations"),
    [
        ("s3-e4m3", "sm89", "auto"),
        ("s3-e4m3", "sm90", "auto"),
        ("s3-e4m3", "sm100", "auto"),
        ("nvfp4", "sm100", "fp4"),
    ],
)
def test_any_order_of_threads_and_blocks_gives_the_same_bits(
    product, tokens, name, machine, activations
):
    x = tokens(2, K)
    results = [product(name, machine, activations, seed=seed)(x) for seed in range(4)]
    assert all((result == results[0]).all() for result in results)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_spoils_its_own_row_alone(product, tokens, bad):
    found, x = product("m2-e4m3-quick", "sm90"), tokens(3, K)
    clean = found(x)
    x[1, 77] = bad
    spoilt = found(x)
    assert np.isnan(spoilt[1]).all()
    np.testing.assert_array_equal(spoilt[[0, 2]], clean[[0, 2]])


def test_zeros_give_zeros(product):
    assert (product("s3-e4m3", "sm90")(np.zeros((2, K), np.float32)) == 0).all()


@pytest.mark.parametrize("output", ["float16", "bfloat16"])
def test_results_are_rounded_once_to_the_outputs_type(product, tokens, output):
    x = tokens(2, K)
    wide = product("s3-e4m3", "sm89", n=301)(x)
    bits = product("s3-e4m3", "sm89", n=301, output=output)(x)
    if output == "float16":
        want = wide.astype(np.float16).view(np.uint16)
    else:
        raw = wide.view(np.uint32)
        want = ((raw + 0x7FFF + (raw >> 16 & 1)) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(bits, want)


@pytest.mark.parametrize("machine", ["sm89", "sm90", "sm100"])
def test_experts_of_a_mixture_multiply_their_tokens_in_one_launch(product, tokens, machine):
    every, x = product("s3-e4m3", machine, experts=3), tokens(5, K)
    choices = np.array([[0, 2], [2, 0], [0, -1], [2, 0], [0, 2]], np.int32)  # nobody takes 1
    out = every.grouped(x, choices).reshape(5, 2, -1)
    alone = [replace(every, matrices=every.matrices[e : e + 1])(x) for e in range(3)]
    for token, pair in enumerate(choices):
        for place, expert in enumerate(pair):
            if expert >= 0:
                np.testing.assert_array_equal(out[token, place], alone[expert][token])
