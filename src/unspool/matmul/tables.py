"""What kernels know of a code: its tabulated program, shared by all layers of a format."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from unspool.decode.interpret import all_states, operand_bits, tabulate
from unspool.pack.matrix import bits_dtype
from unspool.spec.code import Code
from unspool.spec.operand import Operand

DIRECT_BYTES = 16 << 10
"""State values that are kept as floats: more would push the panel out of an L1 cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """Tables of one code; read only.

    entries       operand bits [states, lanes]; None where they are a stored parameter
    values        float32 value of every operand bit pattern
    state_values  float32 [states, lanes], where small
    """

    entries: np.ndarray | None
    values: np.ndarray
    state_values: np.ndarray | None

    @property
    def nbytes(self) -> int:
        """Bytes held, once per code and process."""
        held = (self.entries, self.values, self.state_values)
        return sum(array.nbytes for array in held if array is not None)


@functools.lru_cache(maxsize=64)
def tables(code: Code) -> Tables:
    """The tables of a code; equal codes share one copy."""
    values = operand_values(code.operand)
    if code.program.parameters:
        return Tables(entries=None, values=values, state_values=None)
    entries = tabulate(code).astype(bits_dtype(code.operand))
    small = entries.size * 4 <= DIRECT_BYTES
    return Tables(entries=entries, values=values, state_values=values[entries] if small else None)


@functools.lru_cache(maxsize=16)
def operand_values(operand: Operand) -> np.ndarray:
    """The float32 value of every bit pattern of an operand or a scale's format."""
    return operand.values().astype(np.float32)


def reads_parameter_directly(code: Code) -> bool:
    """Whether a code's operands are its stored table's entries at the state, as they are.

    A program that changes what it looked up would need a table of its own per unit.
    """
    (parameter,) = code.program.parameters
    states = all_states(code)
    marks = np.arange(parameter.length, dtype=np.uint32)
    if code.lanes != 1 or len(states) != parameter.length:
        return False
    found = operand_bits(code, states, {parameter.name: marks})[:, 0]
    return bool(np.array_equal(found, marks & ((1 << code.operand.bits) - 1)))
