"""What a search has found: the front of distortion against cost, and parents for what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from unspool.explore.genome import Book, End, Genome, Step
from unspool.explore.tables import TableGenome
from unspool.perf.strip_loop import StripShape

T = TypeVar("T")

KEPT = 8
"""Parents of one cost."""

BEHIND = 1.05
"""How far above the least error of its cost a parent may be, on the screen."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A code that was scored.

    Mean squared errors: screened on the small sample that all codes meet, raced on a larger one,
    mse on the one that is reported; None for a code that did not come so far.
    """

    #: a Genome of a program, or a TableGenome: of a hunt all are one kind
    genome: Any
    sigma: float
    cost: float
    screened: float
    raced: float | None = None
    mse: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` turns back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Found:
        """The entry that `to_json` wrote."""
        genome = data["genome"]
        made = _table(genome) if "shape" in genome else _program(genome)
        return cls(**{**data, "genome": made})


def _program(data: dict[str, Any]) -> Genome:
    steps = tuple(Step(**step) for step in data["steps"])
    return Genome(data["window"], data["lanes"], steps, _end(data["end"]), data["signs"])


def _end(data: dict[str, Any] | None) -> End | None:
    if data is None:
        return None
    book = data["book"] and Book(**{**data["book"], "operands": tuple(data["book"]["operands"])})
    return End(**{**data, "book": book})


def _table(data: dict[str, Any]) -> TableGenome:
    shape, entries = StripShape(**data["shape"]), tuple(data["entries"])
    return TableGenome(shape, data["start"], entries, data["sigma"])


@dataclass
class Front:
    """Codes that no other beats on both axes, and near ones; `add` keeps both.

    cost_class: costs in instructions per weight that count as one.
    """

    cost_class: float
    best: list[Found] = field(default_factory=list)
    parents: dict[int, list[Found]] = field(default_factory=dict)

    def add(self, found: Found) -> None:
        """Takes a scored code in where it belongs."""
        group = self.parents.setdefault(int(found.cost / self.cost_class + 1e-9), [])
        if all(found.genome != other.genome for other in group):
            group.append(found)
            group.sort(key=lambda each: each.screened)
            del group[KEPT:]
        if found.mse is not None:
            self.best = pareto([*self.best, found], lambda each: (each.cost, each.mse or 0.0))

    def everyone(self) -> list[Found]:
        """All parents that are not far behind, the cheapest first."""
        least, found = float("inf"), []
        for _, group in sorted(self.parents.items()):
            least = min(least, group[0].screened)
            found += [each for each in group if each.screened <= BEHIND * least]
        return found


def front(found: Iterable[Found], cost_class: float) -> Front:
    """The front of some scored codes."""
    made = Front(cost_class=cost_class)
    for each in found:
        made.add(each)
    return made


def pareto(found: Iterable[T], figures: Callable[[T], tuple[float, float]]) -> list[T]:
    """Those of lowest (cost, error) that no other has as low, the cheapest first; of equals the
    first."""
    kept: list[T] = []
    for each in sorted(found, key=figures):
        if not kept or figures(each)[1] < figures(kept[-1])[1]:
            kept.append(each)
    return kept
