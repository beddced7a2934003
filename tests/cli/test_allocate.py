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
    assert run(*asked).json == told.json  # from what was measured before
    done = run("quantize", tiny, "-o", out, "--plan", plan, "--json")
    assert done.code == 0, done.err
    assert done.json["bytes"] == told.json["bytes"]
    shown = run("inspect", out, "--json")
    assert {x["name"]: x["format"] for x in shown.json["layers"]} == told.json["formats"]
    done = run("eval", out, "--baseline", tiny, "--text", text, "--window", 32, "--json")
    assert done.code == 0, done.err
    assert 0 < done.json["kl"] < 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "one of --bits and --size"),
        (("--bits", 9), "no such rate"),
        (("--size", "9 lightyears"), "--size"),
        (("--size", "1kB"), "too small"),
        (("--bits", 2, "--formats", "t9"), "no such format"),
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
