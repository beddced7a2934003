"""Tables trained for a CPU's kernels: the search's space, its scores, the same ones again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unspool.errors import DeclarationError
from unspool.explore import explorer, score
from unspool.explore.explorer import DONE, Settings, explore, scored
from unspool.explore.front import Found
from unspool.explore.table_hunt import Effort, TableHunt
from unspool.explore.tables import TableGenome, changed, code_of, drawn, shaken, shapes
from unspool.perf.strip_loop import StripShape, shape_of
from unspool.spec.operand import E2M3, INT8

RING = StripShape(window=7, plain=0, stride=2)
PLAIN = StripShape(window=5, plain=1)
PAIRS = StripShape(window=4, plain=2, lanes=2)
SETTINGS = Settings(bits=2, operand="INT8", target="avx512", seed=3)
SMALL = TableHunt(
    operand="INT8", costs={RING: 0.086, PLAIN: 0.105}, seed=3, effort=Effort(few=2048, many=4096)
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tables on few weights, and costs of no compiler."""
    monkeypatch.setattr(explorer, "BATCH", 4)
    for name in ("SCREEN", "RACE", "FINAL"):
        monkeypatch.setattr(score, name, 2048)
    monkeypatch.setattr(TableHunt, "of", lambda *arguments: SMALL)


def test_the_shapes_of_a_rate_are_those_that_were_compiled():
    assert set(shapes(2)) == {RING, PLAIN, StripShape(window=6, plain=1)}
    assert shapes(2, memory=4) == (PLAIN,)
    assert shapes(1.5) == (PAIRS,)
    with pytest.raises(DeclarationError, match=r"found 2, 9; allowed.*2 \(memory 4 or 5\)"):
        shapes(2, memory=9)


@pytest.mark.parametrize("shape", [RING, PLAIN, PAIRS], ids=str)
def test_the_code_of_a_table_has_the_shape_it_was_trained_for(shape):
    count = (1 << shape.window + shape.plain) * shape.lanes
    entries = tuple(int(bits) for bits in np.random.default_rng(0).integers(0, 64, count))
    code = code_of(TableGenome(shape, 0, entries), E2M3, 2.0)
    assert shape_of(code) == str(shape)
    assert code.bits_per_weight == shape.bits_per_weight


def test_a_shaken_table_is_near_the_one_it_was():
    entries = tuple(range(128))
    genome = TableGenome(RING, 5, entries, sigma=50.0)
    away = shaken(genome, INT8)[:, 0] - INT8.values()[:128].astype(np.float32) / 50
    assert 0 < np.sqrt(np.mean(away**2)) < 0.3


def only(genome: TableGenome, *best: Found) -> Found:
    (found,) = scored(SMALL, [genome], best)
    return found


def test_a_trained_table_is_better_than_levels_and_a_screened_one_is_a_parent():
    random = np.random.default_rng(1)
    tried = [only(drawn((RING,), random)) for _ in range(3)]
    best = min(tried, key=lambda found: found.mse or 1.0)
    assert best.mse is not None
    assert best.mse < 0.1175  # Lloyd and Max
    assert best.cost == 0.086
    rival = replace(best, screened=best.screened / 2)
    behind = only(changed(random, best.genome), rival)
    assert behind.mse is None
    assert len(behind.genome.entries) == 128
    dearer = replace(rival, cost=1.0)
    assert only(drawn((RING,), random), dearer).mse is not None


def test_what_is_found_survives_its_log():
    found = only(drawn((PLAIN,), np.random.default_rng(2)))
    assert Found.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_search_that_was_killed_goes_on_with_the_same_tables(tmp_path: Path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    state = explore(SETTINGS, goes_on=lambda state: state.generation < 3, log=whole)
    assert state.front.best
    lines = whole.read_text().splitlines(keepends=True)
    assert json.loads(lines[0])["instructions"] == {
        str(RING): 64 * 0.086, str(PLAIN): 64 * 0.105
    }  # fmt: skip
    ends = [i for i, line in enumerate(lines) if DONE in json.loads(line)]
    broken.write_text("".join(lines[: ends[1]]) + lines[ends[1]][:5])
    explore(SETTINGS, goes_on=lambda state: state.generation < 3, log=broken, resume=True)
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_costs_are_counted_in_machine_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    hunt = SETTINGS.hunt()
    assert isinstance(hunt, TableHunt)
    assert set(hunt.costs) == set(shapes(2))
    assert 4 < 64 * hunt.costs[RING] < 64 * hunt.costs[PLAIN] < 8
