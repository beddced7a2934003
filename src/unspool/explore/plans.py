"""The plan of a model: formats by measured losses, solved, measured again around what was chosen.

start     every group in the largest uniform format within the budget, or else what is smallest
a round   each group in turn in other formats, the rest as they are: what the loss becomes
          HiGHS picks the formats of least summed change within the budget, whose loss is measured
end       the plan with the lowest measured loss, the start among them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unspool.explore.allocate import (
    BYTES,
    Budget,
    Choice,
    Group,
    Option,
    Resource,
    Worth,
    choose,
    fits,
    smallest,
    worth,
)
from unspool.explore.sensitivity import Gauge, Measured
from unspool.model.progress import Progress

ROUNDS = 3

REACH = (3, 1)
"""How many formats up and down are tried in the first round and in the later ones."""

Formats = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Formats by group. losses: KL on the calibration text, of the start and of each round."""

    groups: tuple[Group, ...]
    formats: Formats
    loss: float
    losses: tuple[float, ...]
    #: loss saved per unit more of a resource, by what was measured when this plan was chosen; of
    #: the start, around it
    prices: Mapping[Resource, float]
    worth: tuple[Worth, ...]

    def total(self, resource: Resource) -> int:
        """What the plan needs of a resource."""
        return resource.total([g.option(self.formats[g.name]) for g in self.groups])

    def layers(self) -> dict[str, str]:
        """The format of every layer."""
        return {layer: self.formats[g.name] for g in self.groups for layer in g.layers}


def allocated(
    groups: Sequence[Group],
    budget: Budget,
    gauge: Gauge,
    measured: Measured,
    *,
    rounds: int = ROUNDS,
    progress: Progress = lambda done, total, what: None,
) -> Allocation:
    """The plan of least measured loss within a budget.

    Raises ModelError, with the least that is enough, for a budget that is too small.
    """
    choose(groups, budget)  # refuses before anything is measured
    now = start(groups, budget)
    losses = [measured.kl(gauge, now)]
    plans: list[tuple[float, Formats, Choice, list[Group]]] = []
    for number in range(rounds):
        tried = _near(groups, now, REACH[min(number, len(REACH) - 1)])
        known = _losses(tried, now, losses[-1], gauge, measured, _step(progress, number, rounds))
        choice = choose(known, budget)
        if not plans:
            around = tuple(g.option(now[g.name]) for g in known)
            plans.append((losses[0], now, replace(choice, options=around), known))
        now = _formats(known, choice)
        losses.append(measured.kl(gauge, now))
        plans.append((losses[-1], now, choice, known))
    loss, formats, choice, known = min(plans, key=lambda plan: plan[0])
    return Allocation(
        groups=tuple(groups),
        formats=formats,
        loss=loss,
        losses=tuple(losses),
        prices=choice.prices,
        worth=tuple(worth(known, choice)),
    )


def start(groups: Sequence[Group], budget: Budget) -> Formats:
    """The largest uniform format within the budget; else the options of fewest bytes within it."""
    common = set.intersection(*({o.format for o in g.options} for g in groups))
    uniform = {name: [g.option(name) for g in groups] for name in common}
    able = [name for name, options in uniform.items() if fits(options, budget)]
    if able:
        largest = max(able, key=lambda name: (BYTES.total(uniform[name]), name))
        return {g.name: largest for g in groups}
    return {g.name: o.format for g, o in zip(groups, smallest(groups, budget), strict=True)}


def _near(groups: Sequence[Group], now: Mapping[str, str], reach: int) -> list[Group]:
    """The groups with the options that are at most so many sizes away from where they are."""
    found = []
    for group in groups:
        place = [o.format for o in group.options].index(now[group.name])
        options = group.options[max(0, place - reach) : place + reach + 1]
        found.append(replace(group, options=options))
    return found


def _losses(
    groups: Sequence[Group],
    now: Mapping[str, str],
    loss: float,
    gauge: Gauge,
    measured: Measured,
    progress: Progress,
) -> list[Group]:
    """The groups with what each option changes of the loss."""
    found, done, total = [], 0, sum(len(g.options) for g in groups)
    for group in groups:
        options: list[Option] = []
        for option in group.options:
            other = {**now, group.name: option.format}
            options.append(replace(option, loss=measured.kl(gauge, other) - loss))
            done += 1
            progress(done, total, group.name)
        found.append(replace(group, options=tuple(options)))
    return found


def _step(progress: Progress, number: int, rounds: int) -> Progress:
    return lambda done, total, what: progress(number * total + done, rounds * total, what)


def _formats(groups: Sequence[Group], choice: Choice) -> Formats:
    return {g.name: o.format for g, o in zip(groups, choice.options, strict=True)}
