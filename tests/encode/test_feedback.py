"""Feedback: the factors add up to the error that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from unspool.encode import feedback
from unspool.encode.feedback import factor, row_metric, solved, spread
from unspool.errors import WeightError


def moments(k: int = 16, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((3 * k, k)) @ np.diag(np.linspace(1, 3, k))
    return x.T @ x + np.eye(k)


def test_what_columns_miss_after_feedback_adds_up_to_the_true_error() -> None:
    H, rng = moments(), np.random.default_rng(1)
    weight, values = rng.standard_normal((2, 5, 16))
    found = factor(H.copy())
    targets, missed = weight.copy(), np.zeros_like(weight)
    for j in range(16):
        missed[:, j] = targets[:, j] - values[:, j]
        targets += np.outer(missed[:, j], found.pass_on[j])
    error = weight - values
    np.testing.assert_allclose(
        (found.cost * missed**2).sum(axis=1), np.einsum("nk,kj,nj->n", error, H, error), rtol=1e-10
    )


def test_spread_gives_what_columns_of_a_tile_miss_at_once() -> None:
    H, rng = moments(), np.random.default_rng(1)
    targets, values = rng.standard_normal((2, 8))
    found = factor(H.copy())
    expected, open_ = np.zeros(8), targets.copy()
    for j in range(8):
        expected[j] = open_[j] - values[j]
        open_ += expected[j] * found.pass_on[4 + j, 4:12]
    np.testing.assert_allclose((targets - values) @ spread(found, 4, 8), expected, rtol=1e-10)


def test_a_row_metric_of_lanes_is_the_metric_of_single_columns() -> None:
    found = factor(moments())
    u = np.random.default_rng(2).standard_normal(16)
    totals = []
    for lanes in (1, 4):
        row, open_, total = row_metric(found, 0, 16, lanes), u.copy(), 0.0
        for place in range(16 // lanes):
            step = open_[place * lanes : (place + 1) * lanes].copy()
            total += step @ row.metric[place] @ step
            open_ += step @ row.feedback[place]
        totals.append(total)
    assert totals[1] == pytest.approx(totals[0], rel=1e-5)


@pytest.mark.parametrize("k", [1, 5, 8, 19, 40])
def test_factors_by_blocks_are_those_of_the_whole(monkeypatch, k: int) -> None:
    monkeypatch.setattr(feedback, "BLOCK", 8)
    H = moments(k)
    found = factor(H.copy(), threads=2)
    M = np.linalg.inv(np.eye(k) - found.pass_on)
    assert np.array_equal(found.pass_on, np.triu(found.pass_on, 1))
    np.testing.assert_allclose(M * found.cost @ M.T, H, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wide", [3, 8, 64])
def test_rows_over_the_moments_are_those_of_a_solver(monkeypatch, wide: int) -> None:
    monkeypatch.setattr(feedback, "WIDE", wide)
    H, rows = moments(19), np.random.default_rng(3).standard_normal((4, 19))
    found = solved(factor(H.copy()), rows)
    np.testing.assert_allclose(found, np.linalg.solve(H, rows.T).T, rtol=1e-8, atol=1e-10)


def test_moments_without_rank_are_refused() -> None:
    with pytest.raises(WeightError, match="not positive definite"):
        factor(np.zeros((4, 4)))
