"""Codes that the explorer found: a few integer instructions per window, no table anywhere.

Each is a row of a committed run, bench/results/explore-*.json, which names the commit; its source
is the command (docs/findings.md shows the fronts). Registers are named as the explorer names them:
p a product, r what a step leaves, `word` the operands side by side.
"""

from __future__ import annotations

from unspool.spec.catalog.multiply import E4M3_MASK
from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import E2M1, E4M3, Operand
from unspool.spec.program import STATE, Instruction, Program
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

RING = 64
"""Steps of a ring. With 32, walks through 256 nodes lose 0.5 % more to having to close."""

MOST_COLUMNS = 32
"""Columns of a tile. The four rings that a GPU's threads decode at a time are a step of a kernel;
wider ones leave a stage of memory with one step, and operands without a second buffer."""

WORD = 32


def tile(lanes: int) -> tuple[int, int]:
    """The tile of a code with so many weights a step."""
    return 8, min(RING // 8 * lanes, MOST_COLUMNS)


def _found(
    name: str,
    *,
    bits: float,
    window: int,
    lanes: int,
    operand: Operand,
    sigma: float,
    source: str,
    program: tuple[tuple[str, str, tuple[str | int, ...]], ...],
) -> Format:
    """Lanes are the upper nibbles of `word`, or its upper bytes."""
    width = 4 if operand is E2M1 else 8
    code = Code(
        name=name,
        planes=(Plane(window=window, stride=round(bits * lanes)),),
        lanes=lanes,
        tile=tile(lanes),
        operand=operand,
        program=Program(
            instructions=tuple(Instruction(result, op, args) for result, op, args in program),
            outputs=tuple(("word", WORD - width * (lanes - i)) for i in range(lanes)),
        ),
        sigma=sigma,
    )
    return Format(
        name=name, code=code, scale=Scale.parse("row-fp16"), rotation=Rotation(size=128),
        source=source,
    )  # fmt: skip


def _run(
    bits: float, operand: str, target: str, generations: int, memory: int | None = None
) -> str:
    """The command of a run, as many generations as it had in its minutes."""
    shared = "" if memory is None else f" --memory {memory}"
    return (
        f"unspool explore --bits {bits:g} --operand {operand} --target {target}{shared} "
        f"--generations {generations}"
    )


FOUND = (
    _found(
        "x1.5-e2m1",
        bits=1.5,
        lanes=4,
        window=14,
        operand=E2M1,
        sigma=3.024,
        source=_run(1.5, "e2m1", "sm120", 2),
        program=(
            ("p1", "mul", (STATE, 0x5A1CA985)),
            ("r1", "add", ("p1", 0xFF5DB743)),
            ("p2", "mul", ("r1", 0x4B9C63A9)),
            ("word", "add", ("p2", 0xC701130E)),
        ),
    ),
    _found(
        "x2-e4m3",
        bits=2,
        lanes=4,
        window=16,
        operand=E4M3,
        sigma=0.05,
        source=_run(2, "e4m3", "sm90", 132),
        program=(
            ("p1", "mul", (STATE, 0x83735437)),
            ("r1", "add", ("p1", 0xF4D7729B)),
            ("r2", "shr", ("r1", 6)),
            ("p3", "mul", ("r2", 0xD793CBBF)),
            ("r3", "add", ("p3", 0xDFF95291)),
            ("word", "and", ("r3", E4M3_MASK)),
        ),
    ),
    _found(
        "x2-e4m3-fine",
        bits=2,
        lanes=4,
        window=16,
        operand=E4M3,
        sigma=0.06958,
        source=_run(2, "e4m3", "sm90", 132),
        program=(
            ("p1", "mul", (STATE, 0x6BC30A5)),
            ("r1", "add", ("p1", 0x69B763E2)),
            ("p2", "mul", ("r1", 0xA90F003)),
            ("r2", "add", ("p2", 0x52EE9497)),
            ("r3", "shr", ("r2", 6)),
            ("p4", "mul", ("r3", 0xF553CFBF)),
            ("r4", "add", ("p4", 0xFFFC7291)),
            ("top", "and", ("r4", E4M3_MASK)),
            ("tail", "and", ("r1", 0x6060606)),
            ("word", "add", ("top", "tail")),
        ),
    ),
    _found(
        "x2.5-e4m3",
        bits=2.5,
        lanes=2,
        window=15,
        operand=E4M3,
        sigma=0.04658,
        source=_run(2.5, "e4m3", "sm90", 5),
        program=(
            ("p1", "mul", (STATE, 0x225BA325)),
            ("r1", "add", ("p1", 0xB05440A2)),
            ("p2", "mul", ("r1", 0x1562B55B)),
            ("r2", "add", ("p2", 0x99C1CB61)),
            ("word", "and", ("r2", E4M3_MASK)),
        ),
    ),
)
