"""The recorded distortions are measured, complete, and reach what was promised."""

import pytest

from unspool.evaluate.gaussian import distortion, measure, recorded_hashes
from unspool.spec.catalog import FORMATS, parse

# Distortion to reach, rings and per-row scale included.
PROMISED = {
    "t1-e2m1": 0.302,
    "t1.5-e2m1": 0.165,
    "t2-e2m1": 0.082,
    "m2-e2m1": 0.077,
    "m2-e4m3": 0.077,
    "t2.5-e2m3": 0.0465,
    "t3-e2m3": 0.0208,
    "t3.5-e2m3": 0.0118,
    "t4-e2m3": 0.0062,
}


@pytest.mark.parametrize("name", ["t2-e2m1", "nvfp4"])
def test_a_recorded_distortion_is_what_measuring_gives(name: str) -> None:
    assert measure(parse(name)) == distortion(parse(name))


def test_every_format_of_the_catalog_is_recorded_and_no_other() -> None:
    assert recorded_hashes() == {fmt.content_hash for fmt in FORMATS.values()}


@pytest.mark.parametrize("name", PROMISED)
def test_a_coded_format_reaches_its_figure(name: str) -> None:
    assert distortion(parse(name)).gaussian_mse <= PROMISED[name]


def test_a_format_without_a_record_is_measured_now() -> None:
    varied = parse("t2-e2m1:b128-fp16")
    assert varied.content_hash not in recorded_hashes()
    assert distortion(varied).gaussian_mse < distortion(parse("t2-e2m1")).gaussian_mse
