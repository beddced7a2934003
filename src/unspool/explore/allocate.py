"""Formats to groups of layers under a budget of bytes: the exact least of the summed losses.

One binary variable per group and option, one option per group, one row for the bytes: a
multiple-choice knapsack, which HiGHS solves (`scipy.optimize.milp`, the extra `allocate`). The dual
of the bytes' row in its linear relaxation is the price: what the loss falls per byte more.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from unspool.errors import ModelError, UnspoolError


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a group costs in one format: stored bytes, and the loss that is expected of it."""

    format: str
    bytes: int
    loss: float


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
    """One option per group, in the groups' order, and the price of a byte: loss saved per byte."""

    options: tuple[Option, ...]
    price: float

    @property
    def bytes(self) -> int:
        """Stored bytes of all groups."""
        return sum(option.bytes for option in self.options)

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


def choose(groups: Sequence[Group], budget: int) -> Choice:
    """The options of least total loss whose bytes are at most `budget`.

    Raises ModelError, with the least bytes that are enough, for a budget that is too small.
    """
    least = sum(min(option.bytes for option in group.options) for group in groups)
    if budget < least:
        raise ModelError(
            "the budget is too small for the quantized layers",
            found=f"{budget:,} bytes",
            allowed=f"{least:,} bytes or more, or formats of fewer bits",
        )
    problem = _Problem(groups)
    spare = 0
    while True:
        # HiGHS takes a number within 1e-6 of 0 or 1 as whole, so that large layers can overshoot by
        # some bytes: then once more with that much less.
        picked = problem.best(budget - spare)
        over = sum(option.bytes for option in picked) - budget
        if over <= 0:
            return Choice(options=picked, price=problem.price(budget))
        spare += over


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
    """The integer program: losses over their sum, bytes above each group's least in units of their
    common divisor."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        pairs = [(place, o) for place, g in enumerate(groups) for o in g.options]
        self._owner = np.array([place for place, _ in pairs])
        least = [min(option.bytes for option in group.options) for group in groups]
        above = [option.bytes - least[place] for place, option in pairs]
        losses = np.array([option.loss for _, option in pairs])
        self._least, self._unit = sum(least), gcd(*above) or 1
        self._bytes = np.array([size // self._unit for size in above], float)
        self._scale = float(np.abs(losses).sum()) or 1.0
        self._losses = losses / self._scale
        self._one = (self._owner == np.arange(len(groups))[:, None]).astype(float)

    def best(self, budget: int) -> tuple[Option, ...]:
        optimize = _optimize()
        rows = np.vstack([self._bytes, self._one])
        ones = np.ones(len(self._groups))
        limits = optimize.LinearConstraint(
            rows, np.append(-np.inf, ones), np.append(self._room(budget), ones)
        )
        found = optimize.milp(
            self._losses,
            constraints=limits,
            bounds=optimize.Bounds(0, 1),
            integrality=np.ones(len(self._losses)),
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise ModelError("no allocation was found", found=found.message)
        places = [np.flatnonzero(self._owner == place) for place in range(len(self._groups))]
        return tuple(
            group.options[int(np.argmax(found.x[mine]))]
            for group, mine in zip(self._groups, places, strict=True)
        )

    def price(self, budget: int) -> float:
        """What the relaxed optimum falls per byte more; 0 where the budget does not bind."""
        found = _optimize().linprog(
            self._losses,
            A_ub=self._bytes[None],
            b_ub=[self._room(budget)],
            A_eq=self._one,
            b_eq=np.ones(len(self._groups)),
            bounds=(0, 1),
            method="highs",
        )
        return max(-float(found.ineqlin.marginals[0]) * self._scale / self._unit, 0.0)

    def _room(self, budget: int) -> float:
        return float(max((budget - self._least) // self._unit, 0))


def _optimize() -> Any:
    try:
        return importlib.import_module("scipy.optimize")
    except ModuleNotFoundError as error:
        raise UnspoolError(
            "allocation needs scipy", allowed="pip install 'unspool[allocate]'"
        ) from error
