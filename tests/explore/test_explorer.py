"""The explorer: the same codes from the same seed, nothing lost by a kill, logs of one search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from unspool.decode.machine import MACHINES
from unspool.errors import DeclarationError, UnspoolError
from unspool.explore import explorer, score
from unspool.explore.explorer import DONE, Settings, explore, scored
from unspool.explore.front import Found, front
from unspool.explore.genome import Genome, Step
from unspool.explore.lines import read
from unspool.explore.program_hunt import MARGIN
from unspool.explore.published import trellis
from unspool.explore.score import (
    SIGMAS,
    Sample,
    best_sigma,
    distortion,
    distortions,
    fitted,
    with_sigma,
)
from unspool.explore.workers import workers

SETTINGS = Settings(bits=1.5, operand="E2M1", target="sm120", seed=4, memory=4)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few codes on few weights."""
    monkeypatch.setattr(explorer, "BATCH", 6)
    for name in ("SCREEN", "RACE", "FINAL"):
        monkeypatch.setattr(score, name, 1024)
    monkeypatch.setattr(score, "TRAINED", (1024, 1024, 1024))


def entry(cost: float, mse: float, number: int = 0) -> Found:
    genome = Genome(16, 4, (Step("multiply", 0, constant=2 * number + 1),))
    return Found(genome=genome, sigma=1.0, cost=cost, screened=mse, raced=mse, mse=mse)


def test_the_front_keeps_what_no_other_beats_on_both_axes():
    made = front(
        [entry(1.0, 0.08), entry(1.0, 0.07, 1), entry(2.0, 0.075, 2), entry(0.5, 0.09, 3)], 1 / 8
    )
    assert [(f.cost, f.mse) for f in made.best] == [(0.5, 0.09), (1.0, 0.07)]
    near = entry(2.0, 0.0733, 4)
    made.add(near)
    assert [each.mse for each in made.everyone()] == [0.09, 0.07, near.mse]  # within 5 %


def test_what_is_found_depends_on_the_seed_alone_and_nothing_is_scored_twice(tmp_path: Path):
    logs = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for log, seed in zip(logs, (4, 4, 5), strict=True):
        asked = replace(SETTINGS, seed=seed)
        state = explore(asked, goes_on=lambda state: state.generation < 3, log=log)
    assert logs[0].read_bytes() == logs[1].read_bytes()
    assert logs[0].read_text().split("\n")[1:] != logs[2].read_text().split("\n")[1:]
    assert state.front.best
    assert 6 < state.scored <= 18
    found = [line["found"] for line in read(logs[0]) if "found" in line]
    drawn = [Found.from_json(each).genome.untrained for each in found]
    assert len(set(drawn)) == len(drawn) > 6


