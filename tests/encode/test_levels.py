"""Fitted levels: no worse than quantiles, exact where the weights are few."""

import numpy as np

from unspool.encode import levels
from unspool.spec.operand import E4M3, FP16

VALUES = E4M3.values().astype(np.float32)


def test_weights_of_eight_values_are_matched_exactly() -> None:
    eight = np.array([-448, -96, -13, -2, 0.5, 3, 40, 256], np.float32)
    weights = np.repeat(eight[None], 64, axis=1)
    assert VALUES[levels.fit(weights, 8, E4M3, np.zeros(1, bool))[0]].tolist() == eight.tolist()


def test_a_unit_that_wants_zero_gets_it() -> None:
    weights = np.random.default_rng(0).standard_normal((2, 512), dtype=np.float32)
    fitted = VALUES[levels.fit(weights, 8, E4M3, np.array([True, False]))]
    assert (fitted == 0).any(axis=1).tolist() == [True, False]


def test_gaussian_levels_reach_the_lloyd_max_error() -> None:
    weights = np.random.default_rng(0).standard_normal((4, 20000), dtype=np.float32)
    fitted = FP16.values().astype(np.float32)[levels.fit(weights, 8, FP16, np.zeros(4, bool))]
    nearest = np.abs(weights[..., None] - fitted[:, None]).min(axis=-1)
    assert abs((nearest**2).mean() - 0.0345) < 0.0008  # Lloyd-Max, 8 levels (Max 1960)
