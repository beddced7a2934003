"""Random codes whose nodes all follow each other."""

from __future__ import annotations

import numpy as np

from unspool.encode.dense import Dense, dense
from unspool.encode.viterbi import Trellis, trellis

PAIRS, SINGLES = 9, 40
"""Levels of a lane: few enough that pairs of lanes are looked up as one, and too many for that."""


def some_code(planes, lanes: int, levels: int) -> tuple[np.ndarray, Trellis, Dense]:
    rng = np.random.default_rng(7)
    alphabet = rng.standard_normal(levels).astype(np.float32)
    values = rng.choice(alphabet, (1 << sum(window for window, _ in planes), lanes))
    table = trellis(values, planes)
    found = dense(values, table.source, table.state)
    assert found is not None
    return values, table, found
