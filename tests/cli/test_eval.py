from __future__ import annotations

import pytest

from .conftest import write_model

KEYS = {"perplexity", "kl", "top1", "tokens", "window", "bits_per_weight"}


@pytest.fixture(autouse=True)
def _short_speed_measurement(monkeypatch):
    monkeypatch.setattr("unspool.cli.eval.PROMPT_TOKENS", 8)


def test_a_checkpoint_against_its_original(run, tiny, checkpoint, text):
    found = run("eval", checkpoint, "--baseline", tiny, "--text", text, "--json").json
    assert set(found) >= KEYS
    assert found["kl"] > 3 * found["kl_stderr"] > 0
    assert 0 < found["top1"] < 1
    assert found["window"] == 256
    assert found["tokens"] % 255 == 0
    assert "non-overlapping windows of 256 tokens" in found["convention"]
    assert found["tokens_per_second"] > 0


def test_a_plain_model_without_a_baseline(run, tiny, text):
    found = run("eval", tiny, "--text", text, "--window", "32", "--max-tokens", "64", "--json").json
    assert found["kl"] is found["top1"] is found["baseline_perplexity"] is None
    assert (found["tokens"], found["window"], found["bits_per_weight"]) == (62, 32, 16)


def test_a_model_agrees_with_itself(run, tiny, text):
    options = ("--text", text, "--window", "32", "--max-tokens", "64", "--json")
    found = run("eval", tiny, "--baseline", tiny, *options).json
    assert (found["kl"], found["top1"]) == (0, 1)
    assert found["perplexity"] == found["baseline_perplexity"]


def test_the_bundled_model_brings_its_text(run):
    found = run("eval", "demo", "--window", "64", "--max-tokens", "128", "--json").json
    # Uniform guessing over its vocabulary would be 4096.
    assert 1 < found["perplexity"] < 400


def test_the_text_shows_the_figures_and_the_convention(run, tiny, checkpoint, text):
    options = ("--text", text, "--window", "32", "--max-tokens", "64")
    shown = run("eval", checkpoint, "--baseline", tiny, *options).out
    assert "KL divergence, nats" in shown
    assert "convention: exp of the mean negative log-likelihood" in shown


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "no text to evaluate on; allowed: --text FILE"),
        (("--text", "nowhere.txt"), "nowhere.txt: cannot be read; found No such file"),
        (("--text", "latin.txt"), "latin.txt: not a text in UTF-8"),
        (("--text", "short.txt"), "the text is shorter than a window"),
        (
            ("--text", "short.txt", "--window", "512"),
            "longer than the model's positions; found 512",
        ),
        (("--text", "short.txt", "--window", "4", "--baseline", "gone"), "gone: no such folder"),
        (("--text", "short.txt", "--window", "4", "--baseline", "other"), "another vocabulary"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line_and_exit_code_2(
    run, tiny, tmp_path, monkeypatch, options, complaint
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("Five or six tokens, no more.", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    if "other" in options:
        write_model(tmp_path / "other", vocab_size=4100)
    result = run("eval", tiny, *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert complaint in result.err
