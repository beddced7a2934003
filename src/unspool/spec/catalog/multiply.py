"""Multiply codes: four weights are bits of one product of a window; no table anywhere.

The constants come from `unspool search`; each entry's source is the command that found it.
"""

from __future__ import annotations

from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import E2M1, E2M3, E4M3, Operand
from unspool.spec.program import STATE, Instruction, Program
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

TILE = (8, 16)
LANES = 4
#: sign, two exponent and three mantissa bits of every byte: E2M3 x 2**-6, never a NaN
E4M3_MASK = 0x9F9F9F9F
#: the same six bits in the low end of every byte: E2M3
E2M3_MASK = 0x3F3F3F3F
#: lop3 truth table of (a ^ b) & c
XOR_AND = 0x28


def to_e2m1(bits: int, *, selector: int, multiplier: int, addend: int, sigma: float) -> Code:
    """Four E2M1 weights: the upper nibbles of (permuted window) * multiplier + addend."""
    program = _sum_of_spread(selector, multiplier, "word", addend)
    return _code(f"m{bits}-e2m1", bits, E2M1, program, first=16, width=4, sigma=sigma)


def to_e4m3(bits: int, *, selector: int, multiplier: int, addend: int, sigma: float) -> Code:
    """Four E4M3 weights: the bytes of window * multiplier + addend, xor the permuted window."""
    program = _xor_of_both(selector, multiplier, addend, E4M3_MASK)
    return _code(f"m{bits}-e4m3", bits, E4M3, program, sigma=sigma)


def to_e2m3(bits: int, *, selector: int, multiplier: int, addend: int, sigma: float) -> Code:
    """`to_e4m3` with the sign beside the exponent: E2M3 in bytes, as FP6 matrix units take it."""
    program = _xor_of_both(selector, multiplier, addend, E2M3_MASK)
    return _code(f"m{bits}-e2m3", bits, E2M3, program, sigma=sigma)


def to_e4m3_quick(bits: int, *, selector: int, multiplier: int, addend: int, sigma: float) -> Code:
    """Four E4M3 weights in three instructions: bytes of (permuted window) * multiplier + addend."""
    program = (
        *_sum_of_spread(selector, multiplier, "sum", addend),
        Instruction("word", "and", ("sum", E4M3_MASK)),
    )
    return _code(f"m{bits}-e4m3-quick", bits, E4M3, program, sigma=sigma)


def _sum_of_spread(
    selector: int, multiplier: int, result: str, addend: int
) -> tuple[Instruction, ...]:
    """result = (permuted window) * multiplier + addend."""
    return (
        Instruction("spread", "permute-bytes", (STATE, 0, selector)),
        Instruction("product", "mul", ("spread", multiplier)),
        Instruction(result, "add", ("product", addend)),
    )


def _xor_of_both(selector: int, multiplier: int, addend: int, mask: int) -> tuple[Instruction, ...]:
    """word = (window * multiplier + addend ^ permuted window) & mask."""
    return (
        Instruction("product", "mul", (STATE, multiplier)),
        Instruction("sum", "add", ("product", addend)),
        Instruction("spread", "permute-bytes", (STATE, 0, selector)),
        Instruction("word", "lop3", ("sum", "spread", mask, XOR_AND)),
    )


def _code(
    name: str,
    bits: int,
    operand: Operand,
    instructions: tuple[Instruction, ...],
    *,
    first: int = 0,
    width: int = 8,
    sigma: float,
) -> Code:
    """A code whose lanes are fields of `word`, `width` bits apart from bit `first` on.

    A step adds 4 weights' bits to a memory of 8: windows of 16 bits at 2 bits, of 20 at 3.
    """
    return Code(
        name=name,
        planes=(Plane(window=LANES * bits + 8, stride=LANES * bits),),
        lanes=LANES,
        tile=TILE,
        operand=operand,
        program=Program(
            instructions=instructions,
            outputs=tuple(("word", first + width * lane) for lane in range(LANES)),
        ),
        sigma=sigma,
    )


def _format(code: Code, source: str) -> Format:
    return Format(
        name=code.name,
        code=code,
        scale=Scale.parse("row-fp16"),
        rotation=Rotation(size=128),
        source=source,
    )


MULTIPLY = (
    _format(
        to_e2m1(2, selector=0x1101, multiplier=0x97E6B60B, addend=0xD29CE0F7, sigma=2.78),
        "unspool search --bits 2 --operand E2M1 --trials 120",
    ),
    _format(
        to_e4m3(2, selector=0x1111, multiplier=0x0644A277, addend=0x75D9D8CA, sigma=0.04992),
        "unspool search --bits 2 --operand E4M3 --trials 120",
    ),
    _format(
        to_e2m1(3, selector=0x2120, multiplier=0x1342F01D, addend=0x043B27B6, sigma=2.304),
        "unspool search --bits 3 --operand E2M1 --trials 40",
    ),
    _format(
        to_e4m3(3, selector=0x2121, multiplier=0x0C6D8AEF, addend=0x15820791, sigma=0.04316),
        "unspool search --bits 3 --operand E4M3 --trials 40",
    ),
    _format(
        to_e4m3_quick(2, selector=0x1001, multiplier=0x6D2A45FF, addend=0x89F79AF7, sigma=0.05),
        "unspool search --bits 2 --operand E4M3-quick --trials 60",
    ),
    _format(
        to_e2m3(3, selector=0x2121, multiplier=0x0C6D8AEF, addend=0x15820791, sigma=2.762),
        "unspool search --bits 3 --operand E2M3 --trials 24",
    ),
)
