"""Strips hold the stored words in another order: nothing is lost, nothing is kept twice."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from unspool.decode.target import why_not
from unspool.matmul.choose import PATHS, choose
from unspool.matmul.kernel import Kernel
from unspool.perf.strip_loop import shape_of
from unspool.spec.catalog import FORMATS

TARGETS = [name for name in PATHS if not why_not(name)]
INTEGER = [name for name, fmt in FORMATS.items() if choose(fmt, "numpy").activations == "int8"]
BY_TABLE = (
    "v1.5-e2m1", "t3.5-e2m3", "m2-e4m3", "m2-e4m3-quick", "m3-e2m1", "m3-e4m3", "m3-e2m3",
    "x1-e2m1", "x1.5-e2m1", "x1.5-e2m1-fine", "x2-e2m1", "x2-e4m3", "x2-e4m3-fine",
    "x2-e4m3-finest", "x2.5-e4m3", "x2.5-e4m3-fine", "x3-e4m3", "x3-e4m3-fine", "x3.5-e4m3",
    "x4-e4m3",
)  # fmt: skip
"""Codes that no kernel decodes in registers: they read the stored words."""

IN_REGISTERS = [name for name in INTEGER if name not in BY_TABLE]


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, k), np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", IN_REGISTERS)
@pytest.mark.parametrize("n", [1, 8, 9, 24, 31, 33, 40, 64, 72, 129])
def test_strips_give_the_stored_words_back(random_matrix, name, target, n):
    for k in (1, 16, 300):
        matrix = random_matrix(name, n, k)
        words = matrix.codes.copy()
        kernel = Kernel(matrix, target=target)
        assert kernel.owns_codes
        assert kernel.drop_codes()
        matrix.codes[:] = 0
        found = kernel.codes()
        assert (found.dtype, found.shape) == (words.dtype, words.shape)
        assert np.array_equal(found, words)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("planes", ["7,2", "6,1 1,1"])
def test_tables_of_128_levels_are_the_definitions_products(
    random_matrix, table_format, same_bits, planes, target
):
    # A ring of two bits a step is two qwords: windows reach into the next one, and wrap.
    fmt = table_format(planes, range(-64, 64))
    for n in (1, 9, 33, 64, 72):
        for k in (8, 300, 650):
            matrix = random_matrix(fmt, n, k)
            words, x = matrix.codes.copy(), activations(5, k)
            expected = Kernel(matrix, target="numpy")(x)
            kernel = Kernel(matrix, target=target)
            assert kernel.owns_codes == (planes != "7,2" or target != "avx2")
            kernel.drop_codes()
            assert np.array_equal(kernel.codes(), words)
            for m in (1, 2, 5):
                assert same_bits(kernel(x[:m]), expected[:m]), (n, k, m)


@pytest.mark.parametrize("name", INTEGER)
def test_the_loop_that_is_counted_is_that_of_codes_in_registers(name):
    assert (shape_of(FORMATS[name].code) is None) == (name in BY_TABLE)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", IN_REGISTERS)
def test_every_bit_has_one_place_in_a_strip(random_matrix, name, target):
    # Every bit is numbered; the codes hold one binary digit of all the numbers at a time.
    matrix = random_matrix(name, 72, 16)
    words = matrix.codes.reshape(-1)
    bits = np.arange(32 * words.size).reshape(words.size, 32)
    for low in range(int(bits.max()).bit_length()):
        words[:] = ((bits >> low & 1) << np.arange(32)).sum(axis=1).astype(np.uint32)
        kernel = Kernel(matrix, target=target)
        kernel.drop_codes()
        assert np.array_equal(kernel.codes().reshape(-1), words)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", IN_REGISTERS)
def test_a_kernel_that_owns_its_codes_reads_nothing_of_the_matrix(
    random_matrix, same_bits, name, target
):
    matrix = random_matrix(name, 40, 300)
    x = activations(5, 300)
    kernel = Kernel(matrix, target=target)
    before, decoded = kernel(x), kernel.decode_values()
    kernel.drop_codes()
    gone = weakref.ref(matrix.codes)
    kept = {part: array.copy() for part, array in matrix.arrays.items()}
    del matrix
    assert gone() is None
    assert same_bits(kernel(x), before)
    assert same_bits(kernel(x[:1]), before[:1])
    assert same_bits(kernel.decode_values(), decoded)
    for part, array in kernel.matrix.arrays.items():
        assert np.array_equal(array, kept[part]), part


@pytest.mark.parametrize("target", ["numpy", *TARGETS])
@pytest.mark.parametrize("name", [*BY_TABLE, "fp8-e4m3", "t2-e2m1"])
def test_others_keep_the_matrix_they_read(random_matrix, name, target):
    rounded = "float32" if name == "t2-e2m1" else "auto"
    matrix = random_matrix(name, 40, 300)
    kernel = Kernel(matrix, target=target, activations=rounded)
    assert not kernel.owns_codes
    assert not kernel.drop_codes()
    assert kernel.codes() is matrix.codes
    assert kernel.matrix is matrix


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_outlives_the_matrix_it_reads(random_matrix, same_bits, target):
    matrix = random_matrix("t3.5-e2m3", 40, 300)
    x = activations(3, 300)
    expected = Kernel(matrix, target="numpy")(x)
    kernel = Kernel(matrix, target=target)
    del matrix
    assert same_bits(kernel(x), expected)
