"""The explorer: a search for codes that decode cheaply.

A generation is a batch of genomes, drawn or changed from parents, all from one seed, so that what
it finds does not depend on how many processes score it. A code is screened on a few weights; where
it comes near the front of its cost, it races on more, with other scales, and what is near the front
again is measured on enough to be believed. The log has a line per scored code and one at a
generation's end; a run that was stopped goes on after the last whole generation, with the same
numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from unspool import __version__
from unspool.decode.machine import machine
from unspool.errors import DeclarationError, UnspoolError
from unspool.explore.front import Found, Front, front
from unspool.explore.lines import read
from unspool.explore.moves import changed, drawn
from unspool.explore.score import (
    FINAL,
    RACE,
    SCREEN,
    Sample,
    best_sigma,
    distortion,
    estimated,
    fitted,
)
from unspool.explore.space import Genome, Space
from unspool.spec.operand import OPERANDS

BATCH = 64
FRESH = 0.25
"""Share of a generation that is drawn and not changed from a parent."""

NEAR, NEARER = 1.01, 1.0
"""How far above the front of its cost a code may be after the screen, after the race. The last
measure takes as long as 32 screens."""

DONE = "generation done"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is searched for; a log is of one of these."""

    bits: float
    operand: str
    target: str
    seed: int = 0
    #: bits that a step shares with the next; None: the space's own
    memory: int | None = None

    def space(self) -> Space:
        """Raises DeclarationError for an operand or rate without a space."""
        if self.operand not in OPERANDS:
            raise DeclarationError("no such operand", found=self.operand, allowed=OPERANDS)
        return Space.of(self.bits, OPERANDS[self.operand], self.memory)


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a search stands: the front, generations done, codes scored."""

    front: Front
    generation: int
    scored: int


Report = Callable[[State], None]


def explore(
    settings: Settings,
    *,
    goes_on: Callable[[State], bool],
    jobs: int = 1,
    log: Path | None = None,
    resume: bool = False,
    report: Report = lambda state: None,
) -> State:
    """Searches generation by generation while `goes_on`; what was found.

    Raises DeclarationError for settings without codes, UnspoolError for a log of other settings.
    """
    space = settings.space()
    machine(settings.target)
    state = _begun(settings, log, resume)
    with _mapper(jobs) as each:
        while goes_on(state):
            genomes = generation(space, settings.seed, state)
            tasks = [(settings, genome, state.front.best) for genome in genomes]
            found = [scored for scored in each(_score, tasks) if scored is not None]
            for scored in found:
                state.front.add(scored)
            if log:
                _append(log, found, state.generation, len(genomes))
            state = State(
                front=state.front,
                generation=state.generation + 1,
                scored=state.scored + len(genomes),
            )
            report(state)
    return state


def generation(space: Space, seed: int, state: State) -> list[Genome]:
    """The genomes of the next generation."""
    random = np.random.default_rng([seed, state.generation])
    parents = state.front.everyone()
    made = []
    for _ in range(BATCH):
        if not parents or random.random() < FRESH:
            made.append(drawn(space, random))
        else:
            parent = parents[int(random.integers(len(parents)))]
            made.append(changed(space, random, parent.genome))
    return list(dict.fromkeys(made))


def _score(task: tuple[Settings, Genome, Sequence[Found]]) -> Found | None:
    """The scored code of a genome; None where all its values are zero or no lowering serves."""
    settings, genome, best = task
    code = settings.space().code(genome)
    screen, race, final = (
        Sample(weights=weights, seed=settings.seed + i)
        for i, weights in enumerate((SCREEN, RACE, FINAL))
    )
    try:
        cost = estimated(code, machine(settings.target))
        code = fitted(code)
    except DeclarationError:
        return None
    rivals = [each for each in best if each.cost <= cost]
    screened = distortion(code, screen)
    found = Found(genome=genome, sigma=code.sigma or 0.0, cost=cost, screened=screened)
    if screened > NEAR * min((each.screened for each in rivals), default=1.0):
        return found
    code = best_sigma(code, replace(race, weights=SCREEN))
    screened, raced = distortion(code, screen), distortion(code, race)
    found = replace(found, sigma=code.sigma or 0.0, screened=screened, raced=raced)
    if raced > NEARER * min((each.raced or 1.0 for each in rivals), default=1.0):
        return found
    return replace(found, mse=float(f"{distortion(code, final):.5g}"))


@contextmanager
def _mapper(jobs: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """map over so many processes, results in order. They start anew: threads survive no fork."""
    if jobs == 1:
        yield map
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield lambda function, tasks: pool.map(function, tasks)


def _begun(settings: Settings, log: Path | None, resume: bool) -> State:
    """A new search, or one read back from its log."""
    if log is None or not (resume and log.exists()):
        if log is not None:
            if log.exists():
                raise UnspoolError(
                    "the log holds a search", where=str(log), allowed="--resume, a new file"
                )
            log.write_text(json.dumps(_asked(settings)) + "\n", encoding="utf-8")
        return State(front=Front(), generation=0, scored=0)
    lines = read(log)
    _check_same(lines, settings, log)
    done = [line for line in lines if DONE in line]
    last = max((line[DONE] for line in done), default=-1)
    found = [
        Found.from_json(line["found"]) for line in lines if line.get("generation", last + 1) <= last
    ]
    _rewrite(log, [line for line in lines if line.get("generation", last) <= last])
    return State(
        front=front(found), generation=last + 1, scored=sum(line["scored"] for line in done)
    )


def _check_same(lines: Sequence[Mapping[str, Any]], settings: Settings, log: Path) -> None:
    asked = _asked(settings)
    stored = lines[0] if lines else None
    if stored != asked:
        raise UnspoolError(
            "the log is of another search", where=str(log), found=stored, allowed=asked
        )


def _asked(settings: Settings) -> dict[str, Any]:
    """The first line of a log: all that its figures depend on."""
    return {"settings": asdict(settings), "weights": [SCREEN, RACE, FINAL], "version": __version__}


def _append(log: Path, found: Sequence[Found], number: int, scored: int) -> None:
    lines = [json.dumps({"generation": number, "found": each.to_json()}) for each in found]
    with log.open("a", encoding="utf-8") as file:
        file.write("\n".join([*lines, json.dumps({DONE: number, "scored": scored})]) + "\n")


def _rewrite(log: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """The same log without what stands behind its last whole generation."""
    beside = log.with_name(log.name + ".part")
    beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    beside.replace(log)
