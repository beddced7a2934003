"""The numpy interpreter: the definition of what a program means."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from unspool.errors import DeclarationError
from unspool.spec.code import TABULATED_BITS, Code
from unspool.spec.program import STATE, Instruction, Program

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt16, UInt32

    Word = UInt32[np.ndarray, "..."]


def interpret(
    program: Program, state: Word, parameters: Mapping[str, Word] | None = None
) -> UInt32[np.ndarray, "... lanes"]:
    """Runs a program on an array of states: each lane's word, shifted to its bit offset.

    A parameter is an array `[..., length]` whose leading axes broadcast with the states.
    """
    found = registers(program, state, parameters)
    lanes = [found[name] >> np.uint32(offset) for name, offset in program.outputs]
    return np.stack(np.broadcast_arrays(*lanes), axis=-1)


def registers(
    program: Program, state: Word, parameters: Mapping[str, Word] | None = None
) -> dict[str, Word]:
    """Every register of a program by name."""
    found = {STATE: np.asarray(state, dtype=np.uint32)}
    tables: dict[str, Word] = {t.name: np.array(t.entries, np.uint32) for t in program.tables}
    tables |= dict(parameters or {})
    for instruction in program.instructions:
        found[instruction.result] = execute(instruction, found, tables)
    return found


def operand_bits(
    code: Code, state: Word, parameters: Mapping[str, Word] | None = None
) -> UInt16[np.ndarray, "... lanes"]:
    """The operand bit pattern of every lane of every state."""
    mask = np.uint32((1 << code.operand.bits) - 1)
    return (interpret(code.program, state, parameters) & mask).astype(np.uint16)


def tabulate(code: Code) -> UInt16[np.ndarray, "states lanes"]:
    """Operand bits of all `2**state_bits` states, not to be written to; for codes without
    parameters."""
    if code.program.parameters:
        raise DeclarationError("values depend on stored parameters", where=f"code {code.name}")
    _check_few(code)
    return _tabulated(replace(code, name="", sigma=None))


@functools.lru_cache(maxsize=2)
def _tabulated(code: Code) -> UInt16[np.ndarray, "states lanes"]:
    """A search asks several times for one code after another."""
    found = operand_bits(code, all_states(code))
    found.flags.writeable = False
    return found


def state_values(code: Code) -> Float32[np.ndarray, "states lanes"]:
    """Values of all states; NaN or Inf where the operand is not finite."""
    return code.operand.values().astype(np.float32)[tabulate(code)]


def all_states(code: Code) -> Word:
    """0, 1, ..., 2**state_bits - 1."""
    _check_few(code)
    return np.arange(1 << code.state_bits, dtype=np.uint32)


def _check_few(code: Code) -> None:
    if code.state_bits > TABULATED_BITS:
        raise DeclarationError(
            "too many states to tabulate",
            where=f"code {code.name}",
            found=f"{code.state_bits} bits",
            allowed=f"at most {TABULATED_BITS}",
        )


def execute(
    instruction: Instruction, registers: Mapping[str, Word], tables: Mapping[str, Word]
) -> Word:
    """The result of one instruction on registers and tables by name."""
    arguments = instruction.arguments
    if instruction.op == "table":
        index = _value(arguments[1], registers)
        return _look_up(tables[str(arguments[0])], index)
    values = [_value(argument, registers) for argument in arguments]
    return _OPERATIONS[instruction.op](*values)


def _value(argument: str | int, registers: Mapping[str, Word]) -> Word:
    return registers[argument] if isinstance(argument, str) else np.array(argument, np.uint32)


def _look_up(table: Word, index: Word) -> Word:
    wrapped = (index & np.uint32(table.shape[-1] - 1)).astype(np.intp)
    if table.ndim == 1:
        return table[wrapped]
    lead = np.broadcast_shapes(table.shape[:-1], wrapped.shape)
    table = np.broadcast_to(table, (*lead, table.shape[-1]))
    wrapped = np.broadcast_to(wrapped, lead)
    return np.take_along_axis(table, wrapped[..., None], axis=-1)[..., 0]


def _wide(word: Word) -> np.ndarray:
    return word.astype(np.uint64)


def _low(wide: np.ndarray) -> Word:
    return (wide & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _shift_left(a: Word, amount: Word) -> Word:
    return _low(_wide(a) << _wide(amount & np.uint32(31)))


def _shift_right(a: Word, amount: Word) -> Word:
    return a >> (amount & np.uint32(31))


def _multiply(a: Word, b: Word) -> Word:
    return _low(_wide(a) * _wide(b))


def _multiply_high(a: Word, b: Word) -> Word:
    return (_wide(a) * _wide(b) >> np.uint64(32)).astype(np.uint32)


def _funnel_shift(low: Word, high: Word, amount: Word) -> Word:
    both = _wide(high) << np.uint64(32) | _wide(low)
    return _low(both >> _wide(amount & np.uint32(31)))


def _lop3(a: Word, b: Word, c: Word, truth: Word) -> Word:
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), np.uint32)
    for row in range(8):
        chosen = truth >> np.uint32(row) & np.uint32(1)
        if chosen.any():
            words = ((a, 2), (b, 1), (c, 0))
            picks = [word if row >> place & 1 else ~word for word, place in words]
            result |= picks[0] & picks[1] & picks[2] & chosen * np.uint32(0xFFFFFFFF)
    return result


def permute_bytes(low: Word, high: Word, selector: Word) -> Word:
    """Byte i of the result is byte (nibble i of the selector & 7) of high:low; CUDA's PRMT."""
    both = _wide(high) << np.uint64(32) | _wide(low)
    result = np.zeros(np.broadcast_shapes(both.shape, selector.shape), np.uint64)
    for place in range(4):
        pick = _wide(selector >> np.uint32(4 * place) & np.uint32(7))
        result |= (both >> np.uint64(8) * pick & np.uint64(0xFF)) << np.uint64(8 * place)
    return _low(result)


