"""Calibrated encoding: less error where the inputs notice it, in every kind of format."""

from __future__ import annotations

import numpy as np
import pytest

from unspool.encode.encode import encode
from unspool.encode.ldlq import Calibration, encode_calibrated
from unspool.encode.moments import Moments, turned
from unspool.encode.rotate import rotate
from unspool.errors import WeightError
from unspool.matmul.reference import decode
from unspool.pack.matrix import check_arrays
from unspool.spec.catalog import parse
from unspool.spec.rotation import Rotation

ONE_SCALE = Calibration(stretches=(1.0,))
FORMATS = ("t2-e2m1", "t1.5-e2m1", "t3-e2m3:b128-fp16", "v1.5-e2m1", "s3-e4m3", "nvfp4", "mxfp4",
           "int4", "nf4", "lut3-row", "lut-b", "fp8-e4m3", "t2-e2m1:h64-both")  # fmt: skip


def weight(n: int = 40, k: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)


def moments(k: int = 256, seed: int = 1) -> Moments:
    """Inputs with a decaying spectrum, as those of models."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((k, k)) / np.sqrt(k)
    x = rng.standard_normal((4 * k, k)) * np.geomspace(1, 0.05, k) @ mixed
    return Moments(inputs=x.T @ x)


def true_error(w: np.ndarray, decoded: np.ndarray, met: Moments) -> float:
    missed = (w - decoded).astype(np.float64)
    return float(np.einsum("nk,kj,nj->", missed, met.inputs, missed))


@pytest.mark.parametrize("name", FORMATS)
def test_calibration_lowers_the_error_of_the_outputs(name: str) -> None:
    fmt, w, met = parse(name), weight(), moments()
    matrix = encode_calibrated(w, fmt, met, how=ONE_SCALE)
    check_arrays(fmt, w.shape, matrix.arrays)
    plain, calibrated = (true_error(w, decode(m), met) for m in (encode(w, fmt), matrix))
    assert calibrated < 0.85 * plain


@pytest.mark.parametrize("name", ["t2-e2m1", "nvfp4", "lut-b"])
def test_threads_do_not_change_a_byte(name: str) -> None:
    fmt, w, met = parse(name), weight(), moments()
    one, two = (encode_calibrated(w, fmt, met, how=ONE_SCALE, threads=t) for t in (1, 2))
    for array, same in zip(one.arrays.values(), two.arrays.values(), strict=True):
        np.testing.assert_array_equal(array, same)


def test_more_scales_never_cost_more() -> None:
    w, met, fmt = weight(), moments(), parse("t2-e2m1")
    errors = [
        true_error(w, decode(encode_calibrated(w, fmt, met, how=Calibration(stretches=s))), met)
        for s in ((1.0,), (0.94, 1.0, 1.06))
    ]
    assert errors[1] < errors[0]


def test_drift_is_made_good_for() -> None:
    w, fmt, rng = weight(), parse("t4-e2m3"), np.random.default_rng(3)
    x = rng.standard_normal((1024, 256))
    drifted = x + 0.3 * np.roll(x, 1, axis=1)
    drift = w @ ((x - drifted).T @ drifted)
    errors = []
    for met in (Moments(inputs=drifted.T @ drifted),
                Moments(inputs=drifted.T @ drifted, drift=drift)):  # fmt: skip
        decoded = decode(encode_calibrated(w, fmt, met, how=ONE_SCALE))
        errors.append(float(np.square(x @ w.T - drifted @ decoded.T).sum()))
    assert errors[1] < 0.7 * errors[0]


def test_moments_turn_with_the_weight() -> None:
    fmt, w, met = parse("t2-e2m1"), weight(8), moments()
    rotated, inputs = rotate(w, fmt.rotation), turned(met.inputs, fmt.rotation, 256)
    np.testing.assert_allclose(
        np.einsum("nk,kj,nj->n", rotated, inputs, rotated),
        np.einsum("nk,kj,nj->n", w, met.inputs, w),
        rtol=1e-5,
    )


def test_rows_of_zeros_decode_to_zeros_and_odd_sizes_are_padded() -> None:
    w = weight(13, 100)
    w[3] = 0
    for name in ("t2-e2m1", "nvfp4", "lut-b"):
        decoded = decode(encode_calibrated(w, parse(name), moments(100), how=ONE_SCALE))
        assert decoded.shape == w.shape
        assert not decoded[3].any()


def test_moments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(WeightError, match=r"layer.*moments \(inputs\) do not fit"):
        encode_calibrated(weight(), parse("nvfp4"), moments(128), where="layer")
    broken = Moments(inputs=np.full((256, 256), np.nan))
    with pytest.raises(WeightError, match="not finite"):
        encode_calibrated(weight(), parse("nvfp4"), broken)


@pytest.mark.parametrize("rotation", ["raw", "h128"])
def test_moments_in_float32_are_turned_in_float64(rotation: str) -> None:
    met = moments().inputs
    exact, rounded = (turned(m, Rotation.parse(rotation), 256) for m in (met, np.float32(met)))
    assert exact.dtype == rounded.dtype == np.float64
    np.testing.assert_allclose(rounded, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())
