"""Tables that the kernels read: a tabulated program in the forms that are quick to look up.

entries   operand bits of every state and lane: any code, whatever its program is
levels    value / unit, with unit the power of two that makes the values of most codes int8
wide      levels of 2 or 4 successive steps at once, indexed by the union of their windows:

          ring      b0 b1 b2 b3 b4 b5 b6 b7 ...        (window 5, stride 1)
          step 0    [            ]
          step 1       [            ]                  one index of 8 bits, four levels
          step 2          [            ]
          step 3             [            ]

They depend on the code alone and are shared by all layers that use it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.interpret import all_states, interpret, tabulate
from unspool.pack.matrix import bits_dtype
from unspool.spec.code import TABULATED_BITS, Code
from unspool.spec.operand import Operand

if TYPE_CHECKING:
    from jaxtyping import Float32, Shaped

SHARED = 32
"""Codes whose tables are kept; a model uses a few."""

WIDE_BYTES = 16 * 1024
"""Half of an L1 data cache: the rest is for codes, activations and decoded rows."""

WIDE_BITS = 12

COMPILED = {8: (1, 2, 4), 16: (2, 4)}
"""Columns of a tile or of a part -> weights per look-up that the C++ library was compiled for."""

PART_COLUMNS = 16
"""Columns of a wider tile that are cut from one word of 64 bits."""

INT8_WEIGHTS = 4
"""Weights per look-up of int8 tables: one 32-bit load."""


@dataclass(frozen=True, kw_only=True)
class IntegerLevels:
    """What makes a code's values int8: value = level * unit, with |level| <= largest."""

    unit: float
    largest: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """Levels of `steps` successive steps: float32 or int8 [states, steps * lanes]; unit."""

    table: Shaped[np.ndarray, "states weights"]
    steps: int
    unit: float


def why_no_entries(code: Code) -> str:
    """Why a code cannot be tabulated; empty where it can."""
    if code.state_bits > TABULATED_BITS:
        return f"{code.state_bits} state bits, more than the {TABULATED_BITS} that are tabulated"
    if code.operand.bits > 16:
        return "an operand of more than 16 bits"
    for parameter in code.program.parameters:
        if not _ends_in_a_look_up(code) or parameter.operand.bits > code.operand.bits:
            return "the program computes with its parameter instead of ending in it"
    return ""


@functools.lru_cache(maxsize=SHARED)
def entries(code: Code) -> Shaped[np.ndarray, "states lanes"]:
    """Operand bits of every state, uint8 or uint16; indices into the parameter where there is one.

    Codes for which `why_no_entries` has no reason.
    """
    if not code.program.parameters:
        return tabulate(code).astype(bits_dtype(code.operand))
    (parameter,) = code.program.parameters
    places = np.arange(parameter.length, dtype=np.uint32)
    found = interpret(code.program, all_states(code), {parameter.name: places})
    return found.astype("uint8" if parameter.length <= 256 else "uint16")


@functools.lru_cache(maxsize=SHARED)
def operand_values(operand: Operand) -> Float32[np.ndarray, "patterns"]:
    """The value of every bit pattern."""
    return operand.values().astype(np.float32)


@functools.lru_cache(maxsize=SHARED)
def integer_levels(code: Code) -> IntegerLevels | None:
    """The unit and the largest level of a code whose values are int8 multiples of one number."""
    if why_no_entries(code) or code.program.parameters:
        return None
    values = operand_values(code.operand)[np.unique(entries(code))]
    unit = int8_unit(values)
    if unit is None:
        return None
    return IntegerLevels(unit=unit, largest=int(np.abs(values).max() / unit))


@functools.lru_cache(maxsize=2 * SHARED)
def levels(code: Code, *, integer: bool) -> Levels | None:
    """The quickest table of a code without parameters, or None: look up operands instead.

    `integer`: of int8, for codes with `integer_levels`; else of float32, or int8 where that is
    the only one small enough.
    """
    if not fits_words(code):
        return None
    found = integer_levels(code)
    unit = found.unit if found else 1.0
    exact = operand_values(code.operand)[entries(code)] / np.float32(unit)
    for steps in (4, 2, 1):
        dtype = _wide_dtype(code, steps, exact=found is not None, integer=integer)
        if dtype is not None:
            table = _wide(exact.astype(np.float32), code, steps).astype(dtype)
            return Levels(table=table, steps=steps, unit=unit)
    return None


def int8_unit(values: Float32[np.ndarray, "..."]) -> float | None:
    """The largest power of two of which all values are int8 multiples, or None."""
    if not np.isfinite(values).all():
        return None
    largest = float(np.abs(values).max())
    if largest == 0:
        return 1.0
    top = int(np.floor(np.log2(largest)))
    for power in range(top, top - 8, -1):
        scaled = np.ldexp(values.astype(np.float64), -power)
        if scaled.max() > 127 or scaled.min() < -128:
            return None
        if (scaled == np.rint(scaled)).all():
            return float(np.ldexp(1.0, power))
    return None


def fits_words(code: Code) -> bool:
    """Whether what a part of a tile's row reads of each plane is whole bytes and fits 64 bits.

    The compiled kernels for one or two planes need that; others take the plain way.
    """
    columns = _part_columns(code)
    steps = columns // code.lanes
    return (
        len(code.planes) <= 2
        and code.tile[1] % columns == 0
        and all(
            steps * plane.stride % 8 == 0
            and (steps - 1) * plane.stride + plane.window <= 64
            and code.steps * plane.stride >= 64
            for plane in code.planes
        )
    )


def _part_columns(code: Code) -> int:
    return min(code.tile[1], PART_COLUMNS)


def _wide_dtype(code: Code, steps: int, *, exact: bool, integer: bool) -> str | None:
    """The dtype of a table of so many steps, or None where it is too large or not compiled."""
    weights = steps * code.lanes
    bits = sum(plane.window + (steps - 1) * plane.stride for plane in code.planes)
    if weights not in COMPILED.get(_part_columns(code), ()):
        return None
    if not integer and bits <= WIDE_BITS and 4 * weights << bits <= WIDE_BYTES:
        return "float32"
    # A table of one step is as large as its operands would be, whatever that is.
    small = bits <= WIDE_BITS and weights << bits <= WIDE_BYTES
    four = weights == INT8_WEIGHTS or integer
    return "int8" if exact and four and (small or steps == 1) else None


def _wide(table: Float32[np.ndarray, "states lanes"], code: Code, steps: int) -> np.ndarray:
    """A table [states, lanes] for the union of the windows of successive steps."""
    unions = [plane.window + (steps - 1) * plane.stride for plane in code.planes]
    index = np.arange(1 << sum(unions), dtype=np.uint32)
    parts = []
    for step in range(steps):
        state, low, wide_low = np.zeros_like(index), 0, 0
        for plane, union in zip(code.planes, unions, strict=True):
            window = index >> np.uint32(wide_low + step * plane.stride)
            window &= np.uint32((1 << plane.window) - 1)
            state |= window << np.uint32(low)
            low, wide_low = low + plane.window, wide_low + union
        parts.append(table[state])
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _ends_in_a_look_up(code: Code) -> bool:
    """Whether every lane is an entry of the parameter, read by an index that does not use it."""
    program = code.program
    names = {parameter.name for parameter in program.parameters}
    looked_up = {
        i.result for i in program.instructions if i.op == "table" and i.arguments[0] in names
    }
    used = {a for i in program.instructions for a in i.arguments if isinstance(a, str)}
    return not looked_up & used and all(
        register in looked_up and offset == 0 for register, offset in program.outputs
    )
