"""The space of table codes that a CPU decodes in registers, and how one of them is trained.

    shape      a ring's window and stride, plain bits, lanes: what a strip kernel was compiled for
    entries    operands of all states, lane 0 first: what Lloyd rounds make of a random table, or of
               a table that was found before and shaken a little

A shape alone decides what a code costs to decode; its entries decide the error. So the search tries
many tables of few shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unspool.errors import DeclarationError
from unspool.explore.train import Trellis, Values
from unspool.perf.strip_loop import StripShape, compiled_shapes
from unspool.spec.catalog.trellis import LANE_BITS
from unspool.spec.code import Code, Plane
from unspool.spec.operand import E2M1, E2M3, INT8, Operand
from unspool.spec.program import STATE, Instruction, Program, Table

ROWS = COLUMNS = 8
"""Of a tile: one ring. With two lanes a tile has twice the columns."""

OPERANDS = (INT8, E2M3, E2M1)
"""Values that VPDPBUSD multiplies as they are; 60 levels of E2M3 fit AVX2's int16 sums too."""


@dataclass(frozen=True)
class TableGenome:
    """A table to train: from `start`'s random one, or from the given entries with noise of it.

    Once scored it is the trained table: its entries and their sigma.
    """

    shape: StripShape
    start: int
    entries: tuple[int, ...] = ()
    sigma: float = 1.0


def shapes(bits: float, memory: int | None = None) -> tuple[StripShape, ...]:
    """The compiled shapes with a ring of a rate; DeclarationError where there is none.

    `memory`: bits that a window shares with the next.
    """
    able = [shape for shape in compiled_shapes() if shape.window]
    found = tuple(
        shape
        for shape in able
        if shape.bits_per_weight == bits and memory in (None, shape.window - shape.stride)
    )
    if not found:
        rates = sorted({shape.bits_per_weight for shape in able})
        raise DeclarationError(
            "no codes of this rate have a kernel in registers", where="bits, memory",
            found=f"{bits:g}" + ("" if memory is None else f", {memory}"),
            allowed=", ".join(
                f"{rate:g} (memory {_memories(able, rate)})" for rate in rates
            ),
        )  # fmt: skip
    return found


def _memories(able: list[StripShape], rate: float) -> str:
    found = {shape.window - shape.stride for shape in able if shape.bits_per_weight == rate}
    return " or ".join(map(str, sorted(found)))


def trellis(shape: StripShape) -> Trellis:
    """What the trainer knows of a shape."""
    plain = (Plane(window=shape.plain, stride=shape.plain),) if shape.plain else ()
    ring = Plane(window=shape.window, stride=shape.stride)
    return Trellis(planes=(ring, *plain), lanes=shape.lanes, steps=ROWS * COLUMNS)


def code_of(genome: TableGenome, operand: Operand, sigma: float, name: str = "found") -> Code:
    """The code of a trained table."""
    shape, lanes = genome.shape, genome.shape.lanes
    entries = tuple(
        sum(bits << (LANE_BITS * lane) for lane, bits in enumerate(genome.entries[i : i + lanes]))
        for i in range(0, len(genome.entries), lanes)
    )
    return Code(
        name=name,
        planes=trellis(shape).planes,
        lanes=lanes,
        tile=(ROWS, COLUMNS * lanes),
        operand=operand,
        program=Program(
            instructions=(Instruction("entry", "table", ("values", STATE)),),
            outputs=tuple(("entry", LANE_BITS * lane) for lane in range(lanes)),
            tables=(Table(name="values", entries=entries),),
        ),
        sigma=sigma,
    )


def drawn(of: tuple[StripShape, ...], random: np.random.Generator) -> TableGenome:
    """A random table of one of the shapes."""
    shape = of[int(random.integers(len(of)))]
    return TableGenome(shape, int(random.integers(1 << 31)))


def changed(random: np.random.Generator, parent: TableGenome) -> TableGenome:
    """A trained table, to be shaken and trained again."""
    start = int(random.integers(1 << 31))
    return TableGenome(parent.shape, start, parent.entries, parent.sigma)


def shaken(genome: TableGenome, operand: Operand) -> Values:
    """The values of a table in units of its sigma, with noise of one to twenty hundredths of it."""
    random = np.random.default_rng(genome.start)
    known = values_of(genome, operand)
    noise = random.standard_normal(known.shape) * np.geomspace(0.01, 0.2, 8)[random.integers(8)]
    return (known + noise).astype(np.float32)


def values_of(genome: TableGenome, operand: Operand) -> Values:
    """The values of a trained table in units of its sigma."""
    known = operand.values()[np.array(genome.entries)].reshape(-1, genome.shape.lanes)
    return (known / genome.sigma).astype(np.float32)
