"""Mixtures of experts by the command line."""

from __future__ import annotations

import json

from safetensors.torch import load_file, save_file

PROJECTIONS = ("gate_up_proj", "down_proj")


def test_the_foretold_sizes_are_those_of_the_checkpoint_and_tables_have_a_row_per_projection(
    run, mixture, tmp_path
):
    options = ["quantize", mixture, "--format", "t2-e2m1:h32"]
    planned = run(*options, "--dry-run", "--json").json
    done = run(*options, "-o", tmp_path / "out", "--json").json
    assert done["left_out"] == planned["left_out"] == []
    assert done["experts"] is None
    experts = [layer for layer in done["layers"] if ".experts." in layer["name"]]
    assert len(experts) == 2 * 4 * 2
    for key in ("bytes", "weights", "model_bytes", "model_weights"):
        assert done[key] == planned[key]
    shown = run("inspect", tmp_path / "out")
    assert shown.code == 0
    for name, shape in zip(PROJECTIONS, ("4 x 128 x 64", "4 x 64 x 64"), strict=True):
        lines = [line for line in shown.out.splitlines() if f"experts.*.{name}" in line]
        assert len(lines) == 2
        assert all(shape in line for line in lines)
    assert "experts.0." not in shown.out
    assert run("generate", tmp_path / "out", "--max-new-tokens", "2").code == 0


def test_the_reach_of_a_text_is_told(run, mixture, text, tmp_path):
    options = ["quantize", mixture, "--format", "t2-e2m1:h32"]
    options += ["--calibration", text, "--calibration-tokens", "256"]
    done = run(*options, "--work", tmp_path / "work", "-o", tmp_path / "a", "--json").json
    assert done["experts"]["experts"] == 8
    assert done["experts"]["unreached"] == 0
    guess = run(*options, "--dry-run", "--json").json["estimate"]
    assert guess["passes_seconds"] > 0
    log = (tmp_path / "work" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["experts"]["experts"] for line in log] == [4, 4]
    assert "reach of the text: 8 experts" in run(*options, "-o", tmp_path / "b").out
    found = run(*options, "--head", "int8", "-o", tmp_path / "c", "--json").json  # all in memory
    assert found["experts"] == done["experts"]


def test_experts_that_a_text_misses_end_the_run_unless_they_may_be_rounded_plainly(
    run, mixture, text, tmp_path
):
    blind = tmp_path / "blind"
    blind.mkdir()
    for path in mixture.iterdir():
        (blind / path.name).write_bytes(path.read_bytes())
    tensors = load_file(blind / "model.safetensors")
    routers = [name for name in tensors if name.endswith("mlp.gate.weight")]
    save_file(
        tensors | {name: 0 * tensors[name] for name in routers}, blind / "model.safetensors",
        metadata={"format": "pt"},
    )  # fmt: skip
    options = ["quantize", blind, "--format", "t2-e2m1:h32", "-o", tmp_path / "out", "--json"]
    plain = ["--unreached", "plain"]
    refused = run(*options, *plain)
    assert refused.code == 2
    assert "reach needs a text" in refused.err
    options += ["--calibration", text, "--calibration-tokens", "64"]
    refused = run(*options)
    assert refused.code == 2
    assert "no token of the calibration text reaches some layers" in refused.err
    assert "--unreached plain" in refused.err
    assert run(*options, *plain).json["experts"]["unreached"] == 4


def test_a_plan_has_one_format_for_the_experts_of_a_projection(run, mixture, tmp_path):
    plan = tmp_path / "plan.json"
    names = "t2-e2m1:h32,t3-e2m3:h32"
    given = ["--bits", "2.5", "--formats", names, "--rounds", "1", "--calibration-tokens", "64"]
    assert run("allocate", mixture, "-o", plan, *given).code == 0
    formats = json.loads(plan.read_text())["formats"]
    for name in PROJECTIONS:
        of = {formats[f"model.layers.0.mlp.experts.{e}.{name}"] for e in range(4)}
        assert len(of) == 1
    assert run("quantize", mixture, "--plan", plan, "-o", tmp_path / "out").code == 0
