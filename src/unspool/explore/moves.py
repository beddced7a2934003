"""How the explorer walks through its space: programs drawn at random, and changed a little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from unspool.decode.lower_steps import EVERY_BYTE
from unspool.explore.space import TWO_SOURCES, Genome, Space, Step

DRAWN: Mapping[str, float] = {
    "multiply": 0.25, "fold": 0.2, "permute": 0.25, "xor": 0.15, "add": 0.05, "shift": 0.05,
    "thin": 0.05,
}  # fmt: skip
"""How often each step is drawn."""

PRODUCTS = ("multiply", "fold")

TAILED = 0.3
"""Share of drawn genomes that have a tail, where the operand has room for one."""

MOST_STEPS = 6
WORD = 1 << 32


def drawn(space: Space, random: np.random.Generator) -> Genome:
    """A random genome: most have two or three steps, one of them a product."""
    window, lanes = space.shapes[int(random.integers(len(space.shapes)))]
    count = int(min(MOST_STEPS, 1 + random.geometric(0.45)))
    steps = [_step(random, place, window) for place in range(count)]
    place = int(random.integers(count))
    steps[place] = _step(random, place, window, str(random.choice(PRODUCTS)))
    genome = Genome(window, lanes, tuple(steps))
    tailed = space.room and random.random() < TAILED
    return (_tailed(random, genome, space.room) if tailed else genome).pruned()


def changed(space: Space, random: np.random.Generator, genome: Genome) -> Genome:
    """A genome one move away, or a few."""
    for _ in range(int(random.geometric(0.6))):
        genome = _moved(random, genome, space.room)
    return genome.pruned()


def _tailed(random: np.random.Generator, genome: Genome, room: int) -> Genome:
    """The genome with another tail: one to four bits of any register."""
    register = int(random.integers(len(genome.steps) + 1))
    return replace(genome, tail=(register, int(random.integers(1, room + 1))))


def _step(random: np.random.Generator, place: int, window: int, op: str | None = None) -> Step:
    """A random step that may read the registers 0 to `place`, the latest most often."""
    op = op or str(random.choice(list(DRAWN), p=list(DRAWN.values())))
    a = place if random.random() < 0.7 else int(random.integers(place + 1))
    b = int(random.integers(place + 1))
    constant, addend = _constants(random, op, window)
    return Step(op, a, b if op in TWO_SOURCES else 0, constant, addend)


def _constants(random: np.random.Generator, op: str, window: int) -> tuple[int, int]:
    if op in PRODUCTS:
        constant, addend = (int(each) for each in random.integers(0, WORD, 2))
        return constant | 1, addend if op == "multiply" else 0
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
    steps, move = genome.steps, random.random()
    place = int(random.integers(len(steps)))
    if move < 0.7:
        step = _changed_constant(random, steps[place], genome.window)
    elif move < 0.8:
        fresh = _step(random, place, genome.window, steps[place].op)
        step = replace(steps[place], a=fresh.a, b=fresh.b)
    elif move < 0.9 and len(steps) < MOST_STEPS:
        return _longer(random, genome, place)
    elif len(steps) > 1:
        return _shorter(genome, place)
    else:
        return genome
    return replace(genome, steps=(*steps[:place], step, *steps[place + 1 :]))


def _longer(random: np.random.Generator, genome: Genome, place: int) -> Genome:
    """With a new step before step `place`, which then reads it."""
    before, later = genome.steps[:place], genome.steps[place:]
    made = [_renumbered(step, place + 1, 1) for step in later]
    made[0] = replace(made[0], a=place + 1)
    steps = (*before, _step(random, place, genome.window), *made)
    return replace(genome, steps=steps, tail=_renumbered_tail(genome, place + 1, 1))


def _shorter(genome: Genome, place: int) -> Genome:
    """Without step `place`; who read it reads the register before."""
    later = [_renumbered(step, place + 1, -1) for step in genome.steps[place + 1 :]]
    tail = _renumbered_tail(genome, place + 1, -1)
    return replace(genome, steps=(*genome.steps[:place], *later), tail=tail)


def _renumbered(step: Step, first: int, by: int) -> Step:
    """The step where registers from `first` on have another number."""
    return replace(step, a=step.a + by * (step.a >= first), b=step.b + by * (step.b >= first))


def _renumbered_tail(genome: Genome, first: int, by: int) -> tuple[int, int] | None:
    if genome.tail is None:
        return None
    register, added = genome.tail
    return register + by * (register >= first), added


def _changed_constant(random: np.random.Generator, step: Step, window: int) -> Step:
    """New constants, or a bit or two of the old ones turned."""
    constant, addend = _constants(random, step.op, window)
    if step.op not in PRODUCTS or random.random() < 0.3:
        return replace(step, constant=constant, addend=addend)
    turned = sum({1 << int(bit) for bit in random.integers(1, 32, random.integers(1, 3))})
    if step.op == "multiply" and random.random() < 0.5:
        return replace(step, addend=step.addend ^ turned)
    return replace(step, constant=step.constant ^ turned)
