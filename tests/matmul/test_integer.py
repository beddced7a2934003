"""The definition of the product with int8 activations: near the exact product by a derived bound.

That every kernel gives its bits is the claim of test_integer_product.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from unspool.encode.rotate import hadamard, signs
from unspool.matmul.choose import BLOCK, choose
from unspool.matmul.integer import TINIEST, _scales, quantize_activations, stored_levels
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode, decode_values
from unspool.pack.matrix import CodedMatrix
from unspool.spec.catalog import FORMATS

INTEGER = [name for name, fmt in FORMATS.items() if choose(fmt, "numpy").activations == "int8"]

VARIANTS = ("t2-e2m1:raw", "int8:b16-e4m3", "t3-e2m3:h64-both-s7", "nvfp4:h32-out")

STEP = (1 + 2.0**-13) / 254
"""How far a rounded activation is from itself, in units of its block's top.

q is within 1/2 of x * 127 / top, but for two roundings of at most 127 * 2^-24 each; the scale is
top / 127, but for a relative rounding of 2^-24 (2^-23 where it is subnormal). In units of top:
(1/2 + 127 * 2^-23) / 127 + 2^-23 < 1/254 * (1 + 2^-13).
"""


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, k), np.float32)


def turned_tops(x: np.ndarray, matrix: CodedMatrix) -> np.ndarray:
    """The largest magnitude of every padded and rotated activation's block, [m, columns]."""
    columns, rotation = matrix.format.padded(*matrix.shape)[1], matrix.format.rotation
    turned = np.zeros((len(x), columns), np.float32)
    turned[:, : x.shape[1]] = x
    if rotation.input_size:
        turned = hadamard(turned, rotation.input_size, signs(columns, rotation.seed, "in"))
    whole = np.zeros((len(x), -(-columns // BLOCK), BLOCK))
    whole.reshape(len(x), -1)[:, :columns] = np.abs(turned)
    return np.repeat(whole.max(axis=2), BLOCK, axis=1)[:, :columns]


def bound(x: np.ndarray, matrix: CodedMatrix) -> np.ndarray:
    """What rounding may do to a product, [m, n].

    Every activation is off by its step. The sum adds a float32 for each group of columns, of at
    most min(128, block) columns: that many roundings of what meets there, at most |w| * top, and
    nine more: weights (twice in the dense one, twice here), unit, both scales and the row's, the
    result. A rotation of the inputs is a float32 sum as well, s + 2 roundings of size 2^s on
    either side, relative to the norms. One of the outputs is orthonormal: the errors of a block
    of rows reach each of them by at most their norm.
    """
    n, rotation = matrix.shape[0], matrix.format.rotation
    stored, tops = np.abs(decode_values(matrix).astype(np.float64)), turned_tops(x, matrix)
    groups = tops.shape[1] / min(BLOCK, matrix.format.scale.block or BLOCK)
    error = (STEP + 2.0**-24 * (groups + 9)) * (tops @ stored.T)
    if not rotation.size:
        return error[:, :n]
    turns = 2.0**-24 * 2 * (rotation.size.bit_length() + 2)
    norms = turns * np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(stored, axis=1)
    error += norms
    if rotation.output_size:
        blocks = (error + norms).reshape(len(x), -1, rotation.output_size)
        error = np.repeat(np.linalg.norm(blocks, axis=2), rotation.output_size, axis=1)
    return error[:, :n]


def differences(matrix: CodedMatrix) -> tuple[np.ndarray, np.ndarray]:
    """Activations of five magnitudes, and how far their product is from the exact one."""
    x = activations(5, matrix.shape[1]) * np.exp2(np.arange(-20, 25, 9, dtype=np.float32))[:, None]
    exact = x.astype(np.float64) @ decode(matrix).astype(np.float64).T
    return x, Kernel(matrix, target="numpy")(x) - exact


@pytest.mark.parametrize("name", [*INTEGER, *VARIANTS])
def test_the_product_is_the_exact_one_but_for_the_steps_of_activations(random_matrix, name):
    matrix = random_matrix(name, 72, 1100)
    x, error = differences(matrix)
    assert np.all(np.abs(error) <= bound(x, matrix))


@pytest.mark.parametrize("name", [*INTEGER, *VARIANTS])
def test_the_error_is_that_of_rounding_and_no_more(random_matrix, name):
    """Off by anything in +-top / 254 with equal chance, an activation adds w top / 254 / sqrt(3).

    The squares of 72 errors of a row of activations spread by sqrt(2 / 72) = 17 %: four times that
    on either side. Rotated outputs are rows of all blocks, so 96 stored rows count.
    """
    matrix = random_matrix(name, 72, 1100)
    x, error = differences(matrix)
    weights = decode_values(matrix).astype(np.float64) ** 2
    expected = turned_tops(x, matrix) ** 2 @ weights.T / (3 * 254**2)
    ratio = (error**2).mean(axis=1) / expected.mean(axis=1)
    assert np.all((ratio > 1 / 3) & (ratio < 5 / 3))


@pytest.mark.parametrize("name", INTEGER)
def test_levels_times_unit_and_scale_are_the_weights(random_matrix, name):
    matrix = random_matrix(name, 24, 256)
    values, levels, scales = decode_values(matrix), stored_levels(matrix), _scales(matrix)
    assert np.abs(levels).max() <= 128
    each = np.repeat(scales, values.shape[1] // scales.shape[1], axis=1)
    # The unit is a power of two: both are the value times the scale, rounded once.
    assert np.array_equal(levels.astype(np.float32) * each, values)


def test_an_activation_is_off_by_half_a_step_at_most():
    x = activations(40, 1000) * np.exp2(np.linspace(-118, 126, 40, dtype=np.float32))[:, None]
    q, scales = quantize_activations(x)
    assert q.dtype == np.int8
    each = np.repeat(scales.astype(np.float64), BLOCK, axis=1)[:, :1000]
    tops = np.stack([np.abs(x[:, i : i + BLOCK]).max(axis=1) for i in range(0, 1000, BLOCK)], 1)
    off = np.abs(x - q * each)
    assert np.all(off <= STEP * np.repeat(tops.astype(np.float64), BLOCK, axis=1)[:, :1000])
    reached = np.stack([np.abs(q[:, i : i + BLOCK]).max(axis=1) for i in range(0, 1000, BLOCK)], 1)
    assert np.all(reached == 127)


def test_halves_go_to_the_even_integer():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]], np.float32)
    q, scales = quantize_activations(x)
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -126]]
    assert scales.tolist() == [[1]]


