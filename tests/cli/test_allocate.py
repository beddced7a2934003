"""`unspool allocate`, and a model whose layers have different formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_a_plan_becomes_a_checkpoint_of_mixed_formats(run, tiny, text, tmp_path: Path):
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    asked = ("allocate", tiny, "-o", plan, "--bits", 2.5, "--calibration", text,
             "--calibration-tokens", 128, "--rounds", 1,
             "--formats", "t2-e2m1,t2.5-e2m3,t3-e2m3", "--json")  # fmt: skip
    told = run(*asked)
    assert told.code == 0, told.err
    assert told.json == json.loads(plan.read_text())
    assert told.json["bytes"] <= told.json["budget"]
    assert told.json["loss"] == min(told.json["losses"])
    assert len(set(told.json["formats"].values())) > 1
    assert told.json["worth"][0]["words"].startswith("0.1 bit more on")
    assert run(*asked, "--overwrite").json == told.json  # from what was measured before
    done = run("quantize", tiny, "-o", out, "--plan", plan, "--json")
    assert done.code == 0, done.err
    assert done.json["bytes"] == told.json["bytes"]
    shown = run("inspect", out, "--json")
    assert {x["name"]: x["format"] for x in shown.json["layers"]} == told.json["formats"]
    done = run("eval", out, "--baseline", tiny, "--text", text, "--window", 32, "--json")
    assert done.code == 0, done.err
    assert 0 < done.json["kl"] < 2


def test_a_plan_within_the_time_of_one_format_says_its_own(run, tiny, text, tmp_path: Path):
    plan = tmp_path / "plan.json"
    asked = ("allocate", tiny, "-o", plan, "--calibration", text, "--calibration-tokens", 64,
             "--rounds", 1, "--formats", "t2-e2m1,t2.5-e2m3,t3-e2m3")  # fmt: skip
    told = run(*asked, "--bits", 2.5, "--time", "h200:16", "--json")
    assert told.code == 0, told.err
    time = json.loads(plan.read_text())["time"]
    assert told.json["time"] == time
    assert (time["gpu"], time["batch"]) == ("h200", 16)
    assert time["status"] == "bounds; not run on a GPU"
    assert 0 < time["us"] <= time["budget_us"]
    assert told.json["loss"] <= told.json["losses"][0]
    between = run(*asked, "--bits", 2.3, "--time", "h200:16", "--json", "--overwrite")
    assert between.code == 0, between.err
    assert between.json["time"]["us"] <= between.json["time"]["budget_us"] <= time["budget_us"]
    short = run(*asked, "--bits", 2.5, "--time", "h200:16=0.5", "--overwrite")
    assert short.code == 2
    assert "found 0.500 us; allowed:" in short.err
    kept = run(*asked, "--bits", 2.5)
    assert kept.code == 2
    assert "a plan is there; allowed: another, --overwrite" in kept.err
    assert json.loads(plan.read_text())["time"]["batch"] == 16
    asked = (*asked, "--overwrite")
    wide = run(*asked, "--size", "1MB", "--time", f"RTX 5090:1={1e6}")
    assert wide.code == 0, wide.err
    assert "on rtx5090 (bounds; not run on a GPU), launches among them; a nanosecond" in wide.out
    assert "more is worth nothing: that budget does not bind" in wide.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "one of --bits and --size"),
        (("--bits", 9), "no such rate"),
        (("--size", "9 lightyears"), "--size"),
        (("--size", "1kB"), "too small"),
        (("--bits", 2, "--formats", "t9"), "no such format"),
        (("--bits", 2, "--time", "h300:1"), "no such GPU; found h300; allowed: h100"),
        (("--bits", 2, "--time", "h200"), "not a budget of time"),
        (("--bits", 2, "--time", "h200:0=3"), "not a budget of time"),
        (("--bits", 2, "--time", "h200:1=0.001"), "found 0.001 us; allowed: "),
    ],
)
def test_bad_input_is_explained(run, tiny, text, tmp_path, arguments, part):
    told = run("allocate", tiny, "-o", tmp_path / "p.json", "--calibration", text,
               "--calibration-tokens", 64, *arguments)  # fmt: skip
    assert told.code == 2
    assert part in told.err
    assert not (tmp_path / "p.json").exists()


def test_a_plan_of_another_model_is_refused(run, tiny, tmp_path):
    plan = tmp_path / "plan.json"
    for data, part in (
        ({"formats": {"nowhere": "t2-e2m1"}}, "lacks"),
        ({"formats": {}}, "not a plan"),
        ({"formats": {"model.layers.0.mlp.up_proj": "t2-e2m1"}}, "no format for a layer"),
    ):
        plan.write_text(json.dumps(data))
        told = run("quantize", tiny, "-o", tmp_path / "o", "--plan", plan)
        assert told.code == 2
        assert part in told.err
