"""The calibration text: bundled, and apart from what figures are measured on."""

from __future__ import annotations

import numpy as np
import pytest

from unspool.cli.bundled import CALIBRATION, folder
from unspool.cli.inputs import calibration_windows
from unspool.evaluate.perplexity import tokenize
from unspool.model.load import load_tokenizer

WINDOW = 32


def token_windows(name: str) -> set[bytes]:
    text = (folder() / name).read_text(encoding="utf-8")
    ids = tokenize(text, load_tokenizer(folder())).numpy().astype(np.uint16)
    return {row.tobytes() for row in np.lib.stride_tricks.sliding_window_view(ids, WINDOW)}


def test_calibration_and_held_out_text_share_no_window_of_32_tokens() -> None:
    assert not token_windows(CALIBRATION) & token_windows("heldout.txt")


def test_the_word_demo_names_the_bundled_text() -> None:
    windows = calibration_windows("demo", str(folder()), 2000)
    assert windows is not None
    assert tuple(windows.shape) == (3, 512)


def test_quantizing_with_a_text_reports_its_tokens_and_tunes_on_them(run, tiny, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    options = ["--bits", "2", "--json", "--calibration", text, "--calibration-tokens", "64"]
    found = run(
        "quantize", tiny, "-o", tmp_path / "out", *options, "--importance", "--tune", "3"
    ).json
    assert found["calibration_tokens"] == 64
    assert found["tuned"]["parameters"] > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "64 tokens of a text, each weighed by the squared gradients" in card
    assert "tuned in 3 steps" in card
    plain = run("quantize", tiny, "-o", tmp_path / "plain", "--bits", "2", "--json").json
    assert plain["calibration_tokens"] == 0
    assert found["bytes"] == plain["bytes"]


@pytest.mark.parametrize(
    ("option", "what"), [(("--tune", "3"), "tuning"), (("--importance",), "importance")]
)
def test_what_needs_a_text_is_refused_without(run, tiny, tmp_path, option, what) -> None:
    result = run("quantize", tiny, "-o", tmp_path / "out", "--bits", "2", *option)
    assert result.code == 2
    assert f"{what} needs a text" in result.err


def test_a_run_with_a_work_folder_goes_on_and_refuses_other_settings(run, tiny, tmp_path) -> None:
    text, work = tmp_path / "text.txt", tmp_path / "work"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    options = ["--calibration", text, "--calibration-tokens", "64", "--work", work]
    assert run("quantize", tiny, "-o", tmp_path / "a", "--bits", "2", *options).code == 0
    again = run("quantize", tiny, "-o", tmp_path / "b", "--bits", "2", *options, "--resume")
    assert again.code == 0
    name = "model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = run("quantize", tiny, "-o", tmp_path / "c", "--bits", "3", *options, "--resume")
    assert other.code == 2
    assert "format: t2-e2m1 before, t3-e2m3 now" in other.err
    options += ["--bits", "2", "--importance"]
    other = run("quantize", tiny, "-o", tmp_path / "c", *options, "--resume")
    assert other.code == 2
    assert "importance: False before, True now" in other.err
