"""Levels fitted to the weights: the parameter tables of LUT formats, by Lloyd's algorithm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unspool.encode.nearest import nearest
from unspool.pack.matrix import bits_dtype
from unspool.spec.operand import Operand

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32

ROUNDS = 20
"""Lloyd rounds; on 512 Gaussian weights the error is within 0.5 % of its limit after 12."""


def fit(
    weights: Float32[np.ndarray, "units count"],
    length: int,
    operand: Operand,
    zero: Bool[np.ndarray, "units"],
    importance: np.ndarray | None = None,
) -> np.ndarray:
    """Operand bit patterns `[units, length]`, ascending, fitted to each unit's weights.

    Lloyd 1982, started from quantiles; the levels are rounded to the operand at the end. Units
    marked `zero` get a level of exactly zero. `importance` `[count]` weights the squared errors.
    """
    order = np.argsort(weights, axis=1, kind="stable")
    ordered = np.take_along_axis(weights, order, axis=1).astype(np.float64)
    share = np.ones(weights.shape[1]) if importance is None else importance
    shares = np.pad(np.cumsum(share[order], axis=1), ((0, 0), (1, 0)))
    totals = np.pad(np.cumsum(share[order] * ordered, axis=1), ((0, 0), (1, 0)))
    middles = (np.arange(length) + 0.5) / length * ordered.shape[1]
    levels = ordered[:, middles.astype(np.intp)]
    for _ in range(ROUNDS):
        levels = _centroids(ordered, totals, shares, levels)
    levels = _with_zero(levels, zero)
    values = operand.values().astype(np.float32)
    finite = np.where(np.isfinite(values), values, np.nan)
    return nearest(finite, levels.astype(np.float32)).astype(bits_dtype(operand))


def _with_zero(levels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The levels, the one nearest to zero moved there in the units that want it."""
    rows = np.flatnonzero(wanted)
    moved = levels.copy()
    moved[rows, np.abs(levels).argmin(axis=1)[rows]] = 0
    return moved


def _centroids(
    ordered: np.ndarray,
    totals: np.ndarray,
    shares: np.ndarray,
    levels: Float32[np.ndarray, "units length"],
) -> np.ndarray:
    """The mean of the weights nearest to each level; a level without any keeps its place."""
    units, count = ordered.shape
    borders = (levels[:, 1:] + levels[:, :-1]) / 2
    inner = [(ordered < border[:, None]).sum(axis=1) for border in borders.T]
    edges = np.stack([np.zeros(units, int), *inner, np.full(units, count)], axis=1)
    sums = np.diff(np.take_along_axis(totals, edges, axis=1), axis=1)
    sizes = np.diff(np.take_along_axis(shares, edges, axis=1), axis=1)
    return np.where(sizes > 0, sums / np.where(sizes > 0, sizes, 1), levels)
