"""How the explorer walks through its space: programs drawn at random, and changed a little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from unspool.decode.lower_steps import EVERY_BYTE
from unspool.explore.genome import (
    HALVES,
    LEVELS,
    SUM,
    TABLE,
    TAIL,
    TWO_SOURCES,
    Book,
    End,
    Genome,
    Step,
)  # fmt: skip
from unspool.explore.programs import FIELDS, SIGNED_INDEX
from unspool.explore.space import Space
from unspool.spec.code import WORD_BITS
from unspool.spec.operand import E4M3

DRAWN: Mapping[str, float] = {
    "multiply": 0.25, "fold": 0.2, "high": 0.05, "permute": 0.2, "xor": 0.15, "add": 0.05,
    "shift": 0.05, "thin": 0.05,
}  # fmt: skip
"""How often each step is drawn."""

PRODUCTS = ("multiply", "fold", "high")

DRAWN_INTEGERS: Mapping[str, float] = {
    "multiply": 0.25, "fold": 0.1, "high": 0.05, "permute": 0.15, "xor": 0.1, "add": 0.1,
    "shift": 0.05, "difference": 0.2,
}  # fmt: skip
"""The same to integers, whose uniform fields are uniform numbers."""

DIFFERENCES = tuple(bits * EVERY_BYTE for bits in (0x7F, 0x3F, 0x1F))
"""Bits of every byte that a difference is of."""

DRAWN_ENDS: Mapping[str, float] = {TAIL: 4, HALVES: 4, SUM: 3, LEVELS: 1, TABLE: 5}
"""How often each end is drawn, of those that an operand has."""

THINNED = 0.5
"""Share of tails of two registers' common bits."""

SIGNED = 0.05
"""Share of drawn genomes beside a plane of signs, at rates that have such."""

FROM = (0, 16)
"""Bits of the top from which on nibbles are cut: the upper ones of a product mix more."""

FROM_LOW = 2
"""The same for a table's numbers: four times a number is an address as it stands there."""

MOST_INDEX, MOST_LOOK_UPS = 12, 4
"""4,096 entries are 16 KiB of shared memory, which stages of codes need as well."""

MOST_STEPS = 6
WORD = 1 << 32

TRIES = 16
"""Of moves that leave a program as it is, before another is drawn."""

FIELDS_OF: Mapping[str, tuple[str, ...]] = {
    TAIL: ("register", "bits", "thinned"), HALVES: ("register",), SUM: ("register",)
}  # fmt: skip
"""What changes alone of each end; of those that have books, which are trained for it, nothing."""


def drawn(space: Space, random: np.random.Generator) -> Genome:
    """A random genome: most have two or three steps, one of them a product."""
    signs = bool(space.signed) and random.random() < SIGNED
    shapes = space.signed if signs else space.shapes
    window, lanes = shapes[int(random.integers(len(shapes)))]
    count = int(min(MOST_STEPS, 1 + random.geometric(0.45)))
    steps = [_step(space, random, place, window) for place in range(count)]
    place = int(random.integers(count))
    steps[place] = _step(space, random, place, window, str(random.choice(PRODUCTS)))
    genome = Genome(window, lanes, tuple(steps), signs=signs)
    often = 1.0 if space.end else FIELDS[space.operand].ended
    ended = space.ends(lanes) and random.random() < often
    return (_ended(space, random, genome) if ended else genome).normal()


def changed(space: Space, random: np.random.Generator, genome: Genome) -> Genome:
    """Another genome one move away, or a few."""
    for _ in range(TRIES):
        made = genome
        for _ in range(int(random.geometric(0.6))):
            made = _moved(space, random, made)
        if (made := made.normal()) != genome:
            return made
    return drawn(space, random)


def _ended(
    space: Space, random: np.random.Generator, genome: Genome, op: str | None = None
) -> Genome:
    """The genome with another end: which, of what register, and of a tail which bits."""
    able, register, thinned, bits = space.ends(genome.lanes), 0, None, 0
    often = np.array([DRAWN_ENDS[each] for each in able])
    if op is None:
        op = str(random.choice(able, p=often / often.sum())) if len(able) > 1 else able[0]
    if op == TAIL or (op in (HALVES, SUM) and genome.lanes > 1):
        register = int(random.integers(len(genome.steps) + 1))
    if op == TAIL:
        bits = int(random.integers(1, FIELDS[space.operand].room + 1))
        if random.random() < THINNED:
            registers = len(genome.steps) + 1
            thinned = (register + int(random.integers(1, registers))) % registers  # another one
    if op == LEVELS:
        bits = FROM[int(random.integers(len(FROM)))]
    if op not in (LEVELS, TABLE):
        return replace(genome, end=End(op, register, bits, thinned=thinned))
    book, signs = _book(space, random, genome, op), False
    if op == TABLE:
        room = WORD_BITS * book.each // genome.lanes - book.index
        bits = FROM_LOW if room >= FROM_LOW and random.random() < 0.5 else 0
        signs = book.each == genome.lanes and not space.operand.integer and random.random() < 0.5
        register = int(random.integers(len(genome.steps) + 1)) if signs else 0
    return replace(genome, end=End(op, register, bits, book, signs))


