"""The nearest value of a table: the encoder of codes without memory.

Ties between two neighbouring values go to the one whose state is even (round half to even, where
states count up with values); if both or neither are, to the lower state. Of equal values, +0 and -0
among them, the lowest state is used. NaN and Inf values are never chosen.

Every decision is one comparison with a float32 threshold: the smallest float32 that belongs to the
upper of two neighbours. It comes from their midpoint in float64 and what that sum rounded away, so
every decision is exact.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unspool import native
from unspool.encode.viterbi import check_finite
from unspool.errors import UnspoolError

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
States = NDArray[np.uint32]


def nearest(values: Floats, targets: Floats, *, threads: int | None = None) -> States:
    """For every target (any shape) the state of the nearest of values [states]."""
    values, targets = np.asarray(values, np.float32), np.asarray(targets, np.float32)
    if values.ndim != 1:
        raise _wrong("values", values.shape, "[states]")
    return nearest_units(values[None], targets.reshape(1, -1), threads=threads).reshape(
        targets.shape
    )


def nearest_units(values: Floats, targets: Floats, *, threads: int | None = None) -> States:
    """The same for a table per row or tile: values [units, states], targets [units, count].

    Raises WeightError for a target that is not finite, UnspoolError for a table without a finite
    value or shapes that do not fit.
    """
    values = np.asarray(values, np.float32)
    targets = np.ascontiguousarray(targets, np.float32)
    if values.ndim != 2 or targets.ndim != 2 or len(values) != len(targets):
        raise _wrong("values and targets", (values.shape, targets.shape), "[units, ...] alike")
    return nearest_among(boundaries(values), targets, threads=threads)


def nearest_among(
    bounds: tuple[Floats, States], targets: Floats, *, threads: int | None = None
) -> States:
    """The same for tables whose boundaries are known: targets [units, count], contiguous."""
    check_finite(targets, "nearest targets")
    (thresholds, states), count = bounds, native.threads(threads)
    if native.library() is None:
        native.warn_twin("the nearest-value search")
        return nearest_twin(thresholds, states, targets)
    return _nearest_native(thresholds, states, targets, count)


def boundaries(values: Floats) -> tuple[Floats, States]:
    """(thresholds [units, states - 1], states [units, states]): choose states[number of t <= x]."""
    usable = np.isfinite(values)
    if values.shape[1] < 1 or not usable.any(axis=1).all():
        raise _wrong("values", values.shape, "a finite value in every table")
    keys = np.where(usable, values, np.float32(np.inf))
    order = np.argsort(keys, axis=1, kind="stable")
    keys = np.take_along_axis(keys, order, axis=1)
    states = _first_of_equals(keys, order)
    low, high = keys[:, :-1].astype(np.float64), keys[:, 1:].astype(np.float64)
    finite = np.isfinite(high)
    thresholds = _thresholds(np.where(finite, low, 0), np.where(finite, high, 0), states)
    return np.where(finite, thresholds, np.float32(np.inf)), states


def _thresholds(low: Doubles, high: Doubles, states: States) -> Floats:
    """The smallest float32 beyond the middle, or the middle itself where a tie goes up."""
    total = low + high
    part = total - low
    lost = (low - (total - part)) + (high - part)  # exactly what the sum rounded away (Knuth)
    middle = total / 2
    rounded = middle.astype(np.float32)
    tie = (rounded == middle) & (lost == 0) & _upper_wins(states)
    beyond = (rounded > middle) | (rounded == middle) & (lost < 0)
    above = np.nextafter(rounded, np.float32(np.inf))
    return np.where(beyond | tie, rounded, above)


def _first_of_equals(keys: Floats, order: NDArray[np.int64]) -> States:
    """Sorted states [units, states] with the lowest state of equal values in the place of all."""
    new = np.ones(keys.shape, bool)
    new[:, 1:] = keys[:, 1:] != keys[:, :-1]
    first = np.maximum.accumulate(np.where(new, np.arange(keys.shape[1]), 0), axis=1)
    return np.take_along_axis(order, first, axis=1).astype(np.uint32)


def _upper_wins(states: States) -> NDArray[np.bool_]:
    low, high = states[:, :-1], states[:, 1:]
    odd_low, odd_high = low % 2 == 1, high % 2 == 1
    wins: NDArray[np.bool_] = np.where(odd_low == odd_high, high < low, odd_low)
    return wins


def nearest_twin(thresholds: Floats, states: States, targets: Floats) -> States:
    """The same search in numpy: the definition of what the kernel returns."""
    out = np.empty(targets.shape, np.uint32)
    for unit, row in enumerate(targets):
        out[unit] = states[unit, np.searchsorted(thresholds[unit], row, side="right")]
    return out


def _nearest_native(thresholds: Floats, states: States, targets: Floats, threads: int) -> States:
    thresholds, out = np.ascontiguousarray(thresholds), np.empty(targets.shape, np.uint32)
    status = _function()(
        thresholds.ctypes.data, states.ctypes.data, *states.shape,
        targets.ctypes.data, targets.shape[1], threads, out.ctypes.data,
    )  # fmt: skip
    native.check(status, "nearest")
    return out


@functools.cache
def _function() -> Callable[..., int]:
    library = native.library()
    assert library is not None
    function = library.unspool_nearest
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [pointer, pointer, size, size, pointer, size, size, pointer]
    function.restype = ctypes.c_int
    return function


def _wrong(argument: str, found: object, allowed: str) -> UnspoolError:
    what = "cannot search for the nearest value"
    return UnspoolError(what, where=f"nearest {argument}", found=str(found), allowed=allowed)
