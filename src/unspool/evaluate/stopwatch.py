"""Runs that take turns under a stopwatch: medians, quartiles and extremes of wall and CPU time.

A machine shared with others slows down for seconds at a time. Taking turns, every run meets the
same slow seconds, so that their ratios hold where their times do not.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

PAUSE = 0.01
"""Seconds between turns: idle OpenMP threads spin for milliseconds after their last loop, on the
core that the next turn's threads want."""

TURN = 4e-3
"""Seconds of timed calls that a turn aims at."""

MOST_CALLS = 8
TRIALS = 2

LONG, FEWEST = 3.0, 5
"""Seconds of timed calls after which a run takes no more turns, once it has that many."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Something to time. With one thread the CPU time is the caller's, else the process's."""

    call: Callable[[], object]
    threads: int = 1
    #: how often a call does what is timed
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class Times:
    """Microseconds of all timed calls of one run, over its repeats."""

    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        """The median wall time, microseconds."""
        return statistics.median(self.wall)

    def to_json(self, digits: int = 1) -> dict[str, float]:
        """Median, extremes and quartiles of the wall time, median of the CPU time; microseconds."""
        quarters = statistics.quantiles(self.wall, n=4) if len(self.wall) > 1 else 3 * self.wall
        found = {
            "us": self.median,
            "us_low": min(self.wall),
            "us_high": max(self.wall),
            "us_quarter": quarters[0],
            "us_three_quarters": quarters[2],
            "cpu_us": statistics.median(self.cpu),
        }
        return {name: round(value, digits) for name, value in found.items()}


def take_turns(
    runs: Sequence[Run],
    rounds: int,
    *,
    pause: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Times]:
    """Times of every run: after a warm-up `rounds` turns each, one after the other.

    A turn is one call that is not timed (it wakes threads and fills the caches of instructions) and
    as many timed ones as fit `TURN`, one at least and `MOST_CALLS` at most; of runs longer than a
    turn all calls are timed. A run that has taken `LONG` in all leaves the later rounds to others.
    """
    calls = [_calls(run) for run in runs]
    times = [Times(wall=[], cpu=[]) for _ in runs]
    with _without_garbage():
        for turn in range(rounds):
            for run, count, found in zip(runs, calls, times, strict=True):
                if len(found.wall) < FEWEST or sum(found.wall) * run.repeats < LONG * 1e6:
                    time.sleep(PAUSE if pause is None else pause)
                    _turn(run, count, found)
            progress(turn + 1, rounds)
    return times


def _turn(run: Run, count: int, found: Times) -> None:
    if count > 1:
        run.call()
    for _ in range(count):
        _time(run, found)


def _calls(run: Run) -> int:
    """Timed calls in a turn, by the quickest of a few calls after the first."""
    run.call()
    trial = Times(wall=[], cpu=[])
    for _ in range(TRIALS):
        _time(run, trial)
    return max(1, min(MOST_CALLS, int(TURN * 1e6 / (min(trial.wall) * run.repeats))))


def _time(run: Run, found: Times) -> None:
    clock = time.thread_time if run.threads == 1 else time.process_time
    cpu, start = clock(), time.perf_counter()
    run.call()
    stop, after = time.perf_counter(), clock()
    found.wall.append((stop - start) * 1e6 / run.repeats)
    found.cpu.append((after - cpu) * 1e6 / run.repeats)


@contextmanager
def _without_garbage() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
