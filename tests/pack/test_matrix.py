"""Stored arrays that contradict their format are refused with what was found and where."""

import numpy as np
import pytest

from unspool.encode.encode import encode
from unspool.errors import CheckpointError
from unspool.pack.matrix import array_specs, check_arrays, coded_matrix
from unspool.spec.catalog import FORMATS, parse

SHAPE = (16, 128)


def stored(name: str) -> dict[str, np.ndarray]:
    weight = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    return {key: array.copy() for key, array in encode(weight, parse(name)).arrays.items()}


@pytest.mark.parametrize("name", ["fp8-e4m3", "nvfp4", "mxfp4", "lut-b", "t2-e2m1", "nf4"])
def test_what_encode_stores_passes(name: str) -> None:
    matrix = coded_matrix(parse(name), SHAPE, stored(name))
    assert matrix.nbytes == parse(name).stored_bits(*SHAPE) / 8


@pytest.mark.parametrize("name", FORMATS)
def test_specs_count_the_same_bits_as_the_format(name: str) -> None:
    specs = array_specs(parse(name), 40, 200)
    count = sum(int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in specs.values())
    assert 8 * count == parse(name).stored_bits(40, 200)


@pytest.mark.parametrize(
    ("name", "array", "index", "pattern", "message"),
    [
        ("nvfp4", "scale", (3, 2), 0x7F, r"'scale' is not finite \(E4M3 bit pattern 0x7f\)"),
        ("mxfp4", "scale", (0, 1), 0xFF, r"at \[0, 1\].*E8M0 bit pattern 0xff"),
        ("t2-e2m1", "scale", (5, 0), 0x7C00, "FP16 bit pattern 0x7c00"),
        ("lut-b", "table", (1, 1, 7), 0xFF, "'table' is not finite"),
        ("fp8-e4m3", "codes", (1, 2, 5), 0x7F, "E4M3 that is not finite"),
        ("fp8-e5m2", "codes", (0, 0, 0), 0x7C, "E5M2 that is not finite"),
    ],
)
def test_a_pattern_that_is_no_number_is_refused(
    name: str, array: str, index: tuple[int, ...], pattern: int, message: str
) -> None:
    arrays = stored(name)
    arrays[array][index] = pattern
    with pytest.raises(CheckpointError, match=message):
        check_arrays(parse(name), SHAPE, arrays, "layer")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_tensor_scale_must_be_a_finite_positive_number(value: float) -> None:
    arrays = stored("nvfp4") | {"tensor_scale": np.array(value, np.float32)}
    with pytest.raises(CheckpointError, match="tensor scale is not a finite positive number"):
        check_arrays(parse("nvfp4"), SHAPE, arrays)


def test_missing_extra_and_misshapen_arrays_are_refused() -> None:
    arrays = stored("nvfp4")
    with pytest.raises(CheckpointError, match=r"do not match the format.*allowed: codes, scale"):
        check_arrays(parse("nvfp4"), SHAPE, {"codes": arrays["codes"]})
    with pytest.raises(CheckpointError, match=r"'codes' does not match.*uint32 \[1, 16, 8\]"):
        check_arrays(parse("nvfp4"), SHAPE, arrays | {"codes": arrays["codes"][:1]})
    with pytest.raises(CheckpointError, match="found float32"):
        check_arrays(parse("nvfp4"), SHAPE, arrays | {"scale": np.float32(arrays["scale"])})
