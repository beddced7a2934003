from __future__ import annotations

import json

import pytest

import unspool
from unspool.checkpoint.read import verify
from unspool.cli.inspect import CHECKS


def test_a_checkpoint_is_shown_and_verified(run, checkpoint):
    found, known = run("inspect", checkpoint, "--json").json, verify(checkpoint)
    assert found["quantized"] is True
    assert found["version"] == unspool.__version__
    assert found["format_version"] == 1
    assert found["verified"] == list(CHECKS)
    assert found["bits_per_weight"] == known.bits_per_weight
    assert found["bytes"] == sum(layer["bytes"] for layer in found["layers"])
    assert found["model_bytes"] == sum(kind["bytes"] for kind in found["types"].values())
    assert {n: f["content_hash"] for n, f in found["formats"].items()} == {
        name: fmt.content_hash for name, fmt in known.manifest.formats.items()
    }


def test_the_text_shows_layers_and_checks(run, checkpoint):
    shown = run("inspect", checkpoint).out
    assert "model.layers.0.self_attn.q_proj" in shown
    assert all(check in shown for check in CHECKS)


def test_a_plain_model_is_said_to_be_one(run, tiny):
    found = run("inspect", tiny, "--json").json
    assert (found["quantized"], found["model_type"]) == (False, "qwen3")
    assert "not quantized by unspool" in run("inspect", tiny).out


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def make_newer(folder):
    _change(folder, lambda declared: declared.update(format_version=2, version="9.0"))


def forge(folder):
    _change(folder, lambda declared: declared["formats"]["t3-e2m3"].update(scale="b128-fp16"))


def forget(folder):
    _change(folder, lambda declared: declared["layers"].popitem())


def remove(folder):
    (folder / "config.json").unlink()


def _change(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("verb", ["inspect", "generate", "eval"])
@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (truncate, "truncated"),
        (make_newer, "written in a newer format; unspool 9.0 or later reads it"),
        (forge, "a declaration does not match its content hash"),
        (forget, "a tensor is not declared"),
        (remove, "no config.json"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_checkpoint_is_refused_by_every_verb(run, damaged, text, verb, harm, complaint):
    harm(damaged)
    result = run(verb, damaged, *(("--text", text) if verb == "eval" else ()))
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert complaint in result.err
