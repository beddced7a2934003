"""The choice of a kernel: pure, and it says why."""

from __future__ import annotations

import pytest

from unspool.decode.target import TWIN
from unspool.matmul.choose import LOOK_UP_ROWS, choose
from unspool.spec.catalog import parse

LOOKED_UP = ("t1-e2m1", "t1.5-e2m1", "t2-e2m1", "t2.5-e2m3", "t3-e2m3", "t4-e2m3", "mxfp4", "int4")


@pytest.mark.parametrize("target", ["avx2", "avx512", TWIN])
@pytest.mark.parametrize("name", LOOKED_UP)
def test_small_tables_are_looked_up_for_one_row(name, target):
    assert choose(parse(name), LOOK_UP_ROWS, target).path == f"look-up-{target}"
    assert choose(parse(name), LOOK_UP_ROWS + 1, target).path.startswith("panel-")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t3.5-e2m3", "512 table entries"),
        ("m2-e2m1", "a tile of (8, 16)"),
        ("lut-b", "the table is a parameter"),
        ("nf4", "int8"),
        ("mxfp6-e3m2", "64-bit ring"),
        ("t2-e2m1:b8-fp16", "16 columns"),
    ],
)
def test_others_take_panels_and_the_reason_is_given(name, reason):
    choice = choose(parse(name), 1, "avx512")
    assert choice.path == "panel-avx2"
    assert reason in choice.why


def test_simple_targets_have_one_kernel():
    assert choose(parse("t2-e2m1"), 1, "portable").path == "panel-portable"
    assert choose(parse("t2-e2m1"), 1, "numpy").path == "numpy"
