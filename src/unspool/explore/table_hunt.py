"""A hunt for table codes of a CPU: random tables trained a little, the near ones much longer.

    draw       a table of a shape: random, or one of those found before with noise
    screen     Lloyd rounds on few rings; its error on weights it was not trained on
    race       the near ones go on with more rings
    final      moved onto the operand's values and trained there, measured on 262,144 weights

What a code costs is the loop of its shape in the machine code (`perf.strip_loop`), counted once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unspool.errors import DeclarationError
from unspool.explore import score, tables
from unspool.explore.front import Found
from unspool.explore.score import Sample, distortion
from unspool.explore.tables import TableGenome
from unspool.explore.train import gaussian, lloyd, onto, random_table
from unspool.perf.strip_loop import LINE, StripShape, count_strip
from unspool.spec.code import Code
from unspool.spec.operand import OPERANDS, Operand

TARGETS = ("avx512",)

ROUNDS, MORE_ROUNDS = 30, 10
"""Of Lloyd's algorithm: on few rings; then on many, before and on the operand's values."""

NEAR = 1.015, 1.003
"""How far above the front of its cost a table may be after the screen, after the race: training on
eight times the rings takes 1.4 % off (1.3 to 1.5 of the best of 12, in three shapes), the operand's
values add 0.1 %. To race takes as long as 3 screens, the rest as long as 15."""

CLASS = 0.005
"""Costs in instructions per weight that count as one: 0.3 per 64 weights tell shapes apart."""


@dataclass(frozen=True)
class Effort:
    """Weights that a table is trained on: all of them, and the near ones again."""

    few: int = 32768
    many: int = 262144


EFFORT = Effort()


@dataclass(frozen=True, kw_only=True)
class TableHunt:
    """Tables of an operand for the shapes of a rate; costs by shape in instructions per weight."""

    operand: str
    costs: Mapping[StripShape, float]
    seed: int
    effort: Effort = EFFORT
    cost_class: float = CLASS
    near: tuple[float, float] = NEAR

    @classmethod
    def of(
        cls,
        bits: float,
        operand: str,
        target: str,
        seed: int,
        memory: int | None = None,
        within: float | None = None,
    ) -> TableHunt:
        """The hunt of a rate, in shapes whose loops take so many instructions per weight at most.

        Raises DeclarationError where it has no codes, UnspoolError without g++.
        """
        allowed = [each.name for each in tables.OPERANDS]
        if operand not in allowed:
            raise DeclarationError(
                "no codes to this operand", where=target, found=operand, allowed=allowed
            )
        shapes = tables.shapes(bits, memory)
        costs = {shape: count_strip(target, shape).instructions / LINE for shape in shapes}
        able = {shape: cost for shape, cost in costs.items() if cost <= (within or np.inf)}
        if not able:
            raise DeclarationError(
                "no loop takes so few instructions per weight", where="--within", found=within,
                allowed=f"{min(costs.values()):.3f} or more",
            )  # fmt: skip
        return cls(operand=operand, costs=able, seed=seed, effort=EFFORT)

    def asked(self) -> dict[str, Any]:
        """What its figures depend on beside the settings: compilers differ in what they make."""
        return {
            "weights": [self.effort.few, self.effort.many, score.SCREEN, score.RACE, score.FINAL],
            "instructions": {str(shape): cost * LINE for shape, cost in self.costs.items()},
        }

    def drawn(self, random: np.random.Generator) -> TableGenome:
        """A random table to train."""
        return tables.drawn(tuple(self.costs), random)

    def changed(self, random: np.random.Generator, parent: TableGenome) -> TableGenome:
        """A found table to shake and train again."""
        return tables.changed(random, parent)

    def drawn_as(self, genome: TableGenome) -> TableGenome:
        """The table itself: trained ones begin where they ended."""
        return genome

    def code(self, genome: TableGenome, sigma: float) -> Code:
        """The code of a trained table."""
        return tables.code_of(genome, self._operand, sigma)

    def screened(self, genome: TableGenome) -> Found:
        """What becomes of a table that is trained on few weights."""
        trellis = tables.trellis(genome.shape)
        random = np.random.default_rng([self.seed, genome.start])
        values = (
            tables.shaken(genome, self._operand)
            if genome.entries
            else random_table(random, trellis)
        )
        values, _ = lloyd(values, trellis, self._few(genome.shape), ROUNDS, threads=1)
        return self._rounded(genome, values)

    def raced(self, found: Found) -> Found:
        """The same on many."""
        trellis, many = tables.trellis(found.genome.shape), self._many(found.genome.shape)
        values = tables.values_of(found.genome, self._operand)
        values, _ = lloyd(values, trellis, many, MORE_ROUNDS, threads=1)
        better = self._rounded(found.genome, values)
        return replace(better, raced=self._distortion(better, 1, score.RACE))

    def measured(self, found: Found) -> Found:
        """Trained on the operand's values, and measured."""
        trellis, many = tables.trellis(found.genome.shape), self._many(found.genome.shape)
        values = tables.values_of(found.genome, self._operand)
        trained = onto(self._operand, values, trellis, many, MORE_ROUNDS, threads=1)
        better = self._found(found.genome.shape, trained.bits.ravel(), trained.sigma)
        raced, mse = (
            self._distortion(better, number, weights)
            for number, weights in ((1, score.RACE), (2, score.FINAL))
        )
        return replace(better, raced=raced, mse=float(f"{mse:.5g}"))

    def _rounded(self, genome: TableGenome, values: np.ndarray) -> Found:
        """A table at its operand's nearest values, the largest of them the operand's."""
        known = self._operand.values()
        sigma = self._operand.largest / float(np.abs(values).max())
        bits = [int(np.abs(known - value).argmin()) for value in values.ravel() * sigma]
        return self._found(genome.shape, np.array(bits), sigma)

    def _found(self, shape: StripShape, bits: np.ndarray, sigma: float) -> Found:
        """A scored table, its error on the screen's weights."""
        sigma = float(f"{sigma:.4g}")
        genome = TableGenome(shape, 0, tuple(int(each) for each in bits), sigma)
        found = Found(genome=genome, sigma=sigma, cost=self.costs[shape], screened=0.0)
        return replace(found, screened=self._distortion(found, 0, score.RACE))

    def _distortion(self, found: Found, number: int, weights: int) -> float:
        code = self.code(found.genome, found.sigma)
        return distortion(code, Sample(weights=weights, seed=self.seed + number))

    def _few(self, shape: StripShape) -> np.ndarray:
        return self._weights(0, shape, self.effort.few)

    def _many(self, shape: StripShape) -> np.ndarray:
        return self._weights(1, shape, self.effort.many)

    def _weights(self, number: int, shape: StripShape, weights: int) -> np.ndarray:
        """What all tables of a search are trained on."""
        rings = max(1, weights // (tables.ROWS * tables.COLUMNS * shape.lanes))
        random = np.random.default_rng([self.seed, number, 1])
        return gaussian(random, tables.trellis(shape), rings)

    @property
    def _operand(self) -> Operand:
        return OPERANDS[self.operand]
