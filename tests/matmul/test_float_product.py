"""Products with float32 activations: right to a derived bound, exact where sums are."""

from __future__ import annotations

import numpy as np
import pytest

from unspool.decode.target import why_not
from unspool.matmul.choose import FLOAT_PATHS
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode, decode_values, matmul
from unspool.pack.matrix import CodedMatrix
from unspool.spec.catalog import FORMATS, parse
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

TARGETS = [name for name in ("numpy", "portable", "avx2", "neon") if not why_not(name)]
SOME = ("t2-e2m1", "t1.5-e2m1", "mxfp4", "nvfp4", "fp8-e4m3", "lut-b", "m2-e2m1", "t3-e2m3:h64-out")


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, k), np.float32)


def bound(x: np.ndarray, matrix: CodedMatrix) -> np.ndarray:
    """Roundings of one sum, each 2^-24 of the magnitudes that meet in it.

    A chain of 512 / 16 additions, 4 to join the chains, one per chunk of 512; a weight and its
    scale are rounded once each, the result once. A rotation of size 2^s rounds s + 2 times on
    either side and mixes: its errors are relative to the norms of the stored rows, and at the
    output to sqrt(size) times the largest of them.
    """
    n, k = matrix.shape
    roundings = 512 // 16 + 4 + -(-k // 512) + 3
    stored, rotation = decode_values(matrix).astype(np.float64), matrix.format.rotation
    if not rotation.size:
        return 2.0**-24 * roundings * (np.abs(x).astype(np.float64) @ np.abs(stored[:n, :k]).T)
    norms = np.linalg.norm(stored, axis=1)[:n]
    if rotation.output_size:
        norms = np.full(n, np.linalg.norm(stored, axis=1).max() * np.sqrt(rotation.output_size))
    turns = 2 * (rotation.size.bit_length() + 2)
    return 2.0**-24 * (roundings + turns) * np.linalg.norm(x, axis=1)[:, None] * norms


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*FORMATS, "t2-e2m1:h64-both-s7", "t3-e2m3:b64-fp16"])
def test_the_product_is_the_float64_product_to_the_last_bits(random_matrix, name, target):
    n, k = 72, 1100
    matrix = random_matrix(name, n, k)
    kernel = Kernel(matrix, target=target, activations="float32")
    assert kernel.path == ("numpy" if target == "numpy" else f"float-{FLOAT_PATHS[target]}")
    dense = decode(matrix).astype(np.float64)
    for m in (1, 5):
        x = activations(m, k)
        error = np.abs(kernel(x) - x.astype(np.float64) @ dense.T)
        assert np.all(error <= bound(x, matrix))


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 31])
def test_odd_sizes(random_matrix, name, n):
    for k in (1, 8, 17, 64, 127, 521):
        matrix = random_matrix(name, n, k)
        x = activations(7, k)
        exact = x.astype(np.float64) @ decode(matrix).astype(np.float64).T
        allowed = bound(x, matrix)
        for target in TARGETS:
            kernel = Kernel(matrix, target=target, activations="float32")
            for m in (1, 2, 3, 7):
                y = kernel(x[:m])
                assert (y.shape, y.dtype) == ((m, n), np.float32)
                assert np.all(np.abs(y - exact[:m]) <= allowed[:m]), (k, target, m)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["t2-e2m1", "t3-e2m3", "t1.5-e2m1", "int4", "mxfp4", "m2-e2m1"])
def test_sums_of_small_integers_are_exact(random_matrix, name, target):
    fmt = parse(name).vary(rotation=Rotation(), scale=Scale.parse("row-fp16"))
    matrix = random_matrix(fmt, 40, 1000)
    matrix.scale[:] = np.float16(0.25).view(np.uint16)
    matrix.tensor_scale[...] = 2
    x = np.random.default_rng(3).integers(-8, 9, (6, 1000)).astype(np.float32)
    kernel = Kernel(matrix, target=target, activations="float32")
    for rows in (x, x[:1], x[:3]):
        # 1000 terms of at most 127 * 8 stay below 2^24 units: float32 sums in any order are exact.
        assert np.array_equal(kernel(rows), matmul(rows, matrix))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SOME)
def test_a_row_does_not_know_how_many_there_are(random_matrix, same_bits, name, target):
    kernel = Kernel(random_matrix(name, 56, 1064), target=target, activations="float32")
    x = activations(11, 1064)
    whole = kernel(x)
    for m in (1, 2, 3, 4, 5, 10):
        assert same_bits(kernel(x[:m]), whole[:m])
        assert same_bits(kernel(x[-m:]), whole[-m:])


@pytest.mark.parametrize("target", TARGETS)
def test_more_rows_than_are_multiplied_at_a_time(random_matrix, same_bits, target):
    # 512 of them are (kMostRows in product.cpp).
    kernel = Kernel(random_matrix("fp8-e4m3", 9, 136), target=target)
    x = activations(1025, 136)
    parts = [kernel(x[i : i + 100]) for i in range(0, 1025, 100)]
    assert same_bits(kernel(x), np.concatenate(parts))


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "numpy"])
@pytest.mark.parametrize("name", ["fp8-e4m3", "t2-e2m1", "nf4"])
@pytest.mark.parametrize("m", [1, 2, 33])
def test_the_threads_do_not_change_a_bit(random_matrix, same_bits, name, target, m):
    kernel = Kernel(random_matrix(name, 1000, 1000), target=target, activations="float32")
    x = activations(m, 1000)
    single = kernel(x, threads=1)
    for threads in (2, 3, 7):
        assert same_bits(kernel(x, threads=threads), single)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["t2-e2m1", "t1.5-e2m1", "nvfp4", "fp8-e4m3"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_row_keeps_to_itself(random_matrix, same_bits, name, target, poison):
    kernel = Kernel(random_matrix(name, 40, 136), target=target, activations="float32")
    x = activations(7, 136)
    clean = kernel(x)
    x[3, 135] = poison
    found = kernel(x)
    others = np.arange(7) != 3
    assert same_bits(found[others], clean[others])
    assert not np.isfinite(found[3]).all()
    assert not np.isfinite(kernel(x[3:4])).all()