def _bit_reverse(a: Word) -> Word:
    for width, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        low = a & np.uint32(mask)
        a = low << np.uint32(width) | a >> np.uint32(width) & np.uint32(mask)
    return a << np.uint32(16) | a >> np.uint32(16)


def _byte_sum(a: Word, b: Word) -> Word:
    total = sum(_wide(a >> np.uint32(8 * place) & np.uint32(0xFF)) for place in range(4))
    return _low(total + _wide(b))


def _halves(word: Word) -> tuple[np.ndarray, np.ndarray]:
    low = (word & np.uint32(0xFFFF)).astype(np.uint16).view(np.float16)
    high = (word >> np.uint32(16)).astype(np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return low.astype(np.float64), high.astype(np.float64)


def _half2(low: np.ndarray, high: np.ndarray) -> Word:
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [np.asarray(part, np.float64).astype(np.float16) for part in (low, high)]
    bits = [np.where(np.isnan(p), np.uint16(0x7FFF), p.view(np.uint16)) for p in parts]
    return bits[0].astype(np.uint32) | bits[1].astype(np.uint32) << np.uint32(16)


def _half2_add(a: Word, b: Word) -> Word:
    (a0, a1), (b0, b1) = _halves(a), _halves(b)
    with np.errstate(invalid="ignore"):
        return _half2(a0 + b0, a1 + b1)


def _half2_fma(a: Word, b: Word, c: Word) -> Word:
    (a0, a1), (b0, b1), (c0, c1) = _halves(a), _halves(b), _halves(c)
    with np.errstate(invalid="ignore"):
        return _half2(_odd_sum(a0 * b0, c0), _odd_sum(a1 * b1, c1))


def _odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64 rounded to odd, so that rounding it again to binary16 rounds only once.

    Products of binary16 are exact in float64, their sum with a third need not be (exponents from
    2**-48 to 2**32 span 80 bits). Boldo and Melquiond 2008: round to odd, then to nearest.
    """
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)
    bits = total.view(np.int64)
    even = (bits & 1) == 0
    inexact = (error != 0) & np.isfinite(total) & even
    toward = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + toward, bits).view(np.float64)


_OPERATIONS: Mapping[str, Callable[..., Word]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "add": lambda a, b: _low(_wide(a) + _wide(b)),
    "sub": lambda a, b: _low(_wide(a) - _wide(b)),
    "mul": _multiply,
    "mul-high": _multiply_high,
    "shl": _shift_left,
    "shr": _shift_right,
    "funnel-shift": _funnel_shift,
    "lop3": _lop3,
    "permute-bytes": permute_bytes,
    "bit-reverse": _bit_reverse,
    "byte-sum": _byte_sum,
    "half2-add": _half2_add,
    "half2-fma": _half2_fma,
}