def _book(space: Space, random: np.random.Generator, genome: Genome, op: str) -> Book:
    """A book to train: how many entries, and of how many weights. Signs turn one word alone."""
    start, operand, lanes = int(random.integers(1 << 31)), space.operand, genome.lanes
    if op == LEVELS:
        eight = operand is E4M3 and random.random() < 0.5
        return Book(start, SIGNED_INDEX if eight else SIGNED_INDEX + 1)
    able = [
        each for each in (1, 2, 4)
        if lanes % each == 0 and each * FIELDS[operand].width <= WORD_BITS
        and lanes // each <= (1 if genome.signs else MOST_LOOK_UPS)
    ]  # fmt: skip
    each = able[-1] if random.random() < 0.5 else able[int(random.integers(len(able)))]
    most = min(MOST_INDEX, WORD_BITS // (lanes // each))
    return Book(start, int(random.integers(most - 2, most + 1)), each)


def _step(
    space: Space, random: np.random.Generator, place: int, window: int, op: str | None = None
) -> Step:
    """A random step that may read the registers 0 to `place`, the latest most often."""
    often = DRAWN_INTEGERS if space.operand.integer else DRAWN
    able = [each for each in often if place or each not in TWO_SOURCES]
    rates = np.array([often[each] for each in able])
    op = op or str(random.choice(able, p=rates / rates.sum()))
    a = place if random.random() < 0.7 else int(random.integers(place + 1))
    constant, addend = _constants(random, op, window if a == 0 else WORD_BITS)
    if op not in TWO_SOURCES or not place:
        return Step(op, a, constant=constant, addend=addend)
    b = (a + int(random.integers(1, place + 1))) % (place + 1)  # another one
    return Step(op, a, b, constant, addend)


def _constants(random: np.random.Generator, op: str, width: int) -> tuple[int, int]:
    """Those of a step that reads a register of so many bits."""
    if op in PRODUCTS:
        constant, addend = (int(each) for each in random.integers(0, WORD, 2))
        return constant | 1, addend if op == "multiply" else 0
    if op == "permute":
        places = random.integers(0, -(-width // 8), 4)
        return sum(int(place) << (4 * i) for i, place in enumerate(places)), 0
    if op == "thin":
        return int(random.integers(256)) * EVERY_BYTE, 0
    if op == "difference":
        return DIFFERENCES[int(random.integers(len(DIFFERENCES)))], 0
    return (int(random.integers(1, width)), 0) if op == "shift" else (0, 0)


def _moved(space: Space, random: np.random.Generator, genome: Genome) -> Genome:
    """One constant, one source, the end, one step more or one less."""
    if space.ends(genome.lanes) and random.random() < 0.2:
        return _other_end(space, random, genome)
    steps, move = genome.steps, random.random()
    place = int(random.integers(len(steps)))
    if move < 0.7:
        step = _changed_constant(random, steps[place], genome.window)
    elif move < 0.8:
        fresh = _step(space, random, place, genome.window, steps[place].op)
        step = replace(steps[place], a=fresh.a, b=fresh.b)
    elif move < 0.9 and len(steps) < MOST_STEPS:
        return _longer(space, random, genome, place)
    elif len(steps) > 1:
        return _shorter(genome, place)
    else:
        return genome
    return replace(genome, steps=(*steps[:place], step, *steps[place + 1 :]))


def _other_end(space: Space, random: np.random.Generator, genome: Genome) -> Genome:
    """With one thing of its end changed, with another end, or with none."""
    end, move = genome.end, random.random()
    if end is not None and end.op in FIELDS_OF and move < 0.5:
        names = FIELDS_OF[end.op]
        name = names[int(random.integers(len(names)))]
        other = _ended(space, random, genome, end.op).end
        return replace(genome, end=replace(end, **{name: getattr(other, name)}))
    if end is None or space.end or move < 0.85:
        return _ended(space, random, genome)
    return replace(genome, end=None)


def _longer(space: Space, random: np.random.Generator, genome: Genome, place: int) -> Genome:
    """With a new step before step `place`, which then reads it."""
    before, later = genome.steps[:place], genome.steps[place:]
    made = [_renumbered(step, place + 1, 1) for step in later]
    made[0] = replace(made[0], a=place + 1)
    steps = (*before, _step(space, random, place, genome.window), *made)
    return replace(genome, steps=steps, end=_renumbered_end(genome, place + 1, 1))


def _shorter(genome: Genome, place: int) -> Genome:
    """Without step `place`; who read it reads the register before."""
    later = [_renumbered(step, place + 1, -1) for step in genome.steps[place + 1 :]]
    end = _renumbered_end(genome, place + 1, -1)
    return replace(genome, steps=(*genome.steps[:place], *later), end=end)


def _renumbered(step: Step, first: int, by: int) -> Step:
    """The step where registers from `first` on have another number."""
    return replace(step, a=step.a + by * (step.a >= first), b=step.b + by * (step.b >= first))


def _renumbered_end(genome: Genome, first: int, by: int) -> End | None:
    return genome.end and genome.end.renumbered(lambda each: each + by * (each >= first))


def _changed_constant(random: np.random.Generator, step: Step, window: int) -> Step:
    """New constants, or a bit or two of the old ones turned."""
    constant, addend = _constants(random, step.op, WORD_BITS if step.a else window)
    if step.op not in PRODUCTS or random.random() < 0.3:
        return replace(step, constant=constant, addend=addend)
    turned = sum({1 << int(bit) for bit in random.integers(1, 32, random.integers(1, 3))})
    if step.op == "multiply" and random.random() < 0.5:
        return replace(step, addend=step.addend ^ turned)
    return replace(step, constant=step.constant ^ turned)
