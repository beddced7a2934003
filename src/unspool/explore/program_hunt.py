"""A hunt for programs to a GPU's operands: what the explorer draws, changes and scores there.

A code is screened on a few weights; where it comes near the front of its cost, it races on more,
with other scales, and what is near the front again is measured on enough to be believed.
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
from unspool.explore.space import Space
from unspool.spec.code import Code

NEAR, NEARER = 1.01, 1.0
"""How far above the front of its cost a code may be after the screen, after the race. The last
measure takes as long as 32 screens."""

CLASS = 0.125
"""Costs in instructions per weight that count as one."""


@dataclass(frozen=True, kw_only=True)
class ProgramHunt:
    """Programs of a space, by their cost on a CUDA target."""

    space: Space
    target: str
    seed: int
    cost_class: float = CLASS

    def asked(self) -> dict[str, Any]:
        """What its figures depend on beside the settings."""
        return {"weights": [score.SCREEN, score.RACE, score.FINAL]}

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
        """What a program is worth; None where all its values are zero or no lowering serves."""
        code = self.space.code(genome)
        screen, race, final = (
            score.Sample(weights=weights, seed=self.seed + i)
            for i, weights in enumerate((score.SCREEN, score.RACE, score.FINAL))
        )
        try:
            cost = score.estimated(code, machine(self.target))
            code = score.fitted(code)
        except DeclarationError:
            return None
        rivals = [each for each in best if each.cost <= cost]
        screened = score.distortion(code, screen)
        found = Found(genome=genome, sigma=code.sigma or 0.0, cost=cost, screened=screened)
        if screened > NEAR * min((each.screened for each in rivals), default=1.0):
            return found
        code = score.best_sigma(code, replace(race, weights=score.SCREEN))
        screened, raced = score.distortion(code, screen), score.distortion(code, race)
        found = replace(found, sigma=code.sigma or 0.0, screened=screened, raced=raced)
        if raced > NEARER * min((each.raced or 1.0 for each in rivals), default=1.0):
            return found
        return replace(found, mse=float(f"{score.distortion(code, final):.5g}"))
