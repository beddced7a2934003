"""What a dry run foretells of time: the rates that were measured, over the sizes there are."""

from __future__ import annotations

import pytest

from unspool.model import estimate
from unspool.spec.catalog import parse

SHAPES = [(64, 256), (4096, 1024), (1024, 4096)]


@pytest.fixture
def law(monkeypatch):
    """Puts a law `a k + b k^3 + c n k + d n k^2` in the place of the stopwatch."""

    def put(a, b, c, d):
        def seconds(fmt, n, k, how, threads):
            return a * k + b * k**3 + c * n * k + d * n * k**2

        monkeypatch.setattr(estimate, "calibrated_time", seconds)
        return sum(seconds(None, n, k, None, 1) for n, k in SHAPES)

    return put


@pytest.mark.parametrize("terms", [(1e-5, 0, 1e-7, 0), (1e-5, 1e-11, 1e-7, 1e-11), (0, 0, 1e-7, 0)])
def test_layers_of_any_size_are_foretold_from_four_small_ones(law, terms):
    wanted = law(*terms)
    found = estimate.calibrated_seconds(parse("t2-e2m1"), SHAPES, 2, 1)
    assert found == pytest.approx(wanted, rel=1e-9)


def test_a_slow_code_is_timed_on_few_rows_alone(law, monkeypatch):
    # 20 us per weight, as the slowest codes: 512 rows of 1024 would take ten seconds.
    wanted = law(0, 0, 2e-5, 0)
    few, timed = estimate.calibrated_time, []
    monkeypatch.setattr(
        estimate, "calibrated_time", lambda *given: timed.append(given[1]) or few(*given)
    )
    assert estimate.calibrated_seconds(parse("t2-e2m1"), SHAPES, 2, 1) == pytest.approx(wanted)
    assert set(timed) == {64}


def test_a_stopwatch_that_wavers_gives_no_time_below_zero(law):
    law(-1e-5, -1e-12, 1e-7, 1e-12)
    assert estimate.calibrated_seconds(parse("t2-e2m1"), SHAPES, 2, 1) >= 0
