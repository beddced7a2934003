"""Formats to groups of layers under budgets: the exact least of the summed losses.

One binary variable per group and option, one option per group, one row per resource that has a
budget (bytes, predicted time): a multiple-choice knapsack, which HiGHS solves
(`scipy.optimize.milp`, the extra `allocate`). The dual of a row in the linear relaxation is the
price of its resource: what the loss falls per unit more.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from unspool.errors import ModelError, UnspoolError

NANOSECONDS = 1e9
"""Per second: what times are rounded to, so that their sums are exact."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a group costs in one format: stored bytes, predicted time, the loss expected of it."""

    format: str
    bytes: int
    loss: float
    #: whole nanoseconds; 0 where no time is asked for
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What options need and a budget limits, in whole units."""

    of: Callable[[Option], int]
    #: an amount in words
    shown: Callable[[int], str]
    #: formats that need less of it
    less: str

    def total(self, options: Sequence[Option]) -> int:
        """What all of them need."""
        return sum(self.of(option) for option in options)


BYTES = Resource(
    of=lambda option: option.bytes,
    shown=lambda amount: f"{amount:,} bytes",
    less="formats of fewer bits",
)

TIME = Resource(
    of=lambda option: round(option.seconds * NANOSECONDS),
    shown=lambda amount: f"{amount / 1000:,.3f} us",
    less="formats that take less time",
)
"""In nanoseconds."""

Budget = Mapping[Resource, int]
"""The most of each limited resource."""


def fits(options: Sequence[Option], budget: Budget) -> bool:
    """Whether options are within a budget."""
    return all(resource.total(options) <= limit for resource, limit in budget.items())


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers that get one format, because they read the same activation; or one layer alone."""

    name: str
    layers: tuple[str, ...]
    weights: int
    #: (n, k) of each layer
    shapes: tuple[tuple[int, int], ...] = ()
    options: tuple[Option, ...]

    def option(self, fmt: str) -> Option:
        """The option of that format."""
        return next(option for option in self.options if option.format == fmt)

    def step(self, now: Option) -> Option | None:
        """The larger option that saves the most loss per byte more; None where nothing does."""
        larger = [o for o in self.options if o.bytes > now.bytes and o.loss < now.loss]
        return max(larger, key=lambda option: _slope(now, option), default=None)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One option per group, in the groups' order; prices: loss saved per unit of a resource."""

    options: tuple[Option, ...]
    prices: Mapping[Resource, float]

    @property
    def loss(self) -> float:
        """The sum of the expected losses."""
        return sum(option.loss for option in self.options)


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a tenth of a bit more per weight is worth to groups of one kind and format."""

    kind: str
    layers: str
    format: str
    #: bytes of a tenth of a bit per weight of these groups
    bytes: float
    #: the loss that these bytes save at the rate of each group's next step
    loss: float

    def __str__(self) -> str:
        return f"0.1 bit more on {self.kind} of {self.layers} ({self.format}): {-self.loss:.2g}"


def check_scipy() -> None:
    """Raises UnspoolError where scipy is missing. Call it before long work."""
    _optimize()


def choose(groups: Sequence[Group], budget: Budget) -> Choice:
    """The options of least total loss within a budget.

    Raises ModelError, with the least of a resource that is enough, for a budget that is too small.
    """
    problem = _Problem(groups, tuple(budget))
    losses = [option.loss for group in groups for option in group.options]
    picked = problem.within(losses, budget)
    if picked is None:
        raise _too_small(problem, budget)
    return Choice(options=picked, prices=problem.prices(losses, budget))


def smallest(groups: Sequence[Group], budget: Budget) -> tuple[Option, ...]:
    """The options of fewest bytes within a budget; raises ModelError where none are."""
    problem = _Problem(groups, tuple({BYTES: 0, **budget}))
    picked = problem.least(BYTES, budget)
    if picked is None:
        raise _too_small(problem, budget)
    return picked


def _too_small(problem: _Problem, budget: Budget) -> ModelError:
    """The error of a budget: which limit is too small beside the others, and what would do."""
    for resource in reversed(tuple(budget)):
        others = {other: limit for other, limit in budget.items() if other is not resource}
        picked = problem.least(resource, others)
        if picked is not None:
            break
    else:  # none can be met whatever the others are
        resource, others = next(iter(budget)), {}
        picked = problem.least(resource, others)
    assert picked is not None
    beside = "".join(f" in {other.shown(limit)}" for other, limit in others.items())
    return ModelError(
        "the budget is too small for the quantized layers",
        found=resource.shown(budget[resource]),
        allowed=f"{resource.shown(resource.total(picked))} or more{beside}, or {resource.less}",
    )


def worth(groups: Sequence[Group], choice: Choice) -> list[Worth]:
    """What a tenth of a bit more is worth, dearest bytes first.

    Groups with the same last part of their name and the same format stand together.
    """
    kinds: dict[tuple[str, str], list[tuple[Group, Option]]] = {}
    for group, option in zip(groups, choice.options, strict=True):
        kinds.setdefault((_kind(group.name), option.format), []).append((group, option))
    found = [_worth(kind, fmt, members) for (kind, fmt), members in kinds.items()]
    return sorted(found, key=lambda each: each.loss / each.bytes, reverse=True)


def _worth(kind: str, fmt: str, members: Sequence[tuple[Group, Option]]) -> Worth:
    sizes = [0.1 * group.weights / 8 for group, _ in members]
    saved = 0.0
    for (group, option), size in zip(members, sizes, strict=True):
        step = group.step(option)
        saved += 0.0 if step is None else size * _slope(option, step)
    layers = _ranges([_place(group.name) for group, _ in members])
    return Worth(kind=kind, layers=layers, format=fmt, bytes=sum(sizes), loss=saved)


def _slope(now: Option, larger: Option) -> float:
    return (now.loss - larger.loss) / (larger.bytes - now.bytes)


def _kind(name: str) -> str:
    """The part of a group's name behind the number of its block."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[place + 1 :])


