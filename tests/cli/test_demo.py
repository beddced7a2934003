"""The demo on a tiny model in place of the bundled one: what it writes, and that it can again."""

from __future__ import annotations

import json
import shutil

import pytest

from unspool.checkpoint.read import verify
from unspool.cli import bundled, demo
from unspool.errors import CheckpointError

from .conftest import write_model

COLUMNS = {
    "format",
    "bits_per_weight",
    "bytes",
    "perplexity",
    "kl",
    "top1",
    "tokens_per_second",
}


@pytest.fixture
def _tiny_demo(tmp_path, monkeypatch):
    model = write_model(tmp_path / "model", max_position_embeddings=512)
    shutil.copy(bundled.folder() / "heldout.txt", model)
    monkeypatch.setattr(bundled, "folder", lambda: model)
    monkeypatch.setattr(demo, "PARAGRAPH", 4)
    monkeypatch.setattr(demo, "FORMATS", ("t3-e2m3", "mxfp4"))
    monkeypatch.setattr("unspool.cli.eval.PROMPT_TOKENS", 8)


@pytest.mark.usefixtures("_tiny_demo")
def test_the_demo_measures_every_format_and_can_run_again(run, tmp_path):
    out = tmp_path / "out"
    found = run("demo", "-o", out, "--max-tokens", "512", "--json").json
    assert [row["format"] for row in found["formats"]] == ["bf16", *demo.FORMATS]
    assert (found["formats"][0]["kl"], found["formats"][0]["top1"]) == (0, 1)
    assert all(set(row) >= COLUMNS for row in found["formats"])
    assert found == json.loads((out / "results.json").read_text())
    assert (out / "kl-over-bits.png").read_bytes().startswith(b"\x89PNG")
    assert {"machine", "convention"} <= set(found)
    bits = {row["format"]: row["bits_per_weight"] for row in found["formats"]}
    assert bits["bf16"] == 16
    assert all(bits[name] == verify(out / name).bits_per_weight for name in demo.FORMATS)

    (out / "notes.txt").write_text("mine")
    again = run("demo", "-o", out, "--max-tokens", "512")
    assert again.code == 0
    assert "t3-e2m3 goes on" in again.out
    assert (out / "notes.txt").read_text() == "mine"


def test_the_demo_compares_coded_formats_with_the_plain_ones_of_hardware():
    assert demo.FORMATS == ("t4-e2m3", "t3-e2m3", "t2-e2m1", "nvfp4", "mxfp4")


def test_a_file_in_the_way_is_refused_before_any_work(run, tmp_path):
    (tmp_path / "out").write_text("a file")
    result = run("demo", "-o", tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert "cannot be made a folder" in result.err


def test_without_matplotlib_the_extra_is_named_before_any_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run("demo", "-o", tmp_path / "out")
    assert (result.code, list(tmp_path.iterdir())) == (2, [])
    assert result.err == "error: plots need matplotlib; allowed: pip install 'unspool[plot]'\n"


def test_results_that_cannot_be_written_are_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written; found No such file"):
        demo._write(tmp_path / "missing" / "results.json", {})
