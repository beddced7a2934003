"""Training of a program's book: Lloyd's algorithm where many states share an entry.

As in `train` the assignment is the best walk on the tail-biting ring and the update a mean, here of
all weights that an entry served in any state or lane, moved onto the operand's values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.interpret import all_states, registers
from unspool.encode.viterbi import viterbi
from unspool.errors import DeclarationError
from unspool.explore import score
from unspool.explore.books import grid
from unspool.explore.genome import TABLE, Genome
from unspool.explore.programs import book_of, name, operands, signed_by_top
from unspool.explore.score import Sample
from unspool.explore.space import Space
from unspool.spec.code import WORD_BITS, Code
from unspool.spec.program import STATE

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64

PRIOR = 8
"""Weights that the old value of an entry counts for: a table of 1,024 entries of four has 16 of
65,536 weights for each, whose mean alone is 6 % worse on others."""


class UntrainableError(DeclarationError):
    """A book that no training helps."""


@dataclass(frozen=True, kw_only=True)
class Ties:
    """Which operand of the book every lane of every state is, and with which sign."""

    place: Int64[np.ndarray, "states lanes"]
    sign: Float32[np.ndarray, "states lanes"]


def refined(
    space: Space, genome: Genome, sigma: float, sample: Sample, rounds: int
) -> tuple[Genome, float]:
    """The genome with a trained book, and its sigma.

    Raises UntrainableError where the values do not follow the weights: all states have one.
    """
    assert genome.end is not None
    code = space.code(genome, sigma)
    found, weights = ties(code, genome), score.gaussian(code, sample)
    values = grid(space.operand, not signed_by_top(genome))
    book = np.array(operands(genome, space.operand))
    planes = [(plane.window, plane.stride) for plane in code.planes]
    for _ in range(rounds):
        table = values.values[book]
        decoded = table[found.place] * found.sign
        states = viterbi(decoded / np.float32(sigma), planes, weights, threads=1)
        chosen = decoded[states].astype(np.float64)
        along = float((chosen * weights).sum())
        if along <= 0:
            raise UntrainableError("the values follow no weights", where=f"code {code.name}")
        sigma = float((chosen**2).sum()) / along
        book = values.nearest(_means(table / sigma, found, states, weights) * sigma)
    trained = replace(book_of(genome), operands=tuple(int(bits) for bits in book))
    return replace(genome, end=replace(genome.end, book=trained)), sigma


def ties(code: Code, genome: Genome) -> Ties:
    """What a genome's program looks up in which state."""
    found, lanes = registers(code.program, all_states(code)), range(genome.lanes)
    book, first = book_of(genome), WORD_BITS // 8 - genome.lanes
    top = found[f"r{len(genome.steps)}"]
    sign = np.ones((len(found[STATE]), genome.lanes), np.float32)
    if genome.end and genome.end.op == TABLE:
        numbers = [found[f"number{lane // book.each}"] for lane in lanes]
        place = [
            (number & np.uint32((1 << book.index) - 1)).astype(np.int64) * book.each
            + lane % book.each
            for lane, number in enumerate(numbers)
        ]
        if genome.end.signs:
            other = found[name(genome.end.register, genome)]
            at = [first + code.operand.bits - 1 for _, first in code.program.outputs]
            bits = [other >> np.uint32(bit) & 1 for bit in at]
            sign = np.where(np.stack(bits, axis=1), np.float32(-1), np.float32(1))
    else:
        shift = genome.end.bits if genome.end else 0
        mask = np.uint32((1 << book.index) - 1)
        place = [
            (top >> np.uint32(shift + 4 * (first + lane)) & mask).astype(np.int64) for lane in lanes
        ]
        if signed_by_top(genome):
            bits = [top >> np.uint32(8 * (first + lane) + 7) & 1 for lane in lanes]
            sign = np.where(np.stack(bits, axis=1), np.float32(-1), np.float32(1))
    if genome.signs:
        plain = found["plain"]
        bits = [plain >> np.uint32(genome.lanes - 1 - lane) & 1 for lane in lanes]
        sign = sign * np.where(np.stack(bits, axis=1), np.float32(-1), np.float32(1))
    return Ties(place=np.stack(place, axis=1), sign=sign)


def _means(
    old: Float32[np.ndarray, "operands"],
    found: Ties,
    states: np.ndarray,
    weights: Float32[np.ndarray, "rings steps lanes"],
) -> np.ndarray:
    """The mean weight of every operand of the book, with the old value as PRIOR weights."""
    places = found.place[states].ravel()
    signed = (found.sign[states] * weights).ravel()
    count = np.bincount(places, minlength=len(old))
    return (PRIOR * old + np.bincount(places, signed, minlength=len(old))) / (PRIOR + count)
