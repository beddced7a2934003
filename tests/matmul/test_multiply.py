"""One activation times several weights in one call, as a model asks for it: bfloat16, bias."""

from __future__ import annotations

import numpy as np
import pytest
from ml_dtypes import bfloat16

from unspool import native
from unspool.decode.target import why_not
from unspool.errors import NativeError
from unspool.matmul.choose import PATHS
from unspool.matmul.kernel import BFLOAT16, FLOAT32, Kernel, multiply

TARGETS = [name for name in PATHS if not why_not(name)]
NUMBER = {np.dtype(np.float32): FLOAT32, np.dtype(bfloat16): BFLOAT16}
SIBLINGS = ("t2-e2m1", "t3-e2m3", "int8", "nvfp4", "t2-e2m1:h64-both", "fp8-e4m3", "t3.5-e2m3")
"""Rotated and not, groups of 128 and 16 columns, one and two lanes, integers and not, a table."""


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, k), np.float32)


def products(kernels, x: np.ndarray, biases=None, *, threads: int = 2, spare: int = 0):
    """y of every kernel in x's number type; rows of x are `spare` elements apart."""
    (m, k), number = x.shape, NUMBER[x.dtype]
    wide = np.full((m, k + spare), np.nan, x.dtype)
    wide[:, :k] = x
    places = [np.full((m + 1) * kernel.shape[0], 7, x.dtype) for kernel in kernels]
    results = [
        (y.ctypes.data, None if bias is None else bias.ctypes.data)
        for y, bias in zip(places, biases or [None] * len(kernels), strict=True)
    ]
    multiply(kernels, (wide.ctypes.data, number, m, k + spare), results, threads)
    shaped = [y.reshape(m + 1, -1) for y in places]
    assert all((y[m] == 7).all() for y in shaped), "written beyond the result"
    return [y[:m] for y in shaped]


def kernels_of(random_matrix, target: str, k: int = 300) -> list[Kernel]:
    sizes = (70, 8, 33, 128, 24, 40, 65)
    matrices = [random_matrix(name, n, k) for name, n in zip(SIBLINGS, sizes, strict=True)]
    return [Kernel(matrix, target=target) for matrix in matrices]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [1, 2, 5, 9, 520])
def test_several_products_in_one_call_are_those_of_one_at_a_time(
    random_matrix, same_bits, target, m
):
    kernels = kernels_of(random_matrix, target)
    x = activations(m, 300)
    for threads in (1, 3):
        for found, kernel in zip(products(kernels, x, threads=threads), kernels, strict=True):
            assert same_bits(found, kernel(x)), kernel.format.name


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_weight_may_come_twice(random_matrix, same_bits, target):
    kernel = Kernel(random_matrix("t2-e2m1", 70, 300), target=target)
    x = activations(3, 300)
    for found in products([kernel, kernel, kernel], x):
        assert same_bits(found, kernel(x))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [1, 5])
def test_rows_of_activations_may_stand_apart(random_matrix, same_bits, target, m):
    kernels = kernels_of(random_matrix, target)
    x = activations(m, 300)
    for found, kernel in zip(products(kernels, x, spare=13), kernels, strict=True):
        assert same_bits(found, kernel(x))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [1, 5])
def test_a_bias_is_added_last_and_rounded_once(random_matrix, same_bits, target, m):
    kernels = kernels_of(random_matrix, target)
    x = activations(m, 300)
    biases = [activations(1, kernel.shape[0], seed=9)[0] * np.float32(0.01) for kernel in kernels]
    biases[2] = None
    for found, kernel, bias in zip(products(kernels, x, biases), kernels, biases, strict=True):
        assert same_bits(found, kernel(x) + (bias if bias is not None else np.float32(0)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [1, 5, 520])
def test_bfloat16_is_widened_exactly_and_the_result_rounded_once(random_matrix, target, m):
    kernels = kernels_of(random_matrix, target)
    x = activations(m, 300).astype(bfloat16)
    biases = [activations(1, kernel.shape[0], seed=9)[0] * np.float32(0.01) for kernel in kernels]
    for found, kernel, bias in zip(products(kernels, x, biases), kernels, biases, strict=True):
        expected = (kernel(x.astype(np.float32)) + bias).astype(bfloat16)
        assert np.array_equal(found.view(np.uint16), expected.view(np.uint16)), kernel.format.name


@pytest.mark.parametrize("target", TARGETS[-1:])
def test_every_finite_bfloat16_is_read_as_it_is(random_matrix, target):
    # One per row, beside zeros, so that each is its block's largest. All targets share the reader.
    patterns = np.arange(1 << 16, dtype=np.uint16).view(bfloat16)
    finite = patterns[np.isfinite(patterns.astype(np.float32))]
    x = np.zeros((len(finite), 8), bfloat16)
    x[:, 0] = finite
    kernel = Kernel(random_matrix("int4", 8, 8), target=target)
    (found,) = products([kernel], x)
    with np.errstate(over="ignore"):
        expected = kernel(x.astype(np.float32)).astype(bfloat16)
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("target", TARGETS)
def test_a_result_is_rounded_to_bfloat16_as_ieee_says(random_matrix, target):
    # A weight of zeros and a bias: the bias is the result. Ties, both sides of them, infinities,
    # subnormal numbers, what rounds up to infinity.
    upper = np.random.default_rng(0).integers(0, 1 << 16, 500, np.uint32) << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (upper[:, None] | low).ravel()
    edges = np.array([0, 1, 0x8000, 0x7F7FFFFF, 0x7F7F7FFF, 0x7F800000, 0x7FFFFFFF], np.uint32)
    bias = np.concatenate([bits, edges, edges | np.uint32(1 << 31)]).view(np.float32)
    matrix = random_matrix("int4", len(bias), 8)
    matrix.scale[:] = 0
    (found,) = products([Kernel(matrix, target=target)], np.zeros((1, 8), bfloat16), [bias])
    expected = (bias + np.float32(0)).astype(bfloat16)
    nan = np.isnan(bias)
    assert np.array_equal(found[0].view(np.uint16)[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(found[0][nan].astype(np.float32)).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_bfloat16_row_is_nan_and_keeps_to_itself(random_matrix, target, poison):
    kernel = Kernel(random_matrix("t2-e2m1", 70, 300), target=target)
    x = activations(4, 300).astype(bfloat16)
    (clean,) = products([kernel], x)
    x[2, 299] = poison
    (found,) = products([kernel], x)
    others = np.arange(4) != 2
    assert np.array_equal(found[others].view(np.uint16), clean[others].view(np.uint16))
    assert np.isnan(found[2].astype(np.float32)).all()


def test_a_thread_count_below_one_is_refused():
    with pytest.raises(NativeError, match="not a thread count"):
        native.threads(0)
