"""The nearest value: equal to trying them all, ties included, and the kernel equals its twin."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from unspool import native
from unspool.encode.nearest import boundaries, nearest, nearest_twin, nearest_units
from unspool.errors import UnspoolError, WeightError

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def brute_force(values, x) -> int:
    """In exact arithmetic: the nearest; of two values tied, the even state's, else the lower's."""
    usable = [state for state, value in enumerate(values) if np.isfinite(value)]
    distance = {state: abs(Fraction(float(values[state])) - Fraction(float(x))) for state in usable}
    least = min(distance.values())
    first = {}
    for state in usable:
        if distance[state] == least:
            first.setdefault(float(values[state]) + 0.0, state)
    return min(first.values(), key=lambda state: (state % 2, state))


def tables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    holes = gaussian(100)
    holes[[3, 50, 99]] = np.nan, np.inf, -np.inf
    return {
        "e2m1": E2M1,
        "integers with repeats": rng.integers(-4, 5, 40).astype(np.float32),
        "holes": holes,
        "neighbours in float32": np.float32(1)
        + np.arange(8, dtype=np.float32) * np.float32(2**-23),
        "far apart": np.array([-3e38, 1e-40, 0, 3e38, 2], np.float32),
        "one": np.array([2.5], np.float32),
        "two": np.array([1, -1], np.float32),
    }


@pytest.mark.parametrize("name", tables())
def test_nearest_equals_trying_every_value(name):
    values = tables()[name]
    finite = np.sort(values[np.isfinite(values)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    targets = np.concatenate([finite, middles, *beside, gaussian(50), [0, -0.0, 1e38, -1e38]])
    targets = targets.astype(np.float32)
    expected = [brute_force(values, x) for x in targets]
    np.testing.assert_array_equal(nearest(values, targets), expected)


def test_ties_go_to_the_even_state_and_zero_is_the_positive_one():
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -5, 0, -0.0], np.float32)
    np.testing.assert_array_equal(nearest(E2M1, ties), [0, 2, 2, 4, 4, 6, 6, 0, 10, 14, 0, 0])


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 7, 11), (40000,)])
def test_states_have_the_shape_of_the_targets(shape):
    assert nearest(E2M1, np.zeros(shape, np.float32)).shape == shape


@pytest.mark.parametrize(("units", "states", "count"), [(1, 16, 40001), (37, 8, 33), (5, 300, 100)])
def test_kernel_and_twin_agree_on_a_table_per_unit(units, states, count):
    if native.library() is None:
        pytest.skip(native.why_not())
    values, targets = gaussian(units, states, seed=1), gaussian(units, count)
    twin = nearest_twin(*boundaries(values), targets)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(nearest_units(values, targets, threads=threads), twin)
    rows = [nearest(v, x) for v, x in zip(values, targets, strict=True)]
    np.testing.assert_array_equal(twin, rows)


def test_bad_arguments_are_explained():
    with pytest.raises(WeightError, match=r"nearest targets \(0, 1\).*found inf"):
        nearest(E2M1, np.array([1, np.inf], np.float32))
    with pytest.raises(UnspoolError, match="a finite value in every table"):
        nearest(np.full(4, np.nan, np.float32), gaussian(3))
    with pytest.raises(UnspoolError, match=r"\[states\]"):
        nearest(gaussian(4, 4), gaussian(3))
    with pytest.raises(UnspoolError, match="alike"):
        nearest_units(gaussian(4, 4), gaussian(3, 4))