def test_a_search_that_was_killed_goes_on_with_the_same_codes(tmp_path: Path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    explore(SETTINGS, goes_on=lambda state: state.generation < 3, log=whole)
    lines = whole.read_text().splitlines(keepends=True)
    ends = [i for i, line in enumerate(lines) if DONE in json.loads(line)]
    for cut in (ends[0] + 1, ends[1], ends[1] + 2):
        broken.write_text("".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
        explore(SETTINGS, goes_on=lambda state: state.generation < 3, log=broken, resume=True)
        assert broken.read_bytes() == whole.read_bytes()


def test_a_log_is_of_one_search(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    explore(SETTINGS, goes_on=lambda state: False, log=log)
    with pytest.raises(UnspoolError, match="holds a search"):
        explore(SETTINGS, goes_on=lambda state: False, log=log)
    other = Settings(bits=2, operand="E2M1", target="sm120")
    with pytest.raises(UnspoolError, match="another search"):
        explore(other, goes_on=lambda state: False, log=log, resume=True)


def test_a_log_of_fewer_options_is_of_the_same_search_and_a_damaged_one_is_told(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    explore(SETTINGS, goes_on=lambda state: state.generation < 1, log=log)
    first, *lines = log.read_text().splitlines()
    older = json.loads(first)
    del older["settings"]["within"]
    log.write_text("\n".join([json.dumps(older), *lines]) + "\n")
    assert explore(SETTINGS, goes_on=lambda state: False, log=log, resume=True).generation == 1
    for text, what in (("{}", "not the log"), (f'{first}\n{{"generation": 0}}', "damaged line")):
        log.write_text("\n".join([text, *lines]) + "\n")
        with pytest.raises(UnspoolError, match=what):
            explore(SETTINGS, goes_on=lambda state: False, log=log, resume=True)


def test_settings_without_codes_are_refused_at_once():
    cpu = {"target": "avx512", "operand": "INT8"}
    for wrong in ({"operand": "E9M9"}, {"operand": "E5M2"}, {"target": "sm1"},
                  {"target": "avx512"}, {**cpu, "bits": 2.25}, {**cpu, "memory": 9}):  # fmt: skip
        settings = Settings(**{"bits": 2, "operand": "E4M3", "target": "sm90", **wrong})
        with pytest.raises(DeclarationError):
            explore(settings, goes_on=lambda state: True)


def test_codes_that_take_more_than_they_may_are_not_scored():
    bounded, free = (
        explore(replace(SETTINGS, within=within), goes_on=lambda state: state.generation < 3)
        for within in (0.6, None)
    )
    most = [
        max(
            score.instructions(
                score.lowered(SETTINGS.hunt().code(each.genome, 1.0), MACHINES["sm120"])
            )
            for each in state.front.everyone()
        )
        for state in (bounded, free)
    ]
    assert most[0] <= 0.6 + MARGIN < most[1]


def test_what_has_no_rival_races_and_what_is_far_behind_does_not():
    two = Settings(bits=2, operand="E4M3", target="sm90").hunt()
    genomes = [
        Genome(16, 4, (Step("multiply", 0, constant=constant, addend=5),))
        for constant in (0x97E6B60B, 1)
    ]
    alone, beside = scored(two, genomes, [])
    assert alone.mse is not None
    assert beside.screened > alone.screened
    assert beside.raced is None
    better = replace(alone, screened=alone.screened / 2)
    (behind,) = scored(two, genomes[:1], [better])
    assert (behind.raced, behind.mse) == (None, None)
    dearer = replace(better, cost=2 * alone.cost)
    assert scored(two, genomes[:1], [dearer]) == [alone]


def test_another_process_scores_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # the other one has the constants as they are
    genome = Genome(16, 4, (Step("multiply", 0, constant=0x97E6B60B, addend=5),))
    hunt = Settings(bits=2, operand="E4M3", target="sm90").hunt()
    with workers(2, None) as each:
        assert scored(hunt, [genome], [], each) == scored(hunt, [genome], [])


def test_scales_in_one_search_are_as_good_as_each_alone():
    """Not to the bit: values are divided by sigma where weights are multiplied by a factor."""
    code, sample = trellis(2)[0], Sample(weights=2048, seed=5)
    assert code.sigma is not None
    together = distortions(code, sample, SIGMAS)
    alone = [distortion(with_sigma(code, code.sigma * factor), sample) for factor in SIGMAS]
    assert together == pytest.approx(alone, rel=1e-3)
    assert best_sigma(code, sample).sigma == pytest.approx(
        code.sigma * SIGMAS[together.index(min(together))], rel=1e-3
    )


@pytest.mark.parametrize("code", trellis(2), ids=lambda code: code.name)
def test_published_codes_have_their_published_distortion(code):
    """QTIP's table 1 says .069 for 1MAD and 3INST; EXL3's codebooks are of the same kind."""
    assert distortion(code, Sample(weights=4096, seed=5)) == pytest.approx(0.069, rel=0.02)
    assert fitted(code).sigma == pytest.approx(code.sigma, rel=0.04)
