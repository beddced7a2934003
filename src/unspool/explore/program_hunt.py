"""A hunt for programs to a GPU's operands: what the explorer draws, changes and scores there.

A code is screened on a few weights; where it comes near the front of its cost, it races on more,
with other scales, and what is near the front again is measured on enough to be believed. A book is
trained a little before the screen, on more weights before the race and the last measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unspool.decode.machine import machine
from unspool.errors import DeclarationError
from unspool.explore import moves, score
from unspool.explore.front import Found
from unspool.explore.genome import Genome
from unspool.explore.refine import UntrainableError, refined
from unspool.explore.space import Space
from unspool.spec.code import Code

NEAR, NEARER = 1.01, 1.0
"""How far above the front of its cost a code may be after the screen, after the race. The last
measure takes as long as 32 screens."""

ROUNDS = (2, 3, 2)
"""Of Lloyd's algorithm before the screen, the race and the last measure: as long as 4, 24 and 64
screens."""

MOST_EDGES = 1 << 34
"""Of a round of training: windows of 20 bits are trained on 65,536 weights, not on 262,144, for
which the last two rounds would take four minutes."""

CLASS = 0.125
"""Costs in instructions per weight that count as one."""


@dataclass(frozen=True, kw_only=True)
class ProgramHunt:
    """Programs of a space, by their cost on a CUDA target."""

    space: Space
    target: str
    seed: int
    #: instructions per weight that a program may take
    within: float | None = None
    cost_class: float = CLASS

    def asked(self) -> dict[str, Any]:
        """What its figures depend on beside the settings."""
        return {"weights": [score.SCREEN, score.RACE, score.FINAL, *score.TRAINED]}

    def drawn(self, random: np.random.Generator) -> Genome:
        """A random program."""
        return moves.drawn(self.space, random)

    def changed(self, random: np.random.Generator, parent: Genome) -> Genome:
        """One a move or a few away from a parent."""
        return moves.changed(self.space, random, parent)

    def code(self, genome: Genome, sigma: float) -> Code:
        """The code of a program."""
        return self.space.code(genome, sigma)

    def scored(self, genome: Genome, best: Sequence[Found]) -> Found | None:
        """What a program is worth; None where its values are all zero or do not follow any weights,
        no lowering serves, or it takes more instructions than it may."""
        code, target = self.space.code(genome), machine(self.target)
        try:
            cost = score.estimated(code, target)
            if self.within is not None and score.instructions(code, target) > self.within:
                return None
            code = score.fitted(code)
        except DeclarationError:
            return None
        try:
            return self._raced(genome, code, cost, best)
        except UntrainableError:
            return None

    def _raced(self, genome: Genome, code: Code, cost: float, best: Sequence[Found]) -> Found:
        screen, race, final = (
            score.Sample(weights=weights, seed=self.seed + i)
            for i, weights in enumerate((score.SCREEN, score.RACE, score.FINAL))
        )
        rivals = [each for each in best if each.cost <= cost]
        trained, code = self._trained(genome, code, 0)
        screened = score.distortion(code, screen)
        found = Found(genome=genome, sigma=code.sigma or 0.0, cost=cost, screened=screened)
        if screened > NEAR * min((each.screened for each in rivals), default=1.0):
            return found
        trained, code = self._trained(trained, code, 1)
        code = score.best_sigma(code, replace(race, weights=score.SCREEN))
        screened, raced = score.distortion(code, screen), score.distortion(code, race)
        found = Found(
            genome=trained, sigma=code.sigma or 0.0, cost=cost, screened=screened, raced=raced
        )
        if raced > NEARER * min((each.raced or 1.0 for each in rivals), default=1.0):
            return found
        trained, code = self._trained(trained, code, 2)
        mse = float(f"{score.distortion(code, final):.5g}")
        return replace(found, genome=trained, sigma=code.sigma or 0.0, mse=mse)

    def _trained(self, genome: Genome, code: Code, stage: int) -> tuple[Genome, Code]:
        """The genome with its book trained once more, and its code; without a book as it is."""
        if genome.end is None or genome.end.book is None or code.sigma is None:
            return genome, code
        weights = min(score.TRAINED[stage], MOST_EDGES // score.branches(code))
        sample = score.Sample(weights=weights, seed=self.seed + len(ROUNDS) + stage)
        genome, sigma = refined(self.space, genome, code.sigma, sample, ROUNDS[stage])
        return genome, score.with_sigma(self.space.code(genome), sigma)
