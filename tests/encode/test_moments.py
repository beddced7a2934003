"""What sums over few tokens are worth."""

from __future__ import annotations

import numpy as np
import pytest

from unspool.encode.moments import DAMPING, LARGEST_SHARE, needed, shrinkage

K = 64


def summed(spectrum: np.ndarray, tokens: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((tokens, len(spectrum))) * np.sqrt(spectrum)
    return (x.T @ x).astype(np.float32)


@pytest.mark.parametrize("tokens", [16, 64, 256])
@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_moments_of_few_tokens_come_nearer_to_a_flat_truth_and_no_farther_from_a_steep_one(
    tokens: int, power: float
) -> None:
    truth = np.diag((1.0 + np.arange(K)) ** -power)
    off = []
    for seed in range(8):
        sums = summed(np.diag(truth), tokens, seed) / tokens
        added = shrinkage(sums, tokens) * np.trace(sums) / K
        share = added / (np.trace(sums) / K + added)
        found = (1 - share) * (sums + added * np.eye(K))
        off.append([np.linalg.norm(found - truth), np.linalg.norm(sums - truth)])
    near, raw = np.mean(off, axis=0)
    assert near < raw * {0: 0.5, 1: 1, 2: 1.02}[power]


def test_of_many_tokens_it_is_below_the_usual_damping() -> None:
    spectrum = (1.0 + np.arange(K)) ** -1.0
    assert shrinkage(summed(spectrum, 64 * K), 64 * K) < DAMPING
    assert shrinkage(summed(spectrum, 2 * K), 2 * K) > 10 * DAMPING


def test_flat_moments_of_much_text_are_hardly_damped() -> None:
    assert needed(summed(np.ones(K), 1000 * K), 1000 * K) <= 1e-3
    few = summed((1.0 + np.arange(K)) ** -1.0, 2 * K)
    assert needed(few, 2 * K) == shrinkage(few, 2 * K)


def test_of_a_token_or_of_nothing_it_is_the_largest() -> None:
    largest = LARGEST_SHARE / (1 - LARGEST_SHARE)
    assert shrinkage(np.zeros((K, K), np.float32), 3) == largest
    assert shrinkage(summed(np.ones(K), 1), 1) == pytest.approx(largest)
