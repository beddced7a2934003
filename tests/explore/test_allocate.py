"""Formats under a budget: the solver finds the least there is, and rounds never end worse."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from unspool.errors import ModelError, WeightError
from unspool.explore.allocate import Group, Option, choose, worth
from unspool.explore.plans import allocated, start
from unspool.explore.sensitivity import Layer, Measured, grouped

SIZES = {"a": 10, "b": 20, "c": 40}


def group(name: str, losses: tuple[float, ...], scale: int = 1) -> Group:
    options = tuple(
        Option(format=f, bytes=scale * size, loss=loss)
        for (f, size), loss in zip(SIZES.items(), losses, strict=True)
    )
    return Group(name=name, layers=(name,), weights=80 * scale, options=options)


def random_groups(seed: int) -> list[Group]:
    rng = np.random.default_rng(seed)
    return [
        group(f"layers.{i}.x", tuple(sorted(rng.random(3), reverse=True)), int(rng.integers(1, 4)))
        for i in range(5)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_least_of_all_that_fit(seed):
    groups = random_groups(seed)
    least = sum(min(o.bytes for o in g.options) for g in groups)
    for budget in (least, least + 37, least + 90, 10**6):
        every = itertools.product(*(g.options for g in groups))
        best = min(sum(o.loss for o in p) for p in every if sum(o.bytes for o in p) <= budget)
        found = choose(groups, budget)
        assert found.bytes <= budget
        assert found.loss == pytest.approx(best, abs=1e-9)
        assert found.price >= 0


def test_a_budget_that_is_too_small_is_told_the_smallest():
    with pytest.raises(ModelError, match=r"found 19 bytes; allowed: 20 bytes or more"):
        choose([group("x", (3, 2, 1)), group("y", (3, 2, 1))], 19)


def test_more_bytes_are_worth_most_where_they_save_most():
    groups = [group("layers.0.x", (9, 1, 0.9)), group("layers.1.y", (2, 1.9, 1.8))]
    told = worth(groups, choose(groups, 20))
    assert [each.kind for each in told] == ["x", "y"]
    assert str(told[0]).startswith("0.1 bit more on x of layer 0 (a): -0.8")


class Additive:
    """A gauge whose loss is a sum over groups, with a part that two groups share."""

    def __init__(self, groups: list[Group], together: float = 0.0) -> None:
        self.groups, self.together, self.calls = groups, together, 0

    def kl(self, formats: Mapping[str, str]) -> float:
        self.calls += 1
        losses = [g.option(formats[g.name]).loss for g in self.groups]
        return sum(losses) + self.together * losses[0] * losses[1]


def test_rounds_find_the_least_of_an_additive_loss():
    groups = random_groups(3)
    budget = sum(g.option("b").bytes for g in groups)
    plan = allocated(groups, budget, Additive(groups), Measured(None, 0))
    assert plan.loss == pytest.approx(choose(groups, budget).loss)
    assert plan.loss < plan.losses[0]
    assert plan.bytes <= budget
    assert set(plan.layers()) == {g.name for g in groups}


@pytest.mark.parametrize("together", [-0.9, 0.5, 5.0])
def test_a_plan_is_never_worse_than_one_format_for_all(together):
    groups = random_groups(4)
    budget = sum(g.option("b").bytes for g in groups)
    plan = allocated(groups, budget, Additive(groups, together), Measured(None, 0))
    assert plan.loss == min(plan.losses)


def test_the_start_is_the_largest_uniform_format_that_fits():
    groups = random_groups(1)
    b = sum(g.option("b").bytes for g in groups)
    assert set(start(groups, b).values()) == {"b"}
    assert set(start(groups, b - 1).values()) == {"a"}


def test_measurements_are_kept_and_a_torn_line_is_none(tmp_path):
    groups, file = random_groups(2), tmp_path / "measured"
    budget = sum(g.option("b").bytes for g in groups)
    gauge = Additive(groups)
    plan = allocated(groups, budget, gauge, Measured(file, 0))
    whole, first = file.read_text(), gauge.calls
    file.write_text(whole[:-9])
    again = Additive(groups)
    assert allocated(groups, budget, again, Measured(file, 0)) == plan
    assert again.calls == 1 < first
    other = Additive(groups)
    allocated(groups, budget, other, Measured(file, "other settings"))
    assert other.calls == first


def test_layers_that_read_one_activation_are_one_group():
    names = [f"model.layers.0.self_attn.{x}_proj" for x in "qkvo"]
    layers = [Layer(name=name, shape=(128, 128)) for name in names]
    found = grouped(layers, ("t2-e2m1", "t3-e2m3"))
    assert [g.layers for g in found] == [tuple(names[:3]), (names[3],)]
    assert [o.format for o in found[0].options] == ["t2-e2m1", "t3-e2m3"]
    assert found[0].weights == 3 * 128 * 128


def test_a_group_that_no_format_fits_is_named():
    with pytest.raises(WeightError, match=r"layers\.0\.x"):
        grouped([Layer(name="layers.0.x", shape=(64, 8))], ("t3-e2m3:h128", "t2-e2m1:h128"))
