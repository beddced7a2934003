"""Books: the entries of a table that a program ends in, before and while they are trained.

Entries are finite operands that CPUs multiply in int8 where the operand has such: E4M3 up to 120
times its least value, E3M2 up to 112 times.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from unspool.explore.train import Grid
from unspool.spec.operand import E3M2, E4M3, FP16, Operand

LARGEST: Mapping[Operand, float] = {E4M3: 120 * 2.0**-9, E3M2: 112 * 2.0**-4, FP16: 4.0}
"""The largest value of an entry, where that is not the operand's: of FP16 what a standard deviation
of about one reaches."""


@functools.lru_cache(maxsize=16)
def grid(operand: Operand, signed: bool) -> Grid:
    """The operands that entries may be; with the sign bit clear where they are not signed."""
    values = operand.values()
    allowed = np.abs(np.nan_to_num(values, nan=np.inf)) <= LARGEST.get(operand, operand.largest)
    if not signed:
        allowed &= np.arange(len(values)) < len(values) // 2
    return Grid(operand, allowed)


@functools.lru_cache(maxsize=64)
def quantiles(operand: Operand, count: int, each: int, start: int, signed: bool) -> tuple[int, ...]:
    """So many entries of `each` operands: in every place the quantiles of a Gaussian once, in an
    order of its own; of its magnitudes where they are not signed."""
    random, normal = np.random.default_rng(start), NormalDist()
    middles = (np.arange(count) + 0.5) / count
    levels = np.array([normal.inv_cdf(m if signed else (1 + m) / 2) for m in middles])
    most = LARGEST.get(operand, operand.largest)
    found = grid(operand, signed).nearest(levels * (most / levels[-1]))
    columns = [random.permutation(found) for _ in range(each)]
    return tuple(int(bits) for bits in np.stack(columns, axis=1).ravel())
