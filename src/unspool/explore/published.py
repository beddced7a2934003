"""Published codes beside which found ones are plotted: written as programs where they have one.

A program's distortion is measured on its own rings and its instructions are counted as ours are. Of
the others both figures are the source's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unspool.decode.lowering import AND_XOR
from unspool.explore.programs import HALVES_BITS, HALVES_MASK, SUM_BITS, SUM_CENTRE
from unspool.spec.code import Code, Plane
from unspool.spec.operand import FP16
from unspool.spec.program import STATE, Instruction, Program

TILE = (16, 16)
"""QTIP's and EXL3's."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A published code without a program here: bits per weight, error, instructions if known."""

    name: str
    bits: float
    mse: float
    total: float | None
    source: str


def trellis(bits: int) -> tuple[Code, ...]:
    """The computed trellis codes of QTIP and EXL3, whole bits per weight, windows of 16."""
    return tuple(_code(name, bits, program, sigma) for name, (program, sigma) in _PROGRAMS.items())


def points(bits: float) -> tuple[Point, ...]:
    """What is known of a rate without a program."""
    bound = Point(name="rate-distortion bound", bits=bits, mse=4.0**-bits, total=None,
                  source="Shannon: 2^(-2 bits) of a unit Gaussian")  # fmt: skip
    return (bound, *(each for each in _POINTS if each.bits == bits))


def _code(name: str, bits: int, program: Program, sigma: float) -> Code:
    return Code(
        name=name, planes=(Plane(window=16, stride=bits),), tile=TILE, operand=FP16,
        program=program, sigma=sigma,
    )  # fmt: skip


def _program(*instructions: tuple[str, str, tuple[str | int, ...]]) -> Program:
    made = tuple(Instruction(result, op, arguments) for result, op, arguments in instructions)
    return Program(instructions=made, outputs=((made[-1].result, 0),))


def _halves(*hashed: tuple[str, str, tuple[str | int, ...]]) -> Program:
    """The sum of two binary16 made of the hash: 3INST (Tseng et al. 2024) and EXL3's mcg."""
    return _program(
        *hashed,
        ("both", "lop3", ("hash", HALVES_MASK, HALVES_BITS, AND_XOR)),
        ("upper", "shr", ("both", 16)),
        ("value", "half2-add", ("both", "upper")),
    )


_PROGRAMS: Mapping[str, tuple[Program, float]] = {
    # QTIP (Tseng et al. 2024, arXiv 2406.11235), algorithms 1 and 2
    "qtip-1mad": (
        _program(
            ("product", "mul", (STATE, 34038481)),
            ("hash", "add", ("product", 76625530)),
            ("sum", "byte-sum", ("hash", SUM_BITS)),
            ("value", "half2-add", ("sum", SUM_CENTRE)),
        ),
        144.9,
    ),
    "qtip-3inst": (
        _halves(("product", "mul", (STATE, 89226354)), ("hash", "add", ("product", 64248484))),
        1.22,
    ),
    # exllamav3's codebooks of 2025 and 2026
    "exl3-mcg": (_halves(("hash", "mul", (STATE, 0xCBAC1FED))), 1.22),
    "exl3-mul1": (
        _program(
            ("hash", "mul", (STATE, 0x83DCD12D)),
            ("sum", "byte-sum", ("hash", SUM_BITS)),
            ("value", "half2-fma", ("sum", 0x1EEE, 0xC931)),
        ),
        0.98,
    ),
}  # sigma: 0.98 of the RMS, where a sweep has the least error at 2 bits

_LLOYD = "Lloyd 1957, Max 1960: the best levels of a Gaussian"
_UNIFORM = "integers, each row's scale the best; instructions to E4M3 counted in Humming 0.1.19"
_POINTS = (
    *(Point(name="Lloyd-Max", bits=b, mse=mse, total=None, source=_LLOYD)
      for b, mse in ((1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497))),
    *(Point(name=f"Humming INT{b}", bits=b, mse=mse, total=total, source=_UNIFORM)
      for b, mse, total in ((1, 0.3634, 1.44), (2, 0.1188, 1.56), (3, 0.03744, 1.72),
                            (4, 0.01154, 1.38))),
    Point(name="E8P", bits=2, mse=0.089, total=None, source="QTIP, table 1"),
    Point(name="QTIP HYB", bits=2, mse=0.071, total=None, source="QTIP, table 1"),
)  # fmt: skip
