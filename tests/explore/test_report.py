"""What a search predicts of its rows: on their target's GPU, by the count of the kernel's slot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unspool.decode.machine import machine
from unspool.explore.report import predicted
from unspool.perf.bound import COUNTED, ESTIMATED, RECORDED
from unspool.perf.count import Count
from unspool.spec.catalog import FORMATS, parse

HALF = Count(
    alu=0.5, fma=0, lds=0, cvt=0, other=0, total=0.5, registers=40, spills=0, traps=()
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "target", "gpu", "activations", "source"),
    [
        ("m2-e2m1", "sm89", "rtx4090", "fp8x2", COUNTED),
        ("m2-e2m1", "sm90", "h200", "fp8x2", COUNTED),
        ("m2-e2m1", "sm100", "b200", "fp4", COUNTED),
        ("m2-e2m1", "sm120", "rtx5090", "fp4", COUNTED),
        # packed E2M1 was counted, which no kernel multiplies so: E2M1 in bytes is recorded
        ("m2-e2m1:b128-fp16", "sm100", "b200", "fp8x2", RECORDED),
    ],
)
def test_a_row_is_predicted_on_the_gpu_of_its_target(name, target, gpu, activations, source):
    found = predicted(parse(name), machine(target), HALF)
    assert found is not None
    assert (found.device, found.activations, found.m) == (gpu, activations, 1)
    assert found.instructions.source == source
    assert 0 < found.fraction <= 1


def test_what_is_not_in_the_catalog_is_estimated_without_a_compiler():
    fmt = FORMATS["m2-e4m3"]
    found = predicted(replace(fmt, name="x2-e4m3-123456"), machine("sm90"), None)
    assert found is not None
    assert found.instructions.source == ESTIMATED


def test_nothing_is_predicted_without_a_kernel_or_a_gpu():
    fmt = FORMATS["m2-e4m3"]
    assert predicted(fmt, machine("sm80"), None) is None
    wide = replace(fmt, code=replace(fmt.code, tile=(16, 16)))
    assert predicted(wide, machine("sm90"), None) is None
