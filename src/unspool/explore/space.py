"""The space of codes that the explorer walks through: short programs over one window of bits, or
beside a plane of signs.

A program is a `Genome`, which `programs` turns into instructions; here are the shapes of its codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from unspool.errors import DeclarationError
from unspool.explore.genome import Genome
from unspool.explore.programs import FIELDS, ends, may_have_signs, program
from unspool.spec.catalog.found import tile
from unspool.spec.code import WORD_BITS, Code, Plane
from unspool.spec.operand import Operand

MOST_WINDOW, LEAST_BITS = 20, 0.5

MEMORIES: tuple[tuple[int, tuple[int, ...]], ...] = ((8, (8,)), (4, (8,)), (2, (8, 10)), (1, ()))
"""Weights a step, and the memories that are tried with them. One weight a step takes a program for
each: where a memory is asked for."""

SHORT = {4: range(4, 8)}
"""Memories that are tried where a window has no room for more. 16 nodes and 2**16 words of four
weights have .0057 at 4 bits (random words, a thinned tail); with eight at 2 bits .079."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """Codes of a rate to an operand; (window, lanes) are the shapes that are tried, and those tried
    beside a plane of signs."""

    bits: float
    operand: Operand
    shapes: tuple[tuple[int, int], ...]
    signed: tuple[tuple[int, int], ...] = ()
    #: the only end that is tried
    end: str | None = None

    @classmethod
    def of(
        cls,
        bits: float,
        operand: Operand,
        memory: int | None = None,
        lanes: int | None = None,
        end: str | None = None,
    ) -> Space:
        """The space of a rate; raises DeclarationError where it is empty.

        `memory`: bits that a step's window shares with the next; by default 8, with two weights a
        step 10 as well, with four what a window has room for. `lanes`: weights a step, `end`: the
        programs' end; by default all.
        """
        if not LEAST_BITS <= bits <= 4:
            raise DeclarationError(
                "no codes of this rate", where="bits", found=bits, allowed="0.5 to 4"
            )
        if operand not in FIELDS:
            allowed = [each.name for each in FIELDS]
            raise DeclarationError(
                "no codes to this operand", where="operand", found=operand.name, allowed=allowed
            )
        if end is not None and end not in FIELDS[operand].ends:
            raise DeclarationError(
                f"no such end to {operand.name}", where="end", found=end,
                allowed=FIELDS[operand].ends,
            )  # fmt: skip
        shapes = tuple(
            s for s in _shapes(bits, operand, memory, lanes) if _ends_in(end, operand, s)
        )
        if not shapes:
            raise _no_shapes(bits, operand, memory, lanes, end)
        signed = tuple(
            (window, lanes)
            for window, lanes in _shapes(bits - 1, operand, memory, lanes)
            if may_have_signs(operand, lanes)
            and window + lanes <= MOST_WINDOW
            and _ends_in(end, operand, (window, lanes))
        )
        return cls(bits=bits, operand=operand, shapes=shapes, signed=signed, end=end)

    def ends(self, lanes: int) -> tuple[str, ...]:
        """The ends that a program with so many weights a step may have."""
        able = ends(self.operand, lanes)
        return able if self.end is None else tuple(op for op in able if op == self.end)

    def code(self, genome: Genome, sigma: float = 1.0, name: str = "found") -> Code:
        """The code of a genome."""
        lanes, plain = genome.lanes, genome.lanes if genome.signs else 0
        ring = Plane(window=genome.window, stride=round(self.bits * lanes) - plain)
        return Code(
            name=name,
            planes=(ring, Plane(window=plain, stride=plain)) if plain else (ring,),
            lanes=lanes,
            tile=tile(lanes),
            operand=self.operand,
            program=program(genome, self.operand),
            sigma=sigma,
        )


def _no_shapes(
    bits: float, operand: Operand, memory: int | None, lanes: int | None, end: str | None
) -> DeclarationError:
    if lanes is None and end is None:
        return DeclarationError(
            "no codes of this rate", where="bits", found=bits,
            allowed=f"0.5 to 4, whole bits a step, windows of at most {MOST_WINDOW} bits",
        )  # fmt: skip
    of_rate = {shape[1] for shape in _shapes(bits, operand, memory, None)}
    able = [each for each in sorted(of_rate) if _ends_in(end, operand, (0, each))]
    return DeclarationError(
        "no programs of so many weights a step", where="lanes", found=lanes or "any",
        allowed=f"{able or 'nothing with this end'}; 1 with a memory alone",
    )  # fmt: skip


def _ends_in(end: str | None, operand: Operand, shape: tuple[int, int]) -> bool:
    """Whether programs of a shape can have that end; any can where none is asked for."""
    return end is None or end in ends(operand, shape[1])


def _shapes(
    bits: float, operand: Operand, memory: int | None, wanted: int | None
) -> tuple[tuple[int, int], ...]:
    """The windows and weights a step of so many bits per weight, at least half a bit."""
    return tuple(
        (stride + each, lanes)
        for lanes, memories in MEMORIES
        if wanted in (None, lanes)
        and (stride := round(bits * lanes)) == bits * lanes
        and bits >= LEAST_BITS
        and lanes * FIELDS[operand].width <= WORD_BITS
        for each in (_memories(lanes, stride, memories) if memory is None else (memory,))
        if stride + each <= MOST_WINDOW
    )


def _memories(lanes: int, stride: int, usual: tuple[int, ...]) -> tuple[int, ...]:
    room = MOST_WINDOW - stride
    return (room,) if room in SHORT.get(lanes, ()) else usual
