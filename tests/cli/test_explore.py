"""`unspool explore`, and a code that it found in a model: quantized, stored, loaded, evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from unspool.explore import explorer, score, table_hunt
from unspool.explore.table_hunt import Effort


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "BATCH", 8)
    for name in ("SCREEN", "RACE", "FINAL"):
        monkeypatch.setattr(score, name, 1024)
    monkeypatch.setattr(score, "TRAINED", (1024, 1024, 1024))
    monkeypatch.setattr(score, "PUBLISHED", 1024)


def test_a_found_code_goes_through_a_model(run, goes_through, tmp_path: Path):
    file, plot, log = (tmp_path / name for name in ("code.json", "front.png", "log.jsonl"))
    told = run("explore", "--generations", 1, "--jobs", 1, "--save", file, "--plot", plot,
               "--log", log, "--json")  # fmt: skip
    assert told.code == 0, told.err
    rows = told.json["rows"]
    for row in rows:
        assert {"name", "mse", "total", "bits_per_weight", "operand", "target"} <= set(row)
    found = [row for row in rows if row["found"]]
    assert [r["total"] for r in found] == sorted(r["total"] for r in found)
    for row in found:
        assert row["predicted"]["device"] == "h200"
        assert 0 < row["predicted"]["fraction"] <= 1
    assert "exl3-mul1" in {row["name"] for row in rows if not row["found"]}
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(file.read_text())["name"] in {row["name"] for row in found}
    goes_through(file)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_a_table_found_for_a_cpu_goes_through_a_model(
    run, goes_through, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(table_hunt, "EFFORT", Effort(few=2048, many=4096))
    file = tmp_path / "table.json"
    told = run("explore", "--bits", 2, "--target", "avx512", "--operand", "e2m3", "--generations",
               1, "--jobs", 1, "--save", file, "--json")  # fmt: skip
    assert told.code == 0, told.err
    rows = {row["name"]: row for row in told.json["rows"]}
    found = [row for row in rows.values() if row["found"]]
    assert found
    for row in [*found, rows["t2-e2m1"], rows["m2-e2m1"]]:
        assert row["target"] == "avx512"
        assert row["total"] == pytest.approx(row["instructions_per_64_weights"] / 64)
    for name, why in (("m2-e4m3", "by its table"), ("qtip-1mad", "no int8"), ("E8P", "no kernel")):
        assert rows[name]["total"] is None
        assert why in rows[name]["source"]
    goes_through(file)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--operand", "e5m2"], "no codes"),
        (["--bits", "2.1"], "no codes"),
        (["--target", "avx512", "--operand", "e4m3"], "INT8, E2M3, E2M1"),
        (["--target", "avx512", "--bits", "2.1"], "no codes of this rate have a kernel"),
        (["--target", "sm70"], "sm70"),
        (["--resume"], "--log"),
        (["--within", "0"], "--within: not a number of instructions; found 0.0"),
        (["--within", "nan"], "--within"),
        (["--save", "code"], "allowed: *.json"),
        (["--save", "x.json", "--log", "x.json"], "one file for two things"),
        (["--plot", "x.xyz"], "no such kind of picture; found x.xyz"),
    ],
)
def test_bad_input_is_explained(run, arguments, part):
    told = run("explore", *arguments)
    assert told.code == 2
    assert part in told.err
