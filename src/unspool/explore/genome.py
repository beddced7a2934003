"""Programs as the explorer changes them: short lists of steps over one window of bits.

    register 0     the window
    register i     what step i does to earlier registers, see Step
    end            what becomes of the last register, see End; None: its fields are the weights

Two that differ in the order of a sum or in steps that nothing reads are one: `Genome.pruned`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

TWO_SOURCES = ("xor", "add", "difference", "thin")
EITHER_ORDER = ("xor", "add")

TAIL, HALVES, SUM, LEVELS, TABLE = "tail", "halves", "sum", "levels", "table"

FOLD = "fold"


@dataclass(frozen=True)
class Step:
    """One step of a machine instruction; `b` and the constants count where its operation has them.

    multiply    a * constant + addend
    fold        low ^ high word of a * constant, 64 bits (IMAD.WIDE); a tail reads the low word
    high        the upper half of a * constant: its low bits depend on all of a
    permute     the bytes of a that the selector `constant` names
    shift       a >> constant
    xor, add    a ^ b, a + b
    difference  (a & constant) - (b & constant): bytes that are rarely far from zero, signed
    thin        a & (b | constant): bits that are rarely one
    """

    op: str
    a: int
    b: int = 0
    constant: int = 0
    addend: int = 0

    @property
    def sources(self) -> tuple[int, ...]:
        """Registers that it reads."""
        return (self.a, self.b) if self.op in TWO_SOURCES else (self.a,)


@dataclass(frozen=True)
class Book:
    """The entries that an end looks up: quantiles of a Gaussian in an order that `start` draws,
    until training makes `operands` of them, `each` to an entry."""

    start: int
    #: bits of an entry's number
    index: int
    each: int = 1
    operands: tuple[int, ...] = ()


@dataclass(frozen=True)
class End:
    """What becomes of the last register, the top, and of another one that it is brought with.

    tail      of every field of the register the given bits, added to the top's: values near zero
              and far out become what they are in a Gaussian, where a uniform field's are not; with
              `thinned` only those bits that this register has as well, one in four
    halves    two binary16 of the top plus two of the register, each of four binades; with one
              weight a step the top's halves together
    sum       the sum of the top's four bytes, and with two weights a step of the register's
    levels    bytes of the book that the top's nibbles number, from bit `bits` on: all of a nibble
              16 of them, its lower three bits 8, and other bits of the top are the signs
    table     entries of the book, of one or more weights each, that the top's bits number: in every
              part of it those from bit `bits` on, 0: the uppermost; with `signs` an entry's are
              turned by bits of the register
    """

    op: str
    register: int = 0
    bits: int = 0
    book: Book | None = None
    signs: bool = False
    thinned: int | None = None

    @property
    def registers(self) -> tuple[int, ...]:
        """Registers that it reads beside the top."""
        return (self.register,) if self.thinned is None else (self.register, self.thinned)

    def renumbered(self, number: Callable[[int], int]) -> End:
        """The same end of registers that are called otherwise, a tail's two in order; bits that
        one register has in common with itself are its own."""
        if self.thinned is None:
            return replace(self, register=number(self.register))
        low, high = sorted((number(self.register), number(self.thinned)))
        return replace(self, register=low, thinned=None if low == high else high)


@dataclass(frozen=True)
class Genome:
    """A program: the window's bits, weights per step, the steps, and the end.

    signs: a second plane has a plain bit for every weight, which turns its sign.
    """

    window: int
    lanes: int
    steps: tuple[Step, ...]
    end: End | None = None
    signs: bool = False

    def pruned(self) -> Genome:
        """Without steps that the word does not depend on, sources of sums in order."""
        needed = {len(self.steps), *(self.end.registers if self.end else ())}
        for place in range(len(self.steps), 0, -1):
            if place in needed:
                needed |= set(self.steps[place - 1].sources)
        kept = [place for place in range(1, len(self.steps) + 1) if place in needed]
        number = {0: 0, **{place: i for i, place in enumerate(kept, start=1)}}
        steps = []
        for place in kept:
            step = self.steps[place - 1]
            a, b = number[step.a], number.get(step.b, 0)
            low, high = (min(a, b), max(a, b)) if step.op in EITHER_ORDER else (a, b)
            steps.append(replace(step, a=low, b=high if step.op in TWO_SOURCES else 0))
        end = self.end.renumbered(number.__getitem__) if self.end else None
        return replace(self, steps=tuple(steps), end=end)
