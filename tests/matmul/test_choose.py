"""The choice of a kernel: pure, and it says why."""

from __future__ import annotations

import pytest

from unspool.errors import UnspoolError
from unspool.matmul.choose import ACTIVATIONS, PATHS, choose
from unspool.spec.catalog import FORMATS, parse

INTEGER = (
    "t1-e2m1", "t1.5-e2m1", "t2-e2m1", "t2.5-e2m3", "t3-e2m3", "t3.5-e2m3", "t4-e2m3",
    "m2-e2m1", "m2-e4m3", "m3-e2m1", "m3-e4m3", "mxfp4", "nvfp4", "mxfp6-e2m3", "int4", "int8",
    "v1.5-e2m1", "s2-e4m3", "s3-e4m3", "m2-e4m3-quick", "m3-e2m3",
    "x1-e2m1", "x1.5-e2m1", "x1.5-e2m1-fine", "x2-e2m1", "x2-e4m3", "x2-e4m3-fine",
    "x2-e4m3-finest", "x2.5-e4m3", "x2.5-e4m3-fine", "x3-e4m3", "x3-e4m3-fine", "x3.5-e4m3",
    "x4-e4m3",
)  # fmt: skip
REASONS = {
    "fp8-e4m3": "not int8 times a power of two",
    "fp8-e5m2": "not int8 times a power of two",
    "mxfp8": "not int8 times a power of two",
    "mxfp6-e3m2": "not int8 times a power of two",
    "s4-e4m3": "not int8 times a power of two",
    "nf4": "not int8 times a power of two",
    "lut3-row": "the table is a parameter",
    "lut-b": "the table is a parameter",
    "t2-e2m1:b6-fp16": "not in fours",
}


@pytest.mark.parametrize("target", PATHS)
@pytest.mark.parametrize("name", INTEGER)
def test_weights_exact_in_int8_meet_int8_activations(name, target):
    for activations in ("auto", "int8"):
        choice = choose(parse(name), target, activations)
        assert (choice.path, choice.activations) == (f"integer-{target}", "int8")


@pytest.mark.parametrize("target", PATHS)
@pytest.mark.parametrize("name", REASONS)
def test_other_weights_meet_float32_activations_and_the_reason_is_given(name, target):
    choice = choose(parse(name), target)
    assert choice.path == "float-avx2" if target in ("avx2", "avx512") else "float-portable"
    assert choice.activations == "float32"
    assert REASONS[name] in choice.why


def test_the_whole_catalog_is_on_either_side():
    assert set(INTEGER) | set(REASONS) >= set(FORMATS)


@pytest.mark.parametrize("name", INTEGER)
def test_float32_activations_can_be_asked_for(name):
    choice = choose(parse(name), "avx2", "float32")
    assert (choice.path, choice.activations) == ("float-avx2", "float32")
    assert "asked for" in choice.why


@pytest.mark.parametrize("target", ["numpy", *PATHS])
@pytest.mark.parametrize("name", REASONS)
def test_int8_activations_are_refused_where_the_weights_are_not_exact(name, target):
    with pytest.raises(UnspoolError, match=f"no product with int8.*{REASONS[name]}.*float32"):
        choose(parse(name), target, "int8")


def test_activations_must_exist():
    with pytest.raises(UnspoolError, match="no such activations; found int4; allowed: auto, int8"):
        choose(parse("t2-e2m1"), "portable", "int4")


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_numpy_multiplies_what_the_kernels_would(activations):
    choice = choose(parse("t2-e2m1"), "numpy", activations)
    assert choice.path == "numpy"
    assert choice.activations == choose(parse("t2-e2m1"), "portable", activations).activations
