"""A kernel and its arrays: what it takes, what it gives back, what it refuses, what it says.

The numbers are claims of test_integer_product.py and test_float_product.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from unspool import native
from unspool.decode import target as targets
from unspool.decode.target import NEEDS, why_not
from unspool.errors import NativeError, SlowPathWarning, UnspoolError, WeightError
from unspool.matmul import native_matrix
from unspool.matmul.choose import choose
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode
from unspool.spec.catalog import parse
from unspool.spec.rotation import Rotation

TARGETS = [name for name in NEEDS if not why_not(name)]


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, k), np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rounded", ["auto", "float32"])
def test_a_kernel_says_what_it_runs(random_matrix, target, rounded):
    kernel = Kernel(random_matrix("t2-e2m1", 64, 256), target=target, activations=rounded)
    choice = choose(parse("t2-e2m1"), target, rounded)
    assert (kernel.target, kernel.path) == (target, choice.path)
    assert kernel.activations == choice.activations == ("int8" if rounded == "auto" else "float32")
    assert choice.why in kernel.why
    assert "forced by the caller" in kernel.why
    assert kernel.compiled == (target != "numpy")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["t2-e2m1", "fp8-e4m3"])
def test_no_rows_give_no_rows(random_matrix, target, name):
    y = Kernel(random_matrix(name, 24, 100), target=target)(np.empty((0, 100), np.float32))
    assert (y.shape, y.dtype) == ((0, 24), np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["t3-e2m3", "fp8-e4m3"])
def test_strided_and_double_activations_are_taken(random_matrix, same_bits, target, name):
    kernel = Kernel(random_matrix(name, 24, 100), target=target)
    wide = activations(5, 200)
    expected = kernel(wide[:, ::2].copy())
    assert same_bits(kernel(wide[:, ::2]), expected)
    assert same_bits(kernel(wide[:, ::2].astype(np.float64)), expected)
    assert same_bits(kernel(wide[::-1, ::2]), expected[::-1])
    assert same_bits(kernel(np.asfortranarray(wide[:, ::2])), expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["t2-e2m1", "nvfp4", "t3-e2m3:b64-fp16", "int8", "fp8-e4m3"])
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
    kernel = Kernel(matrix, target=target)
    assert np.array_equal(kernel.decode(), decode(matrix))
    kernel.drop_codes()
    assert np.array_equal(kernel.decode(), decode(matrix))


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


def test_what_a_format_cannot_do_is_refused(random_matrix):
    matrix = random_matrix("fp8-e4m3", 24, 64)
    with pytest.raises(UnspoolError, match="fp8-e4m3: no product with int8 activations"):
        Kernel(matrix, activations="int8")
    with pytest.raises(UnspoolError, match="no such activations; found int4; allowed: auto, int8"):
        Kernel(matrix, activations="int4")


@pytest.mark.parametrize("target", [name for name in NEEDS if why_not(name)])
def test_a_target_that_cannot_run_here_is_refused(random_matrix, target):
    with pytest.raises(UnspoolError, match=f"cannot run here.*found {target}; allowed.*numpy"):
        Kernel(random_matrix("t2-e2m1", 24, 64), target=target)


def test_without_the_library_the_numpy_twin_runs_and_says_so_once(
    random_matrix, same_bits, monkeypatch
):
    matrices = [random_matrix(name, 24, 64) for name in ("nvfp4", "fp8-e4m3")]
    x = activations(3, 64)
    expected = [Kernel(matrix, target="numpy")(x) for matrix in matrices]
    for cached in (native.library, native.why_not, native._warn_once):
        cached.cache_clear()
    monkeypatch.setattr(native, "_path", lambda: None)
    from unspool.decode import target

    target.features.cache_clear()
    target._best.cache_clear()
    try:
        for matrix, y in zip(matrices, expected, strict=True):
            with pytest.warns(SlowPathWarning, match="numpy"):
                kernel = Kernel(matrix)
            assert (kernel.target, kernel.path) == ("numpy", "numpy")
            assert same_bits(kernel(x), y)
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


def test_a_processor_without_simd_runs_the_plain_kernel_and_says_so_once(
    random_matrix, monkeypatch
):
    native._warn_once.cache_clear()
    targets._best.cache_clear()
    monkeypatch.delenv(targets.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(targets, "features", lambda: frozenset())
    try:
        matrix = random_matrix("t2-e2m1", 24, 64)
        with pytest.warns(SlowPathWarning, match="without SIMD.*avx2 needs") as said:
            plain, _ = Kernel(matrix), Kernel(matrix)
        assert len(said) == 1
        assert plain.path == "integer-portable"
        x = activations(2, 64)
        assert np.array_equal(plain(x), Kernel(matrix, target="numpy")(x))
    finally:
        targets._best.cache_clear()
        native._warn_once.cache_clear()
