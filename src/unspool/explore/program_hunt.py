"""A hunt for programs to a GPU's operands: what the explorer draws, changes and scores there.

A code is screened on a few weights, races on more with other scales, and is measured on enough to
be believed. A book is trained a little before the screen, on more weights before the race and the
last measure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unspool.decode.lower import cost
from unspool.decode.machine import machine
from unspool.errors import DeclarationError
from unspool.explore import moves, score
from unspool.explore.front import Found
from unspool.explore.genome import Genome
from unspool.explore.refine import UntrainableError, refined
from unspool.explore.space import Space
from unspool.spec.code import Code

NEAR = 1.01, 1.002
"""How far above the front of its cost a code may be after the screen, after the race: to race takes
as long as 10 screens, the last measure as 32. Of two codes' ratio the deviation is 0.6 % on the
screen's weights, 0.3 % on the race's, 0.1 % on the last."""

ROUNDS = (2, 3, 2)
"""Of Lloyd's algorithm before the screen, the race and the last measure: as long as 4, 24 and 64
screens."""

MOST_EDGES = 1 << 34
"""Of a round of training: windows of 20 bits are trained on 65,536 weights, not on 262,144, for
which the last two rounds would take four minutes."""

CLASS = 0.125
"""Costs in instructions per weight that count as one."""


MARGIN = 0.25
"""Instructions per weight that our own lowering may have above those asked for: of the found codes
that are committed the compiler makes up to so many less (0.63 for 0.88), of one with a table 0.5,
and more only of those with two multiply-adds in a row, which are one now."""


@dataclass(frozen=True, kw_only=True)
class ProgramHunt:
    """Programs of a space, by their cost on a CUDA target."""

    space: Space
    target: str
    seed: int
    #: instructions per weight that a program may take
    within: float | None = None
    cost_class: float = CLASS
    near: tuple[float, float] = NEAR

    def asked(self) -> dict[str, Any]:
        """What its figures depend on beside the settings."""
        return {"weights": [score.SCREEN, score.RACE, score.FINAL, *score.TRAINED]}

    def drawn(self, random: np.random.Generator) -> Genome:
        """A random program."""
        return moves.drawn(self.space, random)

    def changed(self, random: np.random.Generator, parent: Genome) -> Genome:
        """One a move or a few away from a parent."""
        return moves.changed(self.space, random, parent)

    def drawn_as(self, genome: Genome) -> Genome:
        """Without what training made of its book."""
        return genome.untrained

    def code(self, genome: Genome, sigma: float) -> Code:
        """The code of a program."""
        return self.space.code(genome, sigma)

    def screened(self, genome: Genome) -> Found | None:
        """What a program is worth on few weights; None where its values are all zero or do not
        follow any weights, no lowering serves, or it takes more instructions than it may."""
        code = self.space.code(genome)
        try:
            lowered = score.lowered(code, machine(self.target))
            if score.instructions(lowered) > (self.within or np.inf) + MARGIN:
                return None
            code = score.fitted(code)
        except DeclarationError:
            return None
        code = score.best_sigma(code, self._sample(0, score.SCREEN // 4), score.FIRST_SIGMAS)
        try:
            genome, code = self._trained(genome, code, 0)
        except UntrainableError:
            return None
        figure = score.distortion(code, self._sample(0))
        return Found(genome=genome, sigma=code.sigma or 0.0, cost=cost(lowered), screened=figure)

    def raced(self, found: Found) -> Found:
        """Its book trained further, with the best of a few scales; as it is where that fails."""
        try:
            genome, code = self._trained(found.genome, self._code(found), 1)
        except UntrainableError:
            return found
        code = score.best_sigma(code, self._sample(1, score.SCREEN))
        screened, raced = (score.distortion(code, self._sample(stage)) for stage in (0, 1))
        return replace(
            found, genome=genome, sigma=code.sigma or 0.0, screened=screened, raced=raced
        )

    def measured(self, found: Found) -> Found:
        """Its book trained once more, and its error on the most weights; as it is where that
        fails."""
        try:
            genome, code = self._trained(found.genome, self._code(found), 2)
        except UntrainableError:
            return found
        mse = float(f"{score.distortion(code, self._sample(2)):.5g}")
        return replace(found, genome=genome, sigma=code.sigma or 0.0, mse=mse)

    def _code(self, found: Found) -> Code:
        return self.space.code(found.genome, found.sigma)

    def _sample(self, stage: int, weights: int | None = None) -> score.Sample:
        """The weights of the screen, the race and the last measure, the same for all codes; or so
        many of them."""
        all_of_them = (score.SCREEN, score.RACE, score.FINAL)[stage]
        return score.Sample(weights=weights or all_of_them, seed=self.seed + stage)

    def _trained(self, genome: Genome, code: Code, stage: int) -> tuple[Genome, Code]:
        """The genome with its book trained once more, and its code; without a book as it is."""
        if genome.end is None or genome.end.book is None or code.sigma is None:
            return genome, code
        weights = min(score.TRAINED[stage], MOST_EDGES // score.branches(code))
        sample = score.Sample(weights=weights, seed=self.seed + len(ROUNDS) + stage)
        genome, sigma = refined(self.space, genome, code.sigma, sample, ROUNDS[stage])
        return genome, score.with_sigma(self.space.code(genome), sigma)
