"""The interpreter against plain Python integers and IEEE arithmetic, instruction by instruction."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.decode.interpret import interpret, tabulate
from unspool.spec.catalog import parse
from unspool.spec.program import ARITY, STATE, Instruction, Program, Table

WORD = st.integers(0, (1 << 32) - 1)
MASK = (1 << 32) - 1


def run(op: str, *arguments: int) -> int:
    """One instruction on constants, its first argument as the state."""
    program = Program(
        instructions=(Instruction("result", op, (STATE, *arguments[1:])),),
        outputs=(("result", 0),),
    )
    return int(interpret(program, np.array([arguments[0]], np.uint32))[0, 0])


def _bytes(low: int, high: int = 0) -> bytes:
    return (high << 32 | low).to_bytes(8, "little")


def _lop3(a: int, b: int, c: int, truth: int) -> int:
    bits = ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1) for i in range(32))
    return sum((truth >> row & 1) << i for i, row in enumerate(bits))


def _permute(low: int, high: int, selector: int) -> int:
    picked = (_bytes(low, high)[selector >> 4 * i & 7] for i in range(4))
    return int.from_bytes(bytes(picked), "little")


PLAIN_PYTHON = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a & MASK,
    "add": lambda a, b: a + b & MASK,
    "sub": lambda a, b: a - b & MASK,
    "mul": lambda a, b: a * b & MASK,
    "mul-high": lambda a, b: a * b >> 32,
    "shl": lambda a, b: a << (b & 31) & MASK,
    "shr": lambda a, b: a >> (b & 31),
    "funnel-shift": lambda a, b, c: (b << 32 | a) >> (c & 31) & MASK,
    "lop3": _lop3,
    "permute-bytes": _permute,
    "bit-reverse": lambda a: int(f"{a:032b}"[::-1], 2),
    "byte-sum": lambda a, b: sum(_bytes(a)) + b & MASK,
}


@pytest.mark.parametrize("op", PLAIN_PYTHON)
@given(words=st.tuples(WORD, WORD, WORD, WORD))
def test_integer_instructions_agree_with_python(op: str, words: tuple[int, ...]) -> None:
    arguments = words[: ARITY[op]]
    assert run(op, *arguments) == PLAIN_PYTHON[op](*arguments)


HALF = st.integers(0, (1 << 16) - 1)


def _half(bits: int) -> float:
    return float(np.array(bits, np.uint16).view(np.float16))


def _rounded(exact: Fraction) -> float:
    """The binary16 value nearest to an exact number, ties to even; no overflow."""
    if exact == 0:
        return 0.0
    exponent = max(-14, _floor_log2(abs(exact)))
    unit = Fraction(2) ** (exponent - 10)
    return float(round(exact / unit) * unit)  # Python rounds fractions half to even


def _floor_log2(number: Fraction) -> int:
    guess = number.numerator.bit_length() - number.denominator.bit_length()
    return guess if Fraction(2) ** guess <= number else guess - 1


@given(a=HALF, b=HALF, c=HALF)
def test_half2_fma_rounds_once(a: int, b: int, c: int) -> None:
    values = [_half(bits) for bits in (a, b, c)]
    if not np.isfinite(values).all():
        return
    exact = Fraction(values[0]) * Fraction(values[1]) + Fraction(values[2])
    if abs(exact) >= 65520:
        return
    words = [bits << 16 | bits for bits in (a, b, c)]
    result = run("half2-fma", *words)
    assert result & 0xFFFF == result >> 16
    assert _half(result & 0xFFFF) == _rounded(exact)


def test_half2_fma_survives_what_double_rounding_gets_wrong() -> None:
    # a * b is 1 + 2**-11, a tie of binary16; c decides it from 2**-24 away.
    a, b = 0x3C00, 0x3C00  # 1 * 1
    tie = Fraction(1) + Fraction(1, 2**11)
    assert _rounded(tie) == 1.0
    values = np.array([1 + 2.0**-10], np.float16).view(np.uint16)
    assert run("half2-fma", int(values[0]), b, 0x0001) & 0xFFFF == int(values[0])
    assert run("half2-fma", a, b, 0x1000) & 0xFFFF == 0x3C00  # + 2**-11 ties to even
    assert run("half2-fma", a, b, 0x1001) & 0xFFFF == 0x3C01  # a hair more rounds up


@given(a=HALF, b=HALF)
def test_half2_add_is_ieee(a: int, b: int) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.float16(_half(a)) + np.float16(_half(b))
    result = _half(run("half2-add", a, b) & 0xFFFF)
    np.testing.assert_equal(result, float(total))


def test_a_table_index_wraps() -> None:
    program = Program(
        instructions=(Instruction("x", "table", ("t", STATE)),),
        outputs=(("x", 0),),
        tables=(Table(name="t", entries=(7, 8, 9, 10)),),
    )
    assert interpret(program, np.arange(6, dtype=np.uint32))[:, 0].tolist() == [7, 8, 9, 10, 7, 8]


def test_every_declared_instruction_is_tested_here() -> None:
    assert set(PLAIN_PYTHON) | {"half2-add", "half2-fma", "table"} == set(ARITY)


def test_a_code_is_tabulated_once_and_nobody_writes_to_the_table():
    code = parse("m2-e4m3").code
    found = tabulate(code)
    assert tabulate(code) is found
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0
