"""The space of codes that the explorer walks through: short programs over one window of bits.

    register 0     the window
    register i     what step i does to earlier registers, see STEPS
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

import numpy as np

from unspool.decode.lower_steps import EVERY_BYTE
from unspool.errors import DeclarationError
from unspool.spec.catalog.multiply import E2M3_MASK, E4M3_MASK, XOR_AND
from unspool.spec.code import Code, Plane
from unspool.spec.operand import E2M1, E2M3, E4M3, Operand
from unspool.spec.program import STATE, Instruction, Program

STEPS: Mapping[str, float] = {
    "multiply": 0.4,  # a * constant + addend, one instruction
    "permute": 0.2,  # the bytes of a that the selector `constant` names
    "xor": 0.2,  # a ^ b
    "add": 0.05,  # a + b
    "shift": 0.1,  # a >> constant
    "thin": 0.05,  # a & (b | constant), one instruction: bits that are rarely one
}
"""What a step may be, and how often it is drawn."""

TWO_SOURCES = ("xor", "add", "thin")
EITHER_ORDER = ("xor", "add")
MOST_STEPS = 6
MOST_WINDOW = 20
WORD = 1 << 32

RING = 64
"""Steps of a ring. With 32, walks through 256 nodes lose 0.5 % more to having to close."""

MOST_COLUMNS = 32
"""Columns of a tile. The four rings that a GPU's threads decode at a time are a step of a kernel;
wider ones leave a stage of memory with one step, and operands without a second buffer."""

THIN = 0xE0
"""lop3 truth table of a & (b | c)."""

TAILED = 0.3
"""Share of drawn genomes that have a tail where the operand has room for one."""


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
    """One step; `b` and the constants count where the operation has them."""

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
            tile=(8, min(RING // 8 * genome.lanes, MOST_COLUMNS)),
            operand=self.operand,
            program=Program(
                instructions=_instructions(genome, fields),
                outputs=tuple(("word", first + fields.width * i) for i in range(genome.lanes)),
            ),
            sigma=sigma,
        )

    def draw(self, random: np.random.Generator) -> Genome:
        """A random genome: most have two or three steps, one of them a multiplication."""
        window, lanes = self.shapes[int(random.integers(len(self.shapes)))]
        count = int(min(MOST_STEPS, 1 + random.geometric(0.45)))
        steps = [_step(random, place, window) for place in range(count)]
        place = int(random.integers(count))
        steps[place] = _step(random, place, window, "multiply")
        genome = Genome(window, lanes, tuple(steps))
        tailed = self.room and random.random() < TAILED
        return (_tailed(random, genome, self.room) if tailed else genome).pruned()

    def changed(self, random: np.random.Generator, genome: Genome) -> Genome:
        """A genome one move away, or a few."""
        for _ in range(int(random.geometric(0.6))):
            genome = _moved(random, genome, self.room)
        return genome.pruned()

    @property
    def room(self) -> int:
        """The most that a tail may add to a field."""
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
        made.append(Instruction("tail", "and", (_name(register), added * EVERY_BYTE)))
        made.append(Instruction("word", "add", (word, "tail")))
    return tuple(made)


def _tail_is_last(genome: Genome) -> bool:
    return genome.tail is not None and genome.tail[0] == len(genome.steps)


def _tailed(random: np.random.Generator, genome: Genome, room: int) -> Genome:
    """The genome with another tail: one to four bits of any register."""
    register = int(random.integers(len(genome.steps) + 1))
    return replace(genome, tail=(register, int(random.integers(1, room + 1))))


def _name(register: int) -> str:
    return f"r{register}" if register else STATE


def _step(random: np.random.Generator, place: int, window: int, op: str | None = None) -> Step:
    """A random step that may read the registers 0 to `place`, the latest most often."""
    op = op or str(random.choice(list(STEPS), p=list(STEPS.values())))
    a = place if random.random() < 0.7 else int(random.integers(place + 1))
    b = int(random.integers(place + 1))
    constant, addend = _constants(random, op, window)
    return Step(op, a, b if op in TWO_SOURCES else 0, constant, addend)


def _constants(random: np.random.Generator, op: str, window: int) -> tuple[int, int]:
    if op == "multiply":
        constant, addend = (int(each) for each in random.integers(0, WORD, 2))
        return constant | 1, addend
    if op == "permute":
        places = random.integers(0, -(-window // 8), 4)
        return sum(int(place) << (4 * i) for i, place in enumerate(places)), 0
    if op == "thin":
        return int(random.integers(256)) * EVERY_BYTE, 0
    return (int(random.integers(1, window)), 0) if op == "shift" else (0, 0)


def _moved(random: np.random.Generator, genome: Genome, room: int) -> Genome:
    """One constant, one source, the tail, one step more or one less."""
    if room and random.random() < 0.1:
        tailed = genome.tail is None or random.random() < 0.7
        return _tailed(random, genome, room) if tailed else replace(genome, tail=None)
    steps, move, tail = list(genome.steps), random.random(), genome.tail
    place = int(random.integers(len(steps)))
    step = steps[place]
    if move < 0.7:
        steps[place] = _changed_constant(random, step, genome.window)
    elif move < 0.8:
        fresh = _step(random, place, genome.window, step.op)
        steps[place] = replace(step, a=fresh.a, b=fresh.b)
    elif move < 0.9 and len(steps) < MOST_STEPS:
        later = [
            replace(s, a=s.a + (s.a >= place + 1), b=s.b + (s.b >= place + 1))
            for s in steps[place:]
        ]
        steps = [*steps[:place], _step(random, place, genome.window), *later]
        steps[place + 1] = replace(steps[place + 1], a=place + 1)
        tail = (tail[0] + (tail[0] >= place + 1), tail[1]) if tail else None
    elif len(steps) > 1:
        del steps[place]
        steps = [
            replace(s, a=s.a - (s.a > place), b=s.b - (s.b > place)) if i >= place else s
            for i, s in enumerate(steps)
        ]
        tail = (tail[0] - (tail[0] > place), tail[1]) if tail else None
    return replace(genome, steps=tuple(steps), tail=tail)


def _changed_constant(random: np.random.Generator, step: Step, window: int) -> Step:
    """New constants, or a bit or two of the old ones turned."""
    constant, addend = _constants(random, step.op, window)
    if step.op != "multiply" or random.random() < 0.3:
        return replace(step, constant=constant, addend=addend)
    turned = sum({1 << int(bit) for bit in random.integers(1, 32, random.integers(1, 3))})
    if random.random() < 0.5:
        return replace(step, addend=step.addend ^ turned)
    return replace(step, constant=step.constant ^ turned)