def _place(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _ranges(places: Sequence[int | None]) -> str:
    """`layers 0, 2-4`."""
    known = sorted(place for place in places if place is not None)
    if not known:
        return "the model"
    runs = [[known[0], known[0]]]
    for place in known[1:]:
        if place <= runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    shown = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
    return f"layer{'s' if len(set(known)) > 1 else ''} {shown}"


class _Problem:
    """The integer program: costs over their sum, a resource above each group's least in units of
    its common divisor."""

    def __init__(self, groups: Sequence[Group], resources: Sequence[Resource]) -> None:
        self._groups = groups
        pairs = [(place, o) for place, g in enumerate(groups) for o in g.options]
        self._owner = np.array([place for place, _ in pairs])
        self._one = (self._owner == np.arange(len(groups))[:, None]).astype(float)
        self._least: dict[Resource, int] = {}
        self._unit: dict[Resource, int] = {}
        self._row: dict[Resource, np.ndarray] = {}
        for resource in resources:
            least = [min(map(resource.of, group.options)) for group in groups]
            above = [resource.of(option) - least[place] for place, option in pairs]
            self._least[resource], self._unit[resource] = sum(least), gcd(*above) or 1
            self._row[resource] = np.array([a // self._unit[resource] for a in above], float)

    def within(self, costs: Sequence[float], budget: Budget) -> tuple[Option, ...] | None:
        """The options of least cost within a budget, None where there are none."""
        room = dict(budget)
        while True:
            # HiGHS takes a number within 1e-6 of 0 or 1 as whole, so that large layers can
            # overshoot by some bytes: then once more with that much less.
            picked = self._best(costs, room)
            if picked is None or fits(picked, budget):
                return picked
            for resource, limit in budget.items():
                room[resource] -= max(resource.total(picked) - limit, 0)

    def least(self, resource: Resource, budget: Budget) -> tuple[Option, ...] | None:
        """The options that need least of a resource within a budget."""
        return self.within(self._row[resource].tolist(), budget)

    def prices(self, costs: Sequence[float], budget: Budget) -> dict[Resource, float]:
        """What the relaxed optimum falls per unit more; 0 where a budget does not bind.

        Taken a little above the budget: at the smallest that is enough, where nothing is left to
        choose, any number above that price is a dual."""
        scaled, scale = _scaled(costs)
        rows = [self._row[resource] for resource in budget]
        above = [_NUDGE * row[row > 0].min() if row.any() else 0.0 for row in rows]
        found = _optimize().linprog(
            scaled,
            A_ub=np.array(rows),
            b_ub=self._room(budget) + np.array(above),
            A_eq=self._one,
            b_eq=np.ones(len(self._groups)),
            bounds=(0, 1),
            method="highs",
        )
        return {
            resource: max(-float(marginal) * scale / self._unit[resource], 0.0)
            for resource, marginal in zip(budget, found.ineqlin.marginals, strict=True)
        }

    def _best(self, costs: Sequence[float], budget: Budget) -> tuple[Option, ...] | None:
        if any(limit < self._least[resource] for resource, limit in budget.items()):
            return None
        optimize = _optimize()
        ones = np.ones(len(self._groups))
        rows = [*(self._row[resource] for resource in budget), *self._one]
        limits = optimize.LinearConstraint(
            np.array(rows),
            np.append(np.full(len(budget), -np.inf), ones),
            np.append(self._room(budget), ones),
        )
        found = optimize.milp(
            _scaled(costs)[0],
            constraints=limits,
            bounds=optimize.Bounds(0, 1),
            integrality=np.ones(len(costs)),
            options={"mip_rel_gap": 0.0},
        )
        if found.status == _INFEASIBLE:
            return None
        if found.x is None:
            raise ModelError("no allocation was found", found=found.message)
        places = [np.flatnonzero(self._owner == place) for place in range(len(self._groups))]
        return tuple(
            group.options[int(np.argmax(found.x[mine]))]
            for group, mine in zip(self._groups, places, strict=True)
        )

    def _room(self, budget: Budget) -> np.ndarray:
        room = [(limit - self._least[r]) // self._unit[r] for r, limit in budget.items()]
        return np.array(room, float)


_NUDGE = 0.01
"""Of the least that an option needs beyond its group's least."""

_INFEASIBLE = 2
"""Of scipy's statuses."""


def _scaled(costs: Sequence[float]) -> tuple[np.ndarray, float]:
    """Costs over the sum of their magnitudes, and that sum."""
    scale = float(np.abs(costs).sum()) or 1.0
    return np.array(costs) / scale, scale


def _optimize() -> Any:
    try:
        return importlib.import_module("scipy.optimize")
    except ModuleNotFoundError as error:
        raise UnspoolError(
            "allocation needs scipy", allowed="pip install 'unspool[allocate]'"
        ) from error
