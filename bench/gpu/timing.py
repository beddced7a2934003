"""GPU time under graphs: what is compared takes turns, so that a clock that sinks sinks for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu.stage import Deadline

if TYPE_CHECKING:
    from gpu.board import Board

Replay = Callable[[], object]

LEAST_ROUNDS = 5
"""A median of fewer says nothing of the spread."""


def interleaved(
    board: Board, replays: Sequence[Replay], rounds: int, deadline: Deadline
) -> list[list[float]]:
    """Seconds of every replay, once per round in turn, after one of each to warm up.

    A round is queued as a whole, behind a replay that is not timed. Were the GPU idle when a mark
    is queued, it would note the time at once and then wait for the host to launch the graph: some
    5 to 10 us that are not the product's. Ends early, after LEAST_ROUNDS, when the time is up.
    """
    for replay in replays:
        replay()
    board.wait()
    seconds: list[list[float]] = [[] for _ in replays]
    for turn in range(rounds):
        if deadline.over and turn >= LEAST_ROUNDS:
            break
        replays[turn % len(replays)]()  # the cover; not always the same one
        marks = [board.mark()]
        for replay in replays:
            replay()
            marks.append(board.mark())
        board.wait()
        for seen, start, end in zip(seconds, marks, marks[1:], strict=False):
            seen.append(board.between(start, end))
    return seconds


def quartiles(seconds: Sequence[float], calls: int) -> dict[str, Any]:
    """Microseconds of one of the calls in a replay: median, quartiles, extremes."""
    low, quarter, median, three, high = np.percentile(
        np.array(seconds) * 1e6 / calls, (0, 25, 50, 75, 100)
    )
    return {
        "us": round(float(median), 3),
        "spread": [round(float(part), 3) for part in (low, quarter, three, high)],
    }
