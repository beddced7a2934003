"""The product: right to a derived bound, exact where sums are, the same whatever else runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from unspool import native
from unspool.decode.target import TWIN, why_not
from unspool.errors import NativeError, SlowPathWarning, WeightError
from unspool.matmul import native_matrix
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode, decode_values, matmul
from unspool.pack.matrix import CodedMatrix
from unspool.spec.catalog import FORMATS, parse
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

TARGETS = [name for name in ("numpy", "portable", "avx2", "avx512", TWIN) if not why_not(name)]
FMA_TARGETS = [name for name in TARGETS if name in ("avx2", "avx512")]
PLAIN_CODES = ("t2-e2m1", "t1.5-e2m1", "mxfp4", "nvfp4", "fp8-e4m3", "lut-b", "m2-e2m1")


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
    dense = decode(matrix).astype(np.float64)
    kernel = Kernel(matrix, target=target)
    for m in (1, 5):
        x = activations(m, k)
        error = np.abs(kernel(x) - x.astype(np.float64) @ dense.T)
        assert np.all(error <= bound(x, matrix))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PLAIN_CODES)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 31])
@pytest.mark.parametrize("k", [1, 8, 17, 64, 127, 521])
def test_odd_sizes(random_matrix, name, target, n, k):
    matrix = random_matrix(name, n, k)
    dense = decode(matrix).astype(np.float64)
    kernel = Kernel(matrix, target=target)
    for m in (1, 2, 3, 7):
        x = activations(m, k)
        y = kernel(x)
        assert (y.shape, y.dtype) == ((m, n), np.float32)
        error = np.abs(y - x.astype(np.float64) @ dense.T)
        assert np.all(error <= bound(x, matrix))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["t2-e2m1", "t3-e2m3", "t1.5-e2m1", "int4", "mxfp4", "m2-e2m1"])
def test_sums_of_small_integers_are_exact(random_matrix, name, target):
    fmt = parse(name).vary(rotation=Rotation(), scale=Scale.parse("row-fp16"))
    matrix = random_matrix(fmt, 40, 1000)
    matrix.scale[:] = np.float16(0.25).view(np.uint16)
    matrix.tensor_scale[...] = 2
    x = np.random.default_rng(3).integers(-8, 9, (6, 1000)).astype(np.float32)
    kernel = Kernel(matrix, target=target)
    for rows in (x, x[:1], x[:3]):
        # 1000 terms of at most 127 * 8 stay below 2^24 units: float32 sums in any order are exact.
        assert np.array_equal(kernel(rows), matmul(rows, matrix))


@pytest.mark.parametrize("target", TARGETS)
def test_no_rows_give_no_rows(random_matrix, target):
    y = Kernel(random_matrix("t2-e2m1", 24, 100), target=target)(np.empty((0, 100), np.float32))
    assert (y.shape, y.dtype) == ((0, 24), np.float32)


@pytest.mark.parametrize("target", TARGETS)
def test_strided_and_double_activations_are_taken(random_matrix, target):
    kernel = Kernel(random_matrix("t3-e2m3", 24, 100), target=target)
    wide = activations(5, 200)
    expected = kernel(wide[:, ::2].copy())
    assert np.array_equal(kernel(wide[:, ::2]), expected)
    assert np.array_equal(kernel(wide[:, ::2].astype(np.float64)), expected)
    assert np.array_equal(kernel(wide[::-1, ::2]), expected[::-1])


@pytest.mark.parametrize("target", [name for name in TARGETS if name != TWIN])
@pytest.mark.parametrize("name", ["t2-e2m1", "t2.5-e2m3", "nvfp4", "int8", "lut-b", "m2-e4m3"])
def test_a_row_does_not_know_how_many_there_are(random_matrix, name, target):
    kernel = Kernel(random_matrix(name, 56, 1064), target=target)
    x = activations(11, 1064)
    whole = kernel(x)
    for m in (1, 2, 3, 4, 5, 10):
        assert np.array_equal(kernel(x[:m]), whole[:m])
        assert np.array_equal(kernel(x[-m:]), whole[-m:])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [1, 2, 33])
def test_the_threads_do_not_change_a_bit(random_matrix, target, m):
    if target == "numpy":
        pytest.skip("the numpy twin has no threads of its own")
    matrix = random_matrix("t2-e2m1", 1000, 1000)
    x = activations(m, 1000)
    single = Kernel(matrix, target=target)(x, threads=1)
    for threads in (2, 3, 7):
        assert np.array_equal(Kernel(matrix, target=target)(x, threads=threads), single)


@pytest.mark.parametrize("name", FORMATS)
def test_twin_and_panels_with_fma_give_the_same_bits(random_matrix, name):
    if not FMA_TARGETS:
        pytest.skip("no target with FMA on this machine: " + why_not("avx2"))
    matrix = random_matrix(name, 40, 1320)
    twin = Kernel(matrix, target=TWIN)
    if twin.path != "look-up-avx512-twin":
        assert twin.path == "panel-portable"
        return
    x = activations(9, 1320)
    found = np.concatenate([twin(x[i : i + 1]) for i in range(9)])
    for target in FMA_TARGETS:
        kernel = Kernel(matrix, target=target)
        assert (kernel.path, kernel.choice(9).path) == (f"look-up-{target}", "panel-avx2")
        assert np.array_equal(found, kernel(x))
        assert np.array_equal(found[:1], kernel(x[:1]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["t2-e2m1", "t1.5-e2m1", "nvfp4", "fp8-e4m3"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_row_keeps_to_itself(random_matrix, name, target, poison):
    kernel = Kernel(random_matrix(name, 40, 136), target=target)
    x = activations(7, 136)
    clean = kernel(x)
    x[3, 135] = poison
    with np.errstate(invalid="ignore"):  # the rotation in numpy subtracts infinities
        found = kernel(x)
    others = np.arange(7) != 3
    assert np.array_equal(found[others], clean[others])
    assert not np.isfinite(found[3]).all()
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(kernel(x[3:4])).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["t2-e2m1", "nvfp4", "t3-e2m3:b64-fp16", "int8"])
def test_zero_scales_give_exact_zeros(random_matrix, name, target):
    matrix = random_matrix(parse(name).vary(rotation=Rotation()), 24, 256)
    matrix.scale[3] = 0
    kernel = Kernel(matrix, target=target)
    assert not kernel.decode()[3].any()
    for m in (1, 9):
        y = kernel(activations(m, 256))
        assert not y[:, 3].any()
        assert y[:, 4].all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["t2-e2m1", "lut3-row", "t2-e2m1:h64-both", "m3-e4m3"])
def test_decode_is_the_reference_decode(random_matrix, name, target):
    matrix = random_matrix(name, 41, 203)
    assert np.array_equal(Kernel(matrix, target=target).decode(), decode(matrix))


def test_into_writes_where_it_is_told(random_matrix):
    kernel = Kernel(random_matrix("t2-e2m1", 24, 64))
    x, y = activations(3, 64), np.full((5, 24), np.float32(7))
    kernel.into(x, y[1:4])
    assert np.array_equal(y[1:4], kernel(x))
    assert (y[[0, 4]] == 7).all()


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((2, 63), np.float32), np.zeros((2, 24), np.float32)),
        (np.zeros(64, np.float32), np.zeros((1, 24), np.float32)),
        (np.zeros((2, 64), np.float32), np.zeros((3, 24), np.float32)),
        (np.zeros((2, 64), np.float32), np.zeros((2, 24), np.float64)),
        (np.zeros((2, 64), np.float32), np.zeros((24, 2), np.float32).T),
    ],
)
def test_arrays_that_do_not_fit_are_refused(random_matrix, x, y):
    with pytest.raises(WeightError, match="does not fit the weight"):
        Kernel(random_matrix("t2-e2m1", 24, 64)).into(x, y)


def test_without_the_library_the_numpy_twin_runs_and_says_so_once(random_matrix, monkeypatch):
    for cached in (native.library, native.why_not, native._warn_once):
        cached.cache_clear()
    monkeypatch.setattr(native, "_path", lambda: None)
    from unspool.decode import target

    target.features.cache_clear()
    target._best.cache_clear()
    try:
        with pytest.warns(SlowPathWarning, match="numpy"):
            kernel = Kernel(random_matrix("nvfp4", 24, 64))
        assert (kernel.target, kernel.path) == ("numpy", "numpy")
        x = activations(3, 64)
        assert np.array_equal(kernel(x), matmul(x, kernel.matrix))
    finally:
        monkeypatch.undo()
        for cached in (native.library, native.why_not, target.features, target._best):
            cached.cache_clear()


def test_a_library_built_from_other_sources_is_refused() -> None:
    class Stale:
        _name = "old.so"

        @staticmethod
        def unspool_matrix_bytes() -> int:
            return 8

    for stale in (Stale(), SimpleNamespace(_name="older.so")):
        with pytest.raises(NativeError, match=r"old.*not of this version.*bytes"):
            native_matrix._check_version(stale)
