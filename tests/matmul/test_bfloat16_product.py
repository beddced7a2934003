"""Products with bf16 activations: the product of the rounded ones; pairs add in the order written.

`cpu/pairs.hpp` states the order; the kernel for AVX-512 with BF16 is compiled from the source that
runs here in plain C++.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from ml_dtypes import bfloat16

from unspool.decode.target import why_not
from unspool.encode.rotate import hadamard, signs
from unspool.matmul.choose import FLOAT_PATHS, PAIR_CHUNK, PATHS, choose, exact_in_bfloat16
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode_operands, decode_values, scales
from unspool.pack.matrix import CodedMatrix
from unspool.spec.catalog import FORMATS, parse

TARGETS = [name for name in ("numpy", *PATHS) if not why_not(name)]
UNROTATED = (
    "fp8-e4m3", "fp8-e5m2", "mxfp8", "mxfp6-e3m2", "nf4", "lut3-row", "lut-b", "int8",
    "nvfp4", "t1.5-e2m1:raw", "t2-e2m1:h64", "m2-e4m3:b48-fp16:raw",
)  # fmt: skip
PAIRS = [name for name in UNROTATED if exact_in_bfloat16(parse(name))]


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, k), np.float32)


def rounded(x: np.ndarray, matrix: CodedMatrix) -> np.ndarray:
    """Padded, rotated and rounded activations."""
    columns, rotation = matrix.format.padded(*matrix.shape)[1], matrix.format.rotation
    turned = np.zeros((len(x), columns), np.float32)
    turned[:, : x.shape[1]] = x
    if rotation.input_size:
        turned = hadamard(turned, rotation.input_size, signs(columns, rotation.seed, "in"))
    return turned.astype(bfloat16).astype(np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", UNROTATED)
def test_the_product_is_that_of_the_rounded_activations(random_matrix, name, target):
    """To 2^-24 of the magnitudes that meet, for every rounding of a sum.

    Chains of at most 256 additions, one for each group of columns, a weight, its scale, the result.
    """
    matrix = random_matrix(name, 72, 1100)
    kernel = Kernel(matrix, target=target, activations="bf16")
    assert kernel.activations == "bf16"
    assert kernel.path in ("numpy", f"float-{FLOAT_PATHS.get(target)}", f"pairs-{target}")
    weight = decode_values(matrix).astype(np.float64)
    groups = 1100 / min(PAIR_CHUNK, matrix.format.scale.block or PAIR_CHUNK)
    for m in (1, 5, 7):
        x = rounded(activations(m, 1100), matrix).astype(np.float64)
        bound = 2.0**-24 * (256 + groups + 4) * (np.abs(x) @ np.abs(weight).T)
        error = np.abs(kernel(activations(m, 1100)) - (x @ weight.T)[:, :72])
        assert np.all(error <= bound[:, :72])


def by_pairs(x: np.ndarray, matrix: CodedMatrix) -> np.ndarray:
    """The sum as pairs.hpp writes it, [m, rows].

    A product of two bf16 is exact in float64, and so is its sum with a float32 of like magnitude:
    rounding that to float32 is a fused multiply-add.
    """
    values = matrix.format.code.operand.values()[decode_operands(matrix)]
    every, k = scales(matrix), values.shape[1]
    block = matrix.format.scale.block
    block = None if block == k else block
    group = math.gcd(block, PAIR_CHUNK) if block else PAIR_CHUNK
    totals = np.zeros((len(x), len(values)), np.float32)
    for first in range(0, k, group):
        sums = np.zeros_like(totals)
        for pair in range(first, min(first + group, k), 2):
            for column in (pair + 1, pair):
                product = x[:, column : column + 1].astype(np.float64) * values[:, column]
                sums = (sums + product).astype(np.float32)
        totals = totals + (sums * every[:, first] if block else sums)
    return totals if block else totals * every[:, 0]


@pytest.mark.parametrize("target", [name for name in ("portable", "avx512") if not why_not(name)])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_added_in_the_order_written(random_matrix, same_bits, name, target):
    for n, k in ((72, 700), (9, 30)):
        matrix = random_matrix(name, n, k)
        kernel = Kernel(matrix, target=target, activations="bf16")
        if kernel.path != f"pairs-{target}":
            pytest.skip(f"{target} has no instructions for pairs here")
        x = activations(13, k)
        expected = by_pairs(rounded(x, matrix), matrix)[:, :n]
        for m in (*range(1, 8), 13):
            assert same_bits(kernel(x[:m]), expected[:m]), (n, k, m)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["fp8-e4m3", "lut-b", "mxfp8"])
def test_neither_rows_beside_it_nor_threads_change_a_row(random_matrix, same_bits, name, target):
    kernel = Kernel(random_matrix(name, 200, 1064), target=target, activations="bf16")
    x = activations(11, 1064)
    whole = kernel(x, threads=1)
    for m in (1, 2, 5, 10):
        assert same_bits(kernel(x[-m:], threads=3), whole[-m:])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_row_keeps_to_itself(random_matrix, same_bits, target, poison):
    kernel = Kernel(random_matrix("fp8-e4m3", 40, 136), target=target, activations="bf16")
    x = activations(7, 136)
    clean = kernel(x)
    x[3, 135] = poison
    found, others = kernel(x), np.arange(7) != 3
    assert same_bits(found[others], clean[others])
    assert not np.isfinite(found[3]).all()


@pytest.mark.parametrize("name", FORMATS)
def test_values_said_to_be_exact_in_bf16_are(name):
    fmt = parse(name)
    values = fmt.code.operand.values()
    values = values[np.isfinite(values)]
    same = values.astype(bfloat16).astype(np.float64) == values
    assert exact_in_bfloat16(fmt) == same.all()


@pytest.mark.parametrize("name", FORMATS)
def test_pairs_are_for_weights_that_are_not_int8_where_there_are_instructions(name):
    fmt = parse(name)
    integer = choose(fmt, "avx512").activations == "int8"
    choice = choose(fmt, "avx512", pairs=True)
    if integer or not exact_in_bfloat16(fmt):
        assert choice == choose(fmt, "avx512")
    else:
        assert (choice.path, choice.activations) == ("pairs-avx512", "bf16")
        assert choose(fmt, "avx512").path == "float-avx2"
        assert choose(fmt, "portable").path == "float-portable"
