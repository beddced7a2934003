"""The explorer: a search for codes that decode cheaply.

A generation is a batch of genomes, drawn or changed from parents, all from one seed, so that what
it finds does not depend on how many processes score it. All are screened on few weights; those near
the front of their cost, to which the generation's own codes belong, race on more, and those near it
again are measured. What a genome is, and how it is scored, is the target's: programs for GPUs
(`program_hunt`), trained tables for CPUs (`table_hunt`). The log has a line per scored code and one
at a generation's end; a run that was stopped goes on after the last whole generation, with the same
numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unspool import __version__
from unspool.decode.machine import MACHINES
from unspool.errors import DeclarationError, UnspoolError
from unspool.explore.front import Found, Front, front
from unspool.explore.lines import read
from unspool.explore.program_hunt import ProgramHunt
from unspool.explore.space import Space
from unspool.explore.table_hunt import TARGETS, TableHunt
from unspool.explore.workers import Each, workers
from unspool.spec.code import Code
from unspool.spec.operand import OPERANDS

BATCH = 64
FRESH, OF_FRONT = 0.25, 0.35
"""Shares of a generation that are drawn, and changed from codes of the front; the rest are changed
from any parent."""

DONE = "generation done"


class Hunt(Protocol):
    """What is searched for a target: genomes, and what they are worth."""

    @property
    def cost_class(self) -> float:
        """Costs in instructions per weight that count as one."""

    @property
    def near(self) -> tuple[float, float]:
        """How far above the front of its cost a code may be after the screen, after the race."""

    def asked(self) -> dict[str, Any]:
        """What its figures depend on beside the settings."""

    def drawn(self, random: np.random.Generator) -> Any:
        """A random genome."""

    def changed(self, random: np.random.Generator, parent: Any) -> Any:
        """A genome near a scored one."""

    def drawn_as(self, genome: Any) -> Any:
        """What a scored genome was before it was trained."""

    def code(self, genome: Any, sigma: float) -> Code:
        """The code of a scored genome."""

    def screened(self, genome: Any) -> Found | None:
        """What a genome is worth on few weights; None where it has no code."""

    def raced(self, found: Found) -> Found:
        """The same on more weights, its scale or table fitted to them."""

    def measured(self, found: Found) -> Found:
        """The same on enough weights to be believed."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is searched for; a log is of one of these."""

    bits: float
    operand: str
    target: str
    seed: int = 0
    #: bits that a step shares with the next; None: the space's own
    memory: int | None = None
    #: weights a step, and the programs' end; None: all
    lanes: int | None = None
    end: str | None = None
    #: instructions per weight that a program may take; None: any
    within: float | None = None

    @classmethod
    def of(
        cls,
        bits: float,
        operand: str | None,
        target: str,
        seed: int,
        memory: int | None,
        lanes: int | None = None,
        end: str | None = None,
        within: float | None = None,
    ) -> Settings:
        """The settings of a command line: operands in small letters, E4M3 or INT8 by default."""
        usual = "int8" if target in TARGETS else "e4m3"
        name = (usual if operand is None else operand).upper()
        return cls(
            bits=bits, operand=name, target=target, seed=seed, memory=memory, lanes=lanes, end=end,
            within=within,
        )  # fmt: skip

    @property
    def command(self) -> str:
        """The command line of a search, without how long it was."""
        words = f"unspool explore --bits {self.bits:g} --operand {self.operand.lower()}"
        words += f" --target {self.target} --seed {self.seed}"
        asked = {name: getattr(self, name) for name in ("memory", "lanes", "end", "within")}
        return words + "".join(f" --{option} {value}" for option, value in asked.items() if value)

    @property
    def on_cpu(self) -> bool:
        """Whether the target is a CPU's."""
        return self.target in TARGETS

    def hunt(self) -> Hunt:
        """Raises DeclarationError for a target, operand or rate without codes."""
        if self.operand not in OPERANDS:
            raise DeclarationError("no such operand", found=self.operand, allowed=OPERANDS)
        if self.on_cpu and (self.lanes or self.end):
            raise DeclarationError(
                "tables of a CPU have neither", where="--lanes, --end", found=self.target,
                allowed=MACHINES,
            )  # fmt: skip
        if self.on_cpu:
            return TableHunt.of(
                self.bits, self.operand, self.target, self.seed, self.memory, self.within
            )
        if self.target not in MACHINES:
            raise DeclarationError(
                "no such target", found=self.target, allowed=[*MACHINES, *TARGETS]
            )
        space = Space.of(self.bits, OPERANDS[self.operand], self.memory, self.lanes, self.end)
        return ProgramHunt(space=space, target=self.target, seed=self.seed, within=self.within)


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a search stands: the front, generations done, codes scored, genomes that have one."""

    front: Front
    generation: int
    scored: int
    seen: frozenset[Any] = frozenset()


Report = Callable[[State], None]


def explore(
    settings: Settings,
    *,
    goes_on: Callable[[State], bool],
    jobs: int = 1,
    ray: str | None = None,
    log: Path | None = None,
    resume: bool = False,
    report: Report = lambda state: None,
) -> State:
    """Searches generation by generation while `goes_on`; what was found.

    `jobs` processes, or Ray tasks where `ray` is an address, score the codes (`workers`). Raises
    DeclarationError for settings without codes, UnspoolError for a log of other settings.
    """
    hunt = settings.hunt()
    state = _begun(settings, hunt, log, resume)
    with workers(jobs, ray) as each:
        while goes_on(state):
            genomes = generation(hunt, settings.seed, state)
            found = scored(hunt, genomes, state.front.best, each)
            for code in found:
                state.front.add(code)
            if log:
                _append(log, found, state.generation, len(genomes))
            state = State(
                front=state.front,
                generation=state.generation + 1,
                scored=state.scored + len(genomes),
                seen=state.seen | {hunt.drawn_as(code.genome) for code in found},
            )
            report(state)
    return state


def generation(hunt: Hunt, seed: int, state: State) -> list[Any]:
    """The genomes of the next generation: none that has been scored."""
    random = np.random.default_rng([seed, state.generation])
    everyone, best = state.front.everyone(), state.front.best
    made = []
    for _ in range(BATCH):
        move = random.random()
        if not everyone or move < FRESH:
            made.append(hunt.drawn(random))
            continue
        parents = best if best and move < FRESH + OF_FRONT else everyone
        parent = parents[int(random.integers(len(parents)))]
        made.append(hunt.changed(random, parent.genome))
    return [each for each in dict.fromkeys(made) if hunt.drawn_as(each) not in state.seen]


def scored(
    hunt: Hunt, genomes: Sequence[Any], best: Sequence[Found], each: Each = map
) -> list[Found]:
    """The codes of genomes that have one: screened, and those near the front raced and measured."""
    found = [code for code in each(hunt.screened, genomes) if code]
    stages = (hunt.raced, attrgetter("screened")), (hunt.measured, attrgetter("raced"))
    for near, (further, figure) in zip(hunt.near, stages, strict=True):
        places = _near(found, best, near, figure)
        for place, code in zip(places, each(further, [found[at] for at in places]), strict=True):
            found[place] = code
    return found


def _near(
    found: Sequence[Found],
    best: Sequence[Found],
    near: float,
    figure: Callable[[Found], float | None],
) -> list[int]:
    """Places of the codes whose figure is near the least of those that cost no more."""
    figures = [(each.cost, least) for each in (*best, *found) if (least := figure(each))]
    return [
        place
        for place, code in enumerate(found)
        if (mine := figure(code))
        and mine <= near * min(least for cost, least in figures if cost <= code.cost)
    ]


def _begun(settings: Settings, hunt: Hunt, log: Path | None, resume: bool) -> State:
    """A new search, or one read back from its log."""
    if log is None or not (resume and log.exists()):
        if log is not None:
            if log.exists():
                raise UnspoolError(
                    "the log holds a search", where=str(log), allowed="--resume, a new file"
                )
            log.write_text(json.dumps(_asked(settings, hunt)) + "\n", encoding="utf-8")
        return State(front=Front(cost_class=hunt.cost_class), generation=0, scored=0)
    lines = read(log)
    _check_same(lines, _asked(settings, hunt), log)
    done = [line for line in lines if DONE in line]
    last = max((line[DONE] for line in done), default=-1)
    try:
        found = [
            Found.from_json(line["found"])
            for line in lines
            if line.get("generation", last + 1) <= last
        ]
    except (KeyError, TypeError) as error:
        raise UnspoolError("a damaged line", where=str(log), found=str(error)) from error
    _rewrite(log, [line for line in lines if line.get("generation", last) <= last])
    return State(
        front=front(found, hunt.cost_class),
        generation=last + 1,
        scored=sum(line["scored"] for line in done),
        seen=frozenset(hunt.drawn_as(each.genome) for each in found),
    )


def _check_same(lines: Sequence[Mapping[str, Any]], asked: Mapping[str, Any], log: Path) -> None:
    stored = lines[0] if lines else {}
    if "settings" not in stored:
        raise UnspoolError("not the log of a search", where=str(log))
    known, wanted = _flat(stored), _flat(asked)
    if known != wanted:
        other = [name for name in wanted if known.get(name) != wanted[name]]
        raise UnspoolError(
            "the log is of another search", where=str(log),
            found=", ".join(f"{name} {wanted[name]}" for name in other),
            allowed=", ".join(f"{name} {known.get(name)}" for name in other),
        )  # fmt: skip


def _flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """A log's first line without nesting; options that came later as they are if not given."""
    usual = {each.name: each.default for each in fields(Settings) if each.default is not MISSING}
    settings = {**usual, **line["settings"]}
    return {**settings, **{name: found for name, found in line.items() if name != "settings"}}


def _asked(settings: Settings, hunt: Hunt) -> dict[str, Any]:
    """The first line of a log: all that its figures depend on."""
    return {"settings": asdict(settings), **hunt.asked(), "version": __version__}


def _append(log: Path, found: Sequence[Found], number: int, scored: int) -> None:
    lines = [json.dumps({"generation": number, "found": each.to_json()}) for each in found]
    with log.open("a", encoding="utf-8") as file:
        file.write("\n".join([*lines, json.dumps({DONE: number, "scored": scored})]) + "\n")


def _rewrite(log: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """The same log without what stands behind its last whole generation."""
    beside = log.with_name(log.name + ".part")
    beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    beside.replace(log)
