"""Programs as the explorer changes them: short lists of steps over one window of bits.

    register 0     the window
    register i     what step i does to earlier registers, see Step
    end            what becomes of the last register, see End; None: its fields are the weights

Two that differ in writing alone are one: `Genome.normal`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

TWO_SOURCES = ("xor", "add", "difference", "thin")
EITHER_ORDER = ("xor", "add")

TAIL, HALVES, SUM, LEVELS, TABLE = "tail", "halves", "sum", "levels", "table"

FOLD = "fold"

WORD_MASK = (1 << 32) - 1


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

    def normal(self) -> Genome:
        """The same program in one form: a multiply-add of one, a permute of one and a shift of one
        are one step, equal steps are one, sources of sums have an order, and nothing stands there
        that the word does not depend on, that changes nothing or that makes zeros of a register."""
        steps: list[Step] = []
        number = {0: 0}
        for place, step in enumerate(self.steps, start=1):
            b = number[step.b] if step.op in TWO_SOURCES else 0
            mine = replace(step, a=number[step.a], b=b)
            made = _simplified(mine, steps)
            last = place == len(self.steps)
            if isinstance(made, int) and last and (made != len(steps) or not steps):
                made = mine  # the top stands last, and is a step
            if isinstance(made, Step) and (last or made not in steps):
                steps.append(made)
                made = len(steps)
            number[place] = made if isinstance(made, int) else steps.index(made) + 1
        end = self.end.renumbered(number.__getitem__) if self.end else None
        return replace(self, steps=tuple(steps), end=end)._pruned()

    def _pruned(self) -> Genome:
        """Without steps that the word does not depend on."""
        needed = {len(self.steps), *(self.end.registers if self.end else ())}
        for place in range(len(self.steps), 0, -1):
            if place in needed:
                needed |= set(self.steps[place - 1].sources)
        kept = [place for place in range(1, len(self.steps) + 1) if place in needed]
        number = {0: 0, **{place: i for i, place in enumerate(kept, start=1)}}
        read = [self.steps[place - 1] for place in kept]
        steps = tuple(replace(s, a=number[s.a], b=number[s.b]) for s in read)
        end = self.end.renumbered(number.__getitem__) if self.end else None
        return replace(self, steps=steps, end=end)

    @property
    def untrained(self) -> Genome:
        """The genome as it was drawn: what training made of its book left out."""
        if self.end is None or self.end.book is None:
            return self
        book = replace(self.end.book, operands=())
        return replace(self, end=replace(self.end, book=book))


def _simplified(step: Step, before: Sequence[Step]) -> Step | int:
    """A step in its shortest form, or the register that it is."""
    same = step.op in TWO_SOURCES and step.a == step.b
    if same and step.op == "add":
        step = Step("multiply", step.a, constant=2)
    elif same:  # thin leaves it as it is; the others make zeros of it, which are of no use
        return step.a
    if step.op in EITHER_ORDER:
        return replace(step, a=min(step.a, step.b), b=max(step.a, step.b))
    inner = before[step.a - 1] if step.a else None
    if inner is None or inner.op != step.op:
        return step
    if step.op == "multiply":
        constant = inner.constant * step.constant & WORD_MASK
        addend = inner.addend * step.constant + step.addend & WORD_MASK
        return Step("multiply", inner.a, constant=constant, addend=addend)
    if step.op == "permute":
        named = [inner.constant >> 4 * (step.constant >> 4 * i & 3) & 3 for i in range(4)]
        return Step("permute", inner.a, constant=sum(n << 4 * i for i, n in enumerate(named)))
    if step.op == "shift" and inner.constant + step.constant < 32:
        return Step("shift", inner.a, constant=inner.constant + step.constant)
    return step
