"""Runs take turns, and what is timed is what was called."""

from __future__ import annotations

import time

import pytest

from unspool.evaluate import stopwatch
from unspool.evaluate.stopwatch import Run, Times, take_turns


@pytest.fixture
def calls() -> list[str]:
    return []


def recording(calls: list[str], name: str, seconds: float = 0.0) -> Run:
    def call() -> None:
        calls.append(name)
        time.sleep(seconds)

    return Run(call=call)


def test_long_runs_take_turns_and_all_their_calls_are_timed(calls):
    runs = [recording(calls, name, seconds=2 * stopwatch.TURN) for name in "ab"]
    times = take_turns(runs, 3, pause=0.0)
    assert "".join(calls[-6:]) == "ababab"
    assert [len(found.wall) for found in times] == [3, 3]


def test_a_short_run_is_called_often_in_a_turn(calls):
    (times,) = take_turns([recording(calls, "a")], 2, pause=0.0)
    assert len(times.wall) == len(times.cpu) == 2 * stopwatch.MOST_CALLS


def test_a_run_that_took_long_enough_stops(calls, monkeypatch):
    monkeypatch.setattr(stopwatch, "LONG", 1e-3)
    runs = [recording(calls, "a", seconds=2 * stopwatch.TURN), recording(calls, "b")]
    long, short = take_turns(runs, 9, pause=0.0)
    assert len(long.wall) == stopwatch.FEWEST
    assert len(short.wall) > stopwatch.FEWEST


def test_sleep_is_wall_time_and_no_cpu_time(calls):
    (times,) = take_turns([recording(calls, "a", seconds=5e-3)], 2, pause=0.0)
    assert times.median >= 5e3
    assert max(times.cpu) < min(times.wall)


def test_repeats_share_the_time_of_a_call(calls):
    run = Run(call=lambda: time.sleep(8e-3), repeats=4)
    (times,) = take_turns([run], 2, pause=0.0)
    assert 2e3 <= min(times.wall) < 8e3


def test_progress_counts_rounds(calls):
    seen: list[tuple[int, int]] = []
    take_turns([recording(calls, "a")], 2, pause=0.0, progress=lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]


def test_spread_is_extremes_and_quartiles():
    found = Times(wall=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], cpu=[2.0]).to_json()
    assert found == {
        "us": 4.0, "us_low": 1.0, "us_high": 7.0, "us_quarter": 2.0, "us_three_quarters": 6.0,
        "cpu_us": 2.0,
    }  # fmt: skip


def test_a_single_time_is_all_its_quartiles():
    found = Times(wall=[3.0], cpu=[2.0]).to_json()
    assert found["us_quarter"] == found["us_three_quarters"] == 3.0
