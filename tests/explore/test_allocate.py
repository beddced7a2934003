"""Formats under a budget: the solver finds the least there is, and rounds never end worse."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from unspool.errors import DeclarationError, ModelError, WeightError
from unspool.explore.allocate import BYTES, TIME, Group, Option, choose, fits, worth
from unspool.explore.plans import allocated, start
from unspool.explore.sensitivity import Layer, Measured, grouped
from unspool.explore.times import Step
from unspool.perf.bound import bound
from unspool.perf.device import DEVICES
from unspool.spec.catalog import parse

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
        found = choose(groups, {BYTES: budget})
        assert BYTES.total(found.options) <= budget
        assert found.loss == pytest.approx(best, abs=1e-9)
        assert found.prices[BYTES] >= 0


def timed_groups(seed: int) -> list[Group]:
    """Random groups whose options take whole nanoseconds that do not follow their bytes."""
    rng = np.random.default_rng(seed + 100)
    return [
        replace(g, options=tuple(replace(o, seconds=rng.integers(5, 50) / 1e9) for o in g.options))
        for g in random_groups(seed)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_under_two_budgets_the_choice_is_the_least_of_all_that_fit(seed):
    groups = timed_groups(seed)
    every = list(itertools.product(*(g.options for g in groups)))
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(12):
        # between the least and the most of each
        budget = {
            r: int(rng.integers(min(map(r.total, every)), max(map(r.total, every))))
            for r in (BYTES, TIME)
        }
        able = [options for options in every if fits(options, budget)]
        if not able:
            refused += 1
            in_bytes = [o for o in every if fits(o, {BYTES: budget[BYTES]})]
            told = TIME.shown(min(map(TIME.total, in_bytes)))
            with pytest.raises(ModelError, match=f"allowed: {told} or more in "):
                choose(groups, budget)
            continue
        found = choose(groups, budget)
        assert fits(found.options, budget)
        least = min(sum(o.loss for o in options) for options in able)
        assert found.loss == pytest.approx(least, abs=1e-9)
        assert all(price >= 0 for price in found.prices.values())
    assert refused < 12


def test_the_price_of_a_resource_is_what_the_loss_falls_per_unit():
    options = (
        Option(format="a", bytes=10, loss=9, seconds=30e-9),
        Option(format="b", bytes=20, loss=5, seconds=50e-9),
    )
    groups = [Group(name="x", layers=("x",), weights=80, options=options)]
    # bytes to spare: 4 of loss for 20 ns; time to spare: 4 for 10 bytes
    assert choose(groups, {BYTES: 99, TIME: 40}).prices == pytest.approx({BYTES: 0, TIME: 0.2})
    assert choose(groups, {BYTES: 15, TIME: 99}).prices == pytest.approx({BYTES: 0.4, TIME: 0})


@pytest.mark.parametrize("seed", range(4))
def test_at_the_smallest_budget_the_price_is_that_of_the_first_units_more(seed):
    groups = random_groups(seed)
    least = sum(min(o.bytes for o in g.options) for g in groups)
    steepest = max(
        (g.options[0].loss - o.loss) / (o.bytes - g.options[0].bytes)
        for g in groups
        for o in g.options[1:]
    )
    assert choose(groups, {BYTES: least}).prices[BYTES] == pytest.approx(steepest)


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        # x is a or b, y the same: 20 to 40 bytes, 100 to 60 ns
        ({BYTES: 40, TIME: 59}, "found 0.059 us; allowed: 0.060 us or more in 40 bytes"),
        ({BYTES: 30, TIME: 79}, "found 0.079 us; allowed: 0.080 us or more in 30 bytes"),
        ({BYTES: 19, TIME: 80}, "found 19 bytes; allowed: 30 bytes or more in 0.080 us"),
        ({BYTES: 19, TIME: 59}, "found 19 bytes; allowed: 20 bytes or more, or formats"),
    ],
)
def test_the_smallest_budget_that_is_enough_is_told_given_the_other(budget, told):
    options = (
        Option(format="a", bytes=10, loss=9, seconds=50e-9),
        Option(format="b", bytes=20, loss=5, seconds=30e-9),
    )
    groups = [Group(name=n, layers=(n,), weights=80, options=options) for n in "xy"]
    with pytest.raises(ModelError, match=told):
        choose(groups, budget)


def test_a_budget_that_is_too_small_is_told_the_smallest():
    with pytest.raises(ModelError, match=r"found 19 bytes; allowed: 20 bytes or more"):
        choose([group("x", (3, 2, 1)), group("y", (3, 2, 1))], {BYTES: 19})


def test_more_bytes_are_worth_most_where_they_save_most():
    groups = [group("layers.0.x", (9, 1, 0.9)), group("layers.1.y", (2, 1.9, 1.8))]
    told = worth(groups, choose(groups, {BYTES: 20}))
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
    budget = {BYTES: sum(g.option("b").bytes for g in groups)}
    plan = allocated(groups, budget, Additive(groups), Measured(None, 0))
    assert plan.loss == pytest.approx(choose(groups, budget).loss)
    assert plan.loss < plan.losses[0]
    assert plan.total(BYTES) <= budget[BYTES]
    assert set(plan.layers()) == {g.name for g in groups}


@pytest.mark.parametrize("together", [-0.9, 0.5, 5.0])
def test_a_plan_is_never_worse_than_one_format_for_all(together):
    groups = random_groups(4)
    budget = {BYTES: sum(g.option("b").bytes for g in groups)}
    gauge = Additive(groups, together)
    plan = allocated(groups, budget, gauge, Measured(None, 0))
    assert plan.loss == min(plan.losses) == gauge.kl(plan.formats)
    assert plan.loss <= gauge.kl(dict.fromkeys((g.name for g in groups), "b"))


class Jealous(Additive):
    """A gauge with a loss of its own as soon as two groups have left format b."""

    def kl(self, formats: Mapping[str, str]) -> float:
        return super().kl(formats) + 9.0 * (sum(f != "b" for f in formats.values()) > 1)


def test_the_price_of_a_start_that_wins_is_measured_around_it():
    groups = random_groups(4)
    budget = {BYTES: sum(g.option("b").bytes for g in groups)}
    gauge = Jealous(groups)
    plan = allocated(groups, budget, gauge, Measured(None, 0))
    begin = dict.fromkeys((g.name for g in groups), "b")
    assert plan.formats == begin
    around = [
        replace(g, options=tuple(
            replace(o, loss=gauge.kl({**begin, g.name: o.format}) - gauge.kl(begin))
            for o in g.options
        ))
        for g in groups
    ]  # fmt: skip
    assert plan.prices == pytest.approx(choose(around, budget).prices)


def test_with_the_time_of_one_format_for_all_a_plan_is_never_worse():
    groups = timed_groups(5)
    begin = [g.option("b") for g in groups]
    budget = {BYTES: BYTES.total(begin), TIME: TIME.total(begin)}
    plan = allocated(groups, budget, Additive(groups), Measured(None, 0))
    assert plan.loss <= sum(o.loss for o in begin)
    assert all(plan.total(resource) <= limit for resource, limit in budget.items())


def test_the_start_is_the_largest_uniform_format_that_fits():
    groups = random_groups(1)
    b = sum(g.option("b").bytes for g in groups)
    assert set(start(groups, {BYTES: b}).values()) == {"b"}
    assert set(start(groups, {BYTES: b - 1}).values()) == {"a"}


def test_measurements_are_kept_and_a_torn_line_is_none(tmp_path):
    groups, file = random_groups(2), tmp_path / "measured"
    budget = {BYTES: sum(g.option("b").bytes for g in groups)}
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


def test_a_group_takes_the_time_of_its_layers_one_after_the_other():
    step = Step(device=DEVICES["h200"], tokens=4)
    shapes = {"q": (512, 256), "k": (128, 256), "v": (128, 256)}
    layers = [Layer(name=f"layers.0.{x}_proj", shape=shape) for x, shape in shapes.items()]
    (group,) = step.timed(grouped(layers, ("t2-e2m1", "s3-e4m3")))
    for option in group.options:
        alone = [
            round(1e9 * bound(parse(option.format), step.device, n=n, k=k, m=4).seconds)
            for n, k in shapes.values()
        ]
        assert TIME.of(option) == sum(alone)


def test_options_without_a_kernel_are_left_out_and_a_group_without_any_is_named():
    step = Step(device=DEVICES["h200"], tokens=1)
    cut = "s2-e4m3:b16-fp16"  # blocks that end inside a step, which float16 alone can have
    wide = "m2-e4m3:b8-fp16"  # blocks that cut tiles of 16
    with pytest.raises(DeclarationError, match="cut its tiles"):
        step.seconds(wide, [(128, 128)])
    groups = grouped([Layer(name="layers.0.o_proj", shape=(128, 128))], (cut, wide))
    (left,) = step.timed(groups)
    assert [o.format for o in left.options] == [cut]
    alone = [replace(groups[0], options=(groups[0].option(wide),))]
    with pytest.raises(ModelError, match=r"layers\.0\.o_proj: no format of a group has a kernel"):
        step.timed(alone)


def test_experts_have_no_time():
    groups = grouped([Layer(name="layers.0.experts.3.w2", shape=(128, 128))], ("t2-e2m1",))
    with pytest.raises(ModelError, match="models without experts"):
        Step(device=DEVICES["h200"], tokens=1).timed(groups)


def test_a_group_that_no_format_fits_is_named():
    with pytest.raises(WeightError, match=r"layers\.0\.x"):
        grouped([Layer(name="layers.0.x", shape=(64, 8))], ("t3-e2m3:h128", "t2-e2m1:h128"))
