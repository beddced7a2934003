"""Level codes: small constant tables of a Gaussian's best levels; no memory, one look-up each.

On a GPU, a table of at most 8 bytes is one byte permute for four weights (docs/kernels.md).
"""

from __future__ import annotations

from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import E2M1, E4M3, Operand
from unspool.spec.program import STATE, Instruction, Program, Table
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

#: sign bit of E4M3
NEGATIVE = 0x80

MAX = "Max 1960, Quantizing for Minimum Distortion: Lloyd-Max levels, rounded to E4M3"


def _levels(
    name: str,
    entries: tuple[int, ...],
    *,
    lanes: int = 1,
    operand: Operand,
    sigma: float,
    source: str,
) -> Format:
    bits = len(entries).bit_length() - 1
    code = Code(
        name=name,
        planes=(Plane(window=bits, stride=bits),),
        lanes=lanes,
        tile=(8, 8 * lanes),
        operand=operand,
        program=Program(
            instructions=(Instruction("entry", "table", ("levels", STATE)),),
            outputs=tuple(("entry", operand.bits * lane) for lane in range(lanes)),
            tables=(Table(name="levels", entries=entries),),
        ),
        sigma=sigma,
    )
    return Format(
        name=name,
        code=code,
        scale=Scale.parse("row-fp16"),
        rotation=Rotation(size=128),
        source=source,
    )


def _mirrored(*levels: int) -> tuple[int, ...]:
    """Positive E4M3 levels, then the same with the sign: the state's top bit is the sign."""
    return (*levels, *(level | NEGATIVE for level in levels))


LEVELS = (
    _levels(
        "v1.5-e2m1",
        (0xD4, 0x16, 0xDB, 0x92, 0x1A, 0x5C, 0x53, 0x9E),
        lanes=2,
        operand=E2M1,
        sigma=2.36,
        source="Lloyd's algorithm for pairs, turned and scaled to fit E2M1 best",
    ),
    _levels("s2-e4m3", _mirrored(0x5C, 0x6A), operand=E4M3, sigma=53.08, source=MAX),
    _levels("s3-e4m3", _mirrored(0x54, 0x61, 0x68, 0x6D), operand=E4M3, sigma=48.03, source=MAX),
    _levels(
        "s4-e4m3",
        _mirrored(0x49, 0x55, 0x5B, 0x60, 0x63, 0x66, 0x69, 0x6C),
        operand=E4M3,
        sigma=34.34,
        source=MAX,
    ),
)
