"""Products with int8 activations: the definition's bits, on every target, whatever else runs.

The definition is `matmul.integer`, in numpy; test_integer.py says what it is worth.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from unspool.decode.target import why_not
from unspool.matmul.choose import PATHS, choose
from unspool.matmul.integer import TINIEST
from unspool.matmul.kernel import Kernel
from unspool.spec.catalog import FORMATS, parse
from unspool.spec.scale import Scale

TARGETS = [name for name in PATHS if not why_not(name)]
INTEGER = [name for name, fmt in FORMATS.items() if choose(fmt, "numpy").activations == "int8"]
ROTATED = ("t2-e2m1:h64-both-s7", "t3.5-e2m3:h128-out", "nvfp4:h32")
SOME = ("t2-e2m1", "nvfp4", "int8", "m2-e2m1", "t3.5-e2m3", "t3-e2m3:h64-both")
"""A ring and plain bits, block scales, levels beyond 64, a product, a table, rows that mix."""


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, k), np.float32)


def defined(matrix, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return Kernel(matrix, target="numpy")(x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*INTEGER, *ROTATED])
def test_products_are_the_definitions_bits_for_any_number_of_rows(
    random_matrix, same_bits, name, target
):
    matrix = random_matrix(name, 72, 1100)
    x = activations(33, 1100)
    expected = defined(matrix, x)
    kernel = Kernel(matrix, target=target)
    assert kernel.path == f"integer-{target}"
    for m in (*range(1, 10), 12, 13, 33):
        assert same_bits(kernel(x[:m]), expected[:m]), m


@pytest.mark.parametrize("name", [*INTEGER, "nvfp4:h32-both"])
def test_odd_sizes(random_matrix, same_bits, name):
    # Around 8 rows of a tile and 16, 32, 64 of a strip; around 8 or 16 columns, 128, 512.
    for n in (1, 7, 9, 17, 31, 33, 64, 65):
        for k in (1, 2, 8, 17, 127, 128, 129, 521):
            matrix = random_matrix(name, n, k)
            x = activations(5, k)
            expected = defined(matrix, x)
            for target in TARGETS:
                kernel = Kernel(matrix, target=target)
                for m in (1, 2, 5):
                    assert same_bits(kernel(x[:m]), expected[:m]), (n, k, m, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SOME)
def test_more_rows_than_fit_the_cache_at_a_time(random_matrix, same_bits, name, target):
    # 512 of them do (kMostRows in product.cpp): 513 leave one over, 1025 as well.
    matrix = random_matrix(name, 9, 136)
    x = activations(1025, 136)
    expected = defined(matrix, x)
    kernel = Kernel(matrix, target=target)
    for m in (511, 512, 513, 1025):
        assert same_bits(kernel(x[:m]), expected[:m]), m


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SOME)
def test_a_row_does_not_know_how_many_there_are(random_matrix, same_bits, name, target):
    kernel = Kernel(random_matrix(name, 56, 1064), target=target)
    x = activations(11, 1064)
    whole = kernel(x)
    for m in range(1, 11):
        assert same_bits(kernel(x[:m]), whole[:m])
        assert same_bits(kernel(x[-m:]), whole[-m:])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("m", [1, 2, 33])
def test_the_threads_do_not_change_a_bit(random_matrix, same_bits, name, target, m):
    # A million weights: enough work for several threads even at one row (run_strips).
    kernel = Kernel(random_matrix(name, 1000, 1000), target=target)
    x = activations(m, 1000)
    single = kernel(x, threads=1)
    for threads in (2, 3, 7):
        assert same_bits(kernel(x, threads=threads), single)


@pytest.mark.parametrize("target", TARGETS)
def test_calls_at_the_same_time_do_not_meet(random_matrix, same_bits, target):
    kernels = [Kernel(random_matrix(name, 400, 600), target=target) for name in SOME]
    batches = [activations(m, 600, seed=m) for m in (1, 3, 8)]
    expected = [[kernel(x, threads=1) for x in batches] for kernel in kernels]
    start = threading.Barrier(len(kernels))

    def run(place: int) -> bool:
        start.wait()
        return all(
            same_bits(kernels[place](x, threads=2), y)
            for _ in range(10)
            for x, y in zip(batches, expected[place], strict=True)
        )

    with ThreadPoolExecutor(len(kernels)) as pool:
        assert all(pool.map(run, range(len(kernels))))


def extremes(k: int) -> dict[str, np.ndarray]:
    """Rows at the edges of float32, by what they are."""
    normal, ends = activations(1, k)[0], np.zeros(k, np.float32)
    ends[[0, -1]] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    powers = np.exp2(np.linspace(-149, 127, k, dtype=np.float32))
    signs = np.where(normal < 0, np.float32(-1), np.float32(1))
    return {
        "zeros": np.zeros(k, np.float32),
        "minus zeros": np.full(k, -0.0, np.float32),
        "the smallest": np.full(k, np.float32(2.0**-149)) * signs,
        "too small by a bit": np.full(k, np.nextafter(TINIEST, np.float32(0))) * signs,
        "just large enough": np.full(k, TINIEST) * signs,
        "around that": normal * TINIEST,
        "the largest": np.full(k, np.finfo(np.float32).max) * signs,
        "the largest at the ends": ends,
        "all magnitudes": powers * signs,
        "all magnitudes, scattered": np.random.default_rng(2).permutation(powers) * signs,
        "halves of a step": np.resize(np.arange(-127, 128, dtype=np.float32), k) + np.float32(0.5),
        "one alone": np.where(np.arange(k) == k // 2, np.float32(3), np.float32(-0.0)),
    }


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*SOME, "t2-e2m1:raw", "int8:b32-e8m0"])
def test_rows_at_the_edges_of_float32(random_matrix, same_bits, name, target):
    matrix = random_matrix(name, 40, 300)
    rows = extremes(300)
    kernel = Kernel(matrix, target=target)
    expected = defined(matrix, np.stack([*rows.values()]))
    assert same_bits(kernel(np.stack([*rows.values()])), expected)
    for (what, row), one in zip(rows.items(), expected, strict=True):
        assert same_bits(kernel(row[None]), one[None]), what
    zeros = [place for place, what in enumerate(rows) if what.endswith("zeros")]
    assert not expected[zeros].any()


@pytest.mark.parametrize("target", ["numpy", *TARGETS])
@pytest.mark.parametrize("name", [*SOME, "t2-e2m1:raw"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_row_is_nan_and_keeps_to_itself(random_matrix, same_bits, name, target, poison):
    kernel = Kernel(random_matrix(name, 40, 136), target=target)
    x = activations(7, 136)
    clean = kernel(x)
    x[3, 135] = poison
    for batch in (slice(None), slice(3, 4), slice(2, 5)):
        found, rows = kernel(x[batch]), np.arange(7)[batch]
        assert np.isnan(found[rows == 3]).all()
        assert same_bits(found[rows != 3], clean[batch][rows != 3])


BLOCKS = (8, 16, 32, 48, 64, 128, 256)


def matrix_of_all_scales(random_matrix, fmt, rows: int):
    """A matrix among whose scales are all finite bit patterns.

    Of FP16 in large blocks every seventh, which is every mantissa and every exponent: all of them
    would be 16 M weights, and how a scale is widened does not depend on its block.
    """
    patterns = np.flatnonzero(np.isfinite(fmt.scale.operand.values()))
    if len(patterns) * (fmt.scale.block or 0) > 1 << 22:
        patterns = patterns[::7]
    k = -(-len(patterns) // rows) * fmt.scale.block if fmt.scale.block else 24
    matrix = random_matrix(fmt, rows, k)
    matrix.scale[:] = np.resize(patterns, matrix.scale.shape)
    assert matrix.scale.size >= len(patterns)
    return matrix


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("scale", ["fp16", "e4m3", "e8m0"])
def test_every_scale_of_blocks_of_every_size(random_matrix, same_bits, scale, block):
    # Subnormal numbers, zero and minus zero among them; a few rows and many read them differently.
    for name in ("int4", "mxfp6-e2m3" if scale == "e8m0" else "t1.5-e2m1:raw"):
        fmt = parse(name).vary(scale=Scale.parse(f"b{block}-{scale}"))
        matrix = matrix_of_all_scales(random_matrix, fmt, 512 if scale == "fp16" else 40)
        x = activations(7, matrix.shape[1])
        expected = defined(matrix, x)
        for target in TARGETS:
            kernel = Kernel(matrix, target=target)
            for m in (1, 7):
                assert same_bits(kernel(x[:m]), expected[:m]), (name, target, m)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", ["fp16", "e4m3", "e8m0"])
def test_every_scale_of_a_row(random_matrix, same_bits, scale, target):
    fmt = parse("int4").vary(scale=Scale.parse(f"row-{scale}"))
    matrix = matrix_of_all_scales(random_matrix, fmt, 1 << fmt.scale.operand.bits)
    x = activations(2, matrix.shape[1])
    assert same_bits(Kernel(matrix, target=target)(x), defined(matrix, x))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["none", "tensor", "row-fp16", "b64-e4m3"])
def test_tensor_scales_of_every_magnitude(random_matrix, same_bits, name, target):
    matrix = random_matrix(parse("int4").vary(scale=Scale.parse(name)), 24, 256)
    x = activations(3, 256)
    for power in (*range(-149, 125, 7), 121, 126):
        if matrix.tensor_scale is not None:
            matrix.tensor_scale[...] = np.float32(2.0**power) * np.float32(1.1)
        assert same_bits(Kernel(matrix, target=target)(x), defined(matrix, x)), power


LARGEST = {
    "int8": lambda fmt: parse("int8"),
    "int8 in blocks": lambda fmt: parse("int8:b16-fp16"),
    "16": lambda fmt: fmt("4,1 3,3", spread(-16, 16, 128)),
    "16 by a table": lambda fmt: fmt("4,1 5,5", spread(-16, 16, 512)),
    "17": lambda fmt: fmt("4,1 3,3", spread(-17, 17, 128)),
    "17 by a table": lambda fmt: fmt("4,1 5,5", spread(-17, 17, 512), "b32-e8m0"),
    "64": lambda fmt: fmt("4,1 3,3", spread(-64, 64, 128)),
    "64 by a table": lambda fmt: fmt("4,1 5,5", spread(-64, 64, 512)),
    "65": lambda fmt: fmt("4,1 3,3", spread(-65, 65, 128)),
    "127": lambda fmt: fmt("5,1 2,2", spread(-127, 127, 128)),
    "128 by a table": lambda fmt: fmt("4,1 5,5", spread(-128, 127, 512), "b32-e8m0"),
    "plain bits": lambda fmt: fmt("6,6", spread(-128, 127, 64)),
    "one side alone": lambda fmt: fmt("5,1 1,1", spread(1, 127, 64), "b8-fp16"),
}
"""Largest levels around those that kernels tell apart (16 and 64, strips.hpp)."""


def spread(least: int, most: int, count: int) -> np.ndarray:
    return np.linspace(least, most, count).round().astype(int)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LARGEST)
def test_no_sum_on_the_way_overflows(random_matrix, table_format, same_bits, name, target):
    matrix = random_matrix(LARGEST[name](table_format), 64, 512)
    for word in (None, 0, 0xFFFFFFFF):  # all bits: the least and the largest level everywhere
        if word is not None:
            matrix.codes[:] = word
        kernel = Kernel(matrix, target=target)
        levels = kernel.decode_operands().astype(np.uint8).view(np.int8)
        signs = np.where(levels >= 0, np.float32(127), np.float32(-127))
        # The largest sum of each of eight rows, the least; all alike, for what is added to levels.
        x = np.concatenate([signs[:8], -signs[:8], np.full((2, 512), np.float32(127))])
        x[-1] = -127
        expected = defined(matrix, x)
        assert same_bits(kernel(x), expected)
        for row, one in zip(x, expected, strict=True):
            assert same_bits(kernel(row[None]), one[None])


@pytest.mark.parametrize("target", TARGETS)
def test_the_largest_sum_there_is(random_matrix, same_bits, target):
    matrix = random_matrix("int8", 64, 512)
    for word in (0x7F7F7F7F, 0x80808080, 0x807F807F, 0x7F7F8080, 0):
        matrix.codes[:] = word
        x = np.full((5, 512), np.float32(127))
        x[1:4] *= np.array([[-1], [1], [1]], np.float32)
        x[2, ::2] = x[3, : 512 // 2] = -127
        expected = defined(matrix, x)
        kernel = Kernel(matrix, target=target)
        for m in (1, 2, 5):
            assert same_bits(kernel(x[:m]), expected[:m]), hex(word)
        if word == 0x7F7F7F7F:
            scale = np.float32(matrix.scale[0, 0].view(np.float16)) * matrix.tensor_scale
            assert expected[0, 0] == np.float32(127 * 127 * 512) * scale
