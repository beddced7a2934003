"""`bench/` on the path, as `make gpu` puts it, and the fake GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True)
def _bench_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def board_of():
    """Makes a fake GPU."""

    def make(*arguments, **named):
        from fake_board import FakeBoard

        return FakeBoard(*arguments, **named)

    return make


@pytest.fixture
def given_of():
    """What a stage gets, with a second per look at the clock, or so much time."""

    def make(board, seconds: float = 1e9, formats=()):
        from gpu.stage import Deadline, Findings, Given

        return Given(
            board=board, deadline=Deadline(seconds=seconds), findings=Findings(),
            say=lambda _: None, formats=formats,
        )  # fmt: skip

    return make


@pytest.fixture
def measured(board_of, given_of, monkeypatch):
    def measure(*entrants, seconds: float = 1e9, board=None, given=None):
        from gpu import benchmark

        monkeypatch.setattr(benchmark, "SIZES", ((32, 128), (128, 256)))
        monkeypatch.setattr(benchmark, "FEW", (1, 4))
        monkeypatch.setattr(benchmark, "MANY", (64,))
        monkeypatch.setattr(benchmark, "ALONE_ROWS", 64)
        monkeypatch.setattr(benchmark, "COPY_BYTES", 1 << 16)
        given = given or given_of(board or board_of(), seconds)
        benchmark.measure(given, entrants)
        return given.findings

    return measure
