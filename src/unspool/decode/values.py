"""Values of a code as the bits of another operand: the same numbers, up to a power of two."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.interpret import tabulate
from unspool.spec.code import TABULATED_BITS, Code
from unspool.spec.operand import Operand

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64, UInt32

FURTHEST = 24
"""Powers of two that are tried in both directions: E4M3 spans 18, FP16 40 with subnormals."""


def tabulated(code: Code) -> bool:
    """Whether its states alone decide a code's values, and are few enough."""
    return not code.program.parameters and code.state_bits <= TABULATED_BITS


def state_operands(code: Code) -> Float64[np.ndarray, "states lanes"] | None:
    """The value of every state; None where they are not tabulated."""
    return code.operand.values()[tabulate(code)] if tabulated(code) else None


@functools.lru_cache(maxsize=256)
def exponent_for(code: Code, operand: Operand) -> int | None:
    """The power of two, nearest to none, by which all values become the operand's; or None.

    Patterns that are not finite are left out: a checkpoint with such codes is refused.
    """
    if not tabulated(code):
        return 0 if operand is code.operand else None
    distinct = code.operand.values()[_patterns(code)]
    known = _finite(operand)
    for power in sorted(range(-FURTHEST, FURTHEST + 1), key=abs):
        if np.isin(np.ldexp(distinct, power), known).all():
            return power
    return None


@functools.lru_cache(maxsize=128)
def pattern_counts(code: Code) -> Int64[np.ndarray, "patterns"]:
    """How often each operand pattern stands in the table of a tabulated code."""
    return np.bincount(tabulate(code).ravel(), minlength=1 << code.operand.bits)


def _patterns(code: Code) -> Int64[np.ndarray, "patterns"]:
    """The finite operand patterns that any state decodes to."""
    return np.flatnonzero((pattern_counts(code) > 0) & np.isfinite(code.operand.values()))


def bits_of(
    values: Float64[np.ndarray, "..."], operand: Operand, exponent: int
) -> UInt32[np.ndarray, "..."]:
    """Bit patterns of values * 2**exponent, which the operand must have; zero is +0."""
    every = operand.values()
    patterns = np.flatnonzero(np.isfinite(every))
    patterns = patterns[np.argsort(every[patterns], kind="stable")]  # +0 before -0
    at = np.searchsorted(every[patterns], np.ldexp(np.nan_to_num(values), exponent), side="left")
    return patterns[np.minimum(at, len(patterns) - 1)].astype(np.uint32)


def _finite(operand: Operand) -> Float64[np.ndarray, "patterns"]:
    values = operand.values()
    return values[np.isfinite(values)]