def test_blocks_are_rounded_alone_and_the_last_may_be_short():
    x = activations(3, 300)
    q, scales = quantize_activations(x)
    for block in range(3):
        columns = slice(block * BLOCK, (block + 1) * BLOCK)
        alone, scale = quantize_activations(x[:, columns])
        assert np.array_equal(q[:, columns], alone)
        assert np.array_equal(scales[:, block : block + 1], scale)


def test_zeros_and_numbers_too_small_to_divide_by_count_as_zero():
    below = np.nextafter(TINIEST, np.float32(0))
    x = np.zeros((4, 200), np.float32)
    x[1, 0], x[2, 0], x[3, 0] = below, -TINIEST, -0.0
    q, scales = quantize_activations(x)
    assert q[2, 0] == -127
    assert scales[2, 0] == TINIEST / np.float32(127) > 0
    assert not np.delete(q, 2, axis=0).any()
    assert not np.delete(scales, 2, axis=0).any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_block_with_something_not_finite_has_no_scale(poison):
    x = activations(2, 300)
    clean = quantize_activations(x)
    x[1, 130] = poison
    q, scales = quantize_activations(x)
    assert np.isnan(scales).tolist() == [[False] * 3, [False, True, False]]
    assert not q[1, BLOCK : 2 * BLOCK].any()
    assert np.array_equal(q[:, :BLOCK], clean[0][:, :BLOCK])
    assert np.array_equal(q[0], clean[0][0])
