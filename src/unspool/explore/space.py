"""The space of codes that the explorer walks through: short programs over one window of bits.

    register 0     the window
    register i     what step i does to earlier registers, see Step
    word           the last register, all bits cleared that its fields must not have; with a tail
                   some bits of another register are added to every field: values near zero and
                   far out become what they are in a Gaussian, where a uniform field's are not
    lanes          fields of the word: nibbles from the top down are E2M1, bytes are E4M3 or E2M3

Every program of the space is total: fields that are masked so are never NaN or infinite. Two that
differ in the order of a sum or in steps that nothing reads are one: `Genome.pruned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from unspool.decode.lower_steps import EVERY_BYTE
from unspool.errors import DeclarationError
from unspool.spec.catalog.found import tile
from unspool.spec.catalog.multiply import E2M3_MASK, E4M3_MASK, XOR_AND
from unspool.spec.code import Code, Plane
from unspool.spec.operand import E2M1, E2M3, E4M3, Operand
from unspool.spec.program import STATE, Instruction, Program

TWO_SOURCES = ("xor", "add", "thin")
EITHER_ORDER = ("xor", "add")
MOST_WINDOW = 20

THIN = 0xE0
"""lop3 truth table of a & (b | c)."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Where an operand's lanes stand in the word, which bits of it they may have, and how large a
    number of a tail can be added to these: up to 0x27 E4M3 is 120 times its least value, so that
    CPUs multiply it in int8; without a carry into the sign in any case."""

    width: int
    mask: int | None
    room: int = 0


FIELDS: Mapping[Operand, Fields] = {
    E2M1: Fields(width=4, mask=None),
    E2M3: Fields(width=8, mask=E2M3_MASK),
    E4M3: Fields(width=8, mask=E4M3_MASK, room=8),
}


@dataclass(frozen=True)
class Step:
    """One step of a machine instruction; `b` and the constants count where its operation has them.

    multiply    a * constant + addend
    fold        low ^ high word of a * constant, 64 bits (IMAD.WIDE); a tail reads the low word
    permute     the bytes of a that the selector `constant` names
    shift       a >> constant
    xor, add    a ^ b, a + b
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
class Genome:
    """A program as the explorer changes it: the window's bits, weights per step, the steps, and
    the tail: a register, and which bits of each of its fields are added to the word's."""

    window: int
    lanes: int
    steps: tuple[Step, ...]
    tail: tuple[int, int] | None = None

    def pruned(self) -> Genome:
        """Without steps that the word does not depend on, sources of sums in order."""
        needed = {len(self.steps), self.tail[0] if self.tail else 0}
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
        tail = (number[self.tail[0]], self.tail[1]) if self.tail else None
        return replace(self, steps=tuple(steps), tail=tail)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Codes of a rate to an operand; (window, lanes) are the shapes that are tried."""

    bits: float
    operand: Operand
    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, bits: float, operand: Operand, memory: int | None = None) -> Space:
        """The space of a rate; raises DeclarationError where it is empty.

        `memory`: bits that a step's window shares with the next; by default 8, and 10 as well with
        two weights a step.
        """
        if not 0.5 <= bits <= 4:
            raise DeclarationError(
                "no codes of this rate", where="bits", found=bits, allowed="0.5 to 4"
            )
        if operand not in FIELDS:
            allowed = [each.name for each in FIELDS]
            raise DeclarationError(
                "no codes to this operand", where="operand", found=operand.name, allowed=allowed
            )
        shapes = tuple(
            (stride + each, lanes)
            for lanes, memories in ((8, (8,)), (4, (8,)), (2, (8, 10)))
            if (stride := round(bits * lanes)) == bits * lanes
            and lanes * FIELDS[operand].width <= 32
            for each in (memories if memory is None else (memory,))
            if stride + each <= MOST_WINDOW
        )
        if not shapes:
            raise DeclarationError(
                "no codes of this rate", where="bits", found=bits,
                allowed=f"0.5, 1, 1.5, ... 4, windows of at most {MOST_WINDOW} bits",
            )  # fmt: skip
        return cls(bits=bits, operand=operand, shapes=shapes)

    def code(self, genome: Genome, sigma: float = 1.0, name: str = "found") -> Code:
        """The code of a genome."""
        fields, stride = FIELDS[self.operand], round(self.bits * genome.lanes)
        first = 32 - fields.width * genome.lanes
        return Code(
            name=name,
            planes=(Plane(window=genome.window, stride=stride),),
            lanes=genome.lanes,
            tile=tile(genome.lanes),
            operand=self.operand,
            program=Program(
                instructions=_instructions(genome, fields),
                outputs=tuple(("word", first + fields.width * i) for i in range(genome.lanes)),
            ),
            sigma=sigma,
        )

    @property
    def room(self) -> int:
        """The most that a tail may add to a field; 0 where there is none."""
        return FIELDS[self.operand].room


def _instructions(genome: Genome, fields: Fields) -> tuple[Instruction, ...]:
    made: list[Instruction] = []
    steps, mask = genome.steps, fields.mask
    word = "top" if genome.tail else "word"
    for place, step in enumerate(steps, start=1):
        last = place == len(steps)
        result = "word" if last and mask is None else f"r{place}"
        a, b = _name(step.a), _name(step.b)
        if step.op == "multiply":
            made.append(Instruction(f"p{place}", "mul", (a, step.constant)))
            made.append(Instruction(result, "add", (f"p{place}", step.addend)))
        elif step.op == "fold":
            halves = f"p{place}", f"h{place}"
            made.append(Instruction(halves[0], "mul", (a, step.constant)))
            made.append(Instruction(halves[1], "mul-high", (a, step.constant)))
            made.append(
                Instruction(word, "lop3", (*halves, mask, XOR_AND))
                if last and mask is not None
                else Instruction(result, "xor", halves)
            )
        elif step.op == "permute":
            made.append(Instruction(result, "permute-bytes", (a, 0, step.constant)))
        elif step.op == "shift":
            made.append(Instruction(result, "shr", (a, step.constant)))
        elif step.op == "thin":
            made.append(Instruction(result, "lop3", (a, b, step.constant, THIN)))
        elif step.op == "xor" and last and mask is not None and not _tail_is_last(genome):
            made.append(Instruction(word, "lop3", (a, b, mask, XOR_AND)))
        else:
            made.append(Instruction(result, step.op, (a, b)))
    if mask is not None and made[-1].result != word:
        made.append(Instruction(word, "and", (_name(len(steps)), mask)))
    if genome.tail:
        register, added = genome.tail
        folded = register > 0 and steps[register - 1].op == "fold"
        source = f"p{register}" if folded else _name(register)
        made.append(Instruction("tail", "and", (source, added * EVERY_BYTE)))
        made.append(Instruction("word", "add", (word, "tail")))
    return tuple(made)


def _tail_is_last(genome: Genome) -> bool:
    return genome.tail is not None and genome.tail[0] == len(genome.steps)


def _name(register: int) -> str:
    return f"r{register}" if register else STATE
