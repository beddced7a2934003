"""The examples run as their docstrings say, and print what they promise."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> str:
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_a_new_code_is_declared_and_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run("declare_a_code.py", capsys, monkeypatch)
    assert "256 states, values from -126 to 95" in out
    assert "2.004 bits per weight, mean squared error 0.09" in out


def test_a_model_is_quantized_from_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run("quantize_in_python.py", capsys, monkeypatch, str(tmp_path / "out"))
    assert "42 layers, 3.052 bits per weight" in out
    assert "the checkpoint gives the same logits: True" in out
