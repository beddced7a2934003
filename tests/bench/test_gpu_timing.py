"""What is timed is the GPU's work, not the host's way to it: on a model of both clocks."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
HOST = 8e-6
"""Seconds that the host takes to launch a graph."""


@pytest.fixture(autouse=True)
def _bench_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


class Board:
    """A GPU that works through a queue while the host fills it; marks take the GPU's time."""

    def __init__(self) -> None:
        self.host = self.gpu = 0.0

    def launch(self, seconds: float) -> None:
        self.host += HOST
        self.gpu = max(self.gpu, self.host) + seconds

    def mark(self) -> float:
        self.gpu = max(self.gpu, self.host)
        return self.gpu

    def between(self, start: float, end: float) -> float:
        return end - start

    def wait(self) -> None:
        self.host = self.gpu = max(self.gpu, self.host)


def timed(*works: float, rounds: int = 6) -> list[list[float]]:
    from gpu.stage import Deadline
    from gpu.timing import interleaved

    board = Board()
    replays = [lambda seconds=seconds: board.launch(seconds) for seconds in works]
    return interleaved(board, replays, rounds, Deadline(seconds=1e9))


def test_the_launch_of_a_graph_is_not_in_its_time():
    for work, seen in zip((50e-6, 200e-6, 20e-6), timed(50e-6, 200e-6, 20e-6), strict=True):
        assert seen == pytest.approx([work] * 6)


def test_the_model_would_show_it():
    board = Board()
    start = board.mark()
    board.launch(50e-6)
    assert board.between(start, board.mark()) == pytest.approx(58e-6)


def test_every_round_has_everybody_once():
    assert [len(seen) for seen in timed(1e-4, 2e-4, rounds=9)] == [9, 9]


def test_it_ends_early_but_not_with_too_few():
    from gpu.stage import Deadline
    from gpu.timing import LEAST_ROUNDS, interleaved

    board = Board()
    (seen,) = interleaved(board, [lambda: board.launch(1e-4)], 99, Deadline(seconds=-1.0))
    assert len(seen) == LEAST_ROUNDS
