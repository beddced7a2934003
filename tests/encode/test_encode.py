"""Encoding any weight with any format: near, repeatable, and honest about what it cannot do."""

import numpy as np
import pytest

from unspool.encode import encode as encode_module
from unspool.encode.encode import encode
from unspool.errors import WeightError
from unspool.matmul.reference import decode
from unspool.pack.matrix import check_arrays
from unspool.spec.catalog import FORMATS, parse
from unspool.spec.format import Format
from unspool.spec.rotation import Rotation

QUICK = {name: fmt for name, fmt in FORMATS.items() if not name.startswith("m3")}
EVERY = pytest.mark.parametrize("fmt", QUICK.values(), ids=QUICK)


def gaussian(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)


def relative_error(weight: np.ndarray, fmt: Format) -> float:
    difference = weight - decode(encode(weight, fmt))
    return float((difference**2).mean() / (weight**2).mean())


@EVERY
def test_the_stored_arrays_are_what_the_format_declares(fmt: Format) -> None:
    matrix = encode(gaussian(13, 70), fmt)
    check_arrays(fmt, (13, 70), matrix.arrays)
    assert matrix.nbytes * 8 == fmt.stored_bits(13, 70)


@EVERY
@pytest.mark.parametrize("rotation", ["raw", "h128"])
def test_zero_rows_decode_to_exact_zeros(fmt: Format, rotation: str) -> None:
    weight = gaussian(16, 128)
    weight[5] = 0
    rotated = fmt.vary(rotation=Rotation.parse(rotation))
    assert not decode(encode(weight, rotated))[5].any()


@EVERY
def test_an_all_zero_weight_decodes_to_zeros(fmt: Format) -> None:
    assert not decode(encode(np.zeros((8, 64), np.float32), fmt)).any()


@EVERY
def test_threads_never_change_a_byte(fmt: Format) -> None:
    weight = gaussian(24, 256)
    one, three = (encode(weight, fmt, threads=threads) for threads in (1, 3))
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, three.arrays[name])


@EVERY
def test_a_power_of_two_scales_through(fmt: Format) -> None:
    weight = gaussian(16, 128)
    scaled = decode(encode(weight * np.float32(2**-9), fmt))
    np.testing.assert_array_equal(scaled, decode(encode(weight, fmt)) * np.float32(2**-9))


@pytest.mark.parametrize("name", ["t2-e2m1", "nvfp4", "lut-b", "int8:h64-both"])
def test_strips_join_to_what_one_piece_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = gaussian(200, 128)
    whole = encode(weight, parse(name))
    monkeypatch.setattr(encode_module, "STRIP", 64 * 128)
    for key, array in encode(weight, parse(name)).arrays.items():
        np.testing.assert_array_equal(array, whole.arrays[key])


@pytest.mark.parametrize("name", ["t2-e2m1", "nvfp4", "int8", "lut-b"])
@pytest.mark.parametrize("size", [1e-36, 1e-24, 1e19, 1e36])
def test_the_size_of_the_weights_does_not_matter(name: str, size: float) -> None:
    weight = gaussian(16, 128)
    unit = np.float32(2.0 ** np.round(np.log2(size)))
    exact = relative_error(weight, parse(name))
    scaled = decode(encode(weight * unit, parse(name))).astype(np.float64) / unit
    assert ((weight - scaled) ** 2).mean() / (weight**2).mean() == pytest.approx(exact, rel=1e-3)


def test_a_format_without_a_tensor_scale_says_what_it_reaches() -> None:
    with pytest.raises(WeightError, match=r"out of reach of mxfp4.*allowed: 1e-15 to 1e\+15"):
        encode(gaussian(8, 32) * np.float32(1e20), parse("mxfp4"), where="q")


def test_a_three_bit_multiply_code_encodes() -> None:
    assert relative_error(gaussian(8, 256), parse("m3-e4m3")) < 0.025


@pytest.mark.parametrize("name", ["t2-e2m1", "nvfp4", "lut3-row"])
def test_rows_of_very_different_size_keep_their_own_error(name: str) -> None:
    weight = gaussian(8, 512) * np.logspace(0, -4, 8, dtype=np.float32)[:, None]
    difference = weight - decode(encode(weight, parse(name)))
    errors = (difference**2).mean(axis=1) / (weight**2).mean(axis=1)
    bound = {"t2-e2m1": 0.11, "nvfp4": 0.02, "lut3-row": 0.06}[name]
    assert errors.max() < bound


def test_one_huge_outlier_does_not_take_its_matrix_with_it() -> None:
    weight = gaussian(64, 1024)
    weight[3, 17] = 1e4
    difference = weight - decode(encode(weight, parse("t2-e2m1")))
    others = np.delete(difference, 3, axis=0)
    assert (others**2).mean() < 0.09


def test_a_rotation_makes_heavy_tails_cheap() -> None:
    weight = np.random.default_rng(0).standard_t(2.5, (64, 1024)).astype(np.float32)
    rotated, raw = parse("t2-e2m1"), parse("t2-e2m1:raw")
    assert relative_error(weight, rotated) < 0.8 * relative_error(weight, raw)


def test_output_rotation_round_trips() -> None:
    fmt = parse("int8:h64-both-s7")
    assert relative_error(gaussian(70, 130), fmt) < 2e-4


def test_finer_scales_cost_bits_and_buy_error() -> None:
    weight = gaussian(64, 1024)
    coarse, fine = parse("t2-e2m1"), parse("t2-e2m1:b128-fp16")
    assert fine.bits_per_weight() > coarse.bits_per_weight()
    assert relative_error(weight, fine) < 0.995 * relative_error(weight, coarse)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(poison: float) -> None:
    weight = gaussian(16, 64)
    weight[3, 41] = poison
    with pytest.raises(WeightError, match=r"layers\.0\.q row 3, column 41: .*not finite; found"):
        encode(weight, parse("t2-e2m1"), where="layers.0.q")


@pytest.mark.parametrize("shape", [(8,), (0, 8), (8, 0), (2, 8, 8)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WeightError, match="not a matrix"):
        encode(np.zeros(shape, np.float32), parse("nvfp4"))
