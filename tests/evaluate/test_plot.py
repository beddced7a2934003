from __future__ import annotations

import importlib.util

import pytest

from unspool.errors import EvaluationError
from unspool.evaluate.plot import Point, plot_divergence

POINTS = [
    Point(name="t2", bits_per_weight=2.05, kl=0.12, kl_stderr=0.01, coded=True),
    Point(name="t3", bits_per_weight=3.05, kl=0.03, kl_stderr=0.004, coded=True),
    Point(name="mxfp4", bits_per_weight=4.25, kl=0.02, kl_stderr=0.003, coded=False),
    Point(name="the same", bits_per_weight=16, kl=0.0, kl_stderr=0.0, coded=False),
]


def test_the_picture_is_a_png_of_a_readable_size(tmp_path):
    plot_divergence(POINTS, "A title", tmp_path / "plot.png")
    content = (tmp_path / "plot.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(content[16:20]) == 1200


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r"unspool\[plot\]"):
        plot_divergence(POINTS, "A title", tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path):
    with pytest.raises(EvaluationError, match="the plot cannot be written; found No such file"):
        plot_divergence([], "nothing", tmp_path / "missing" / "plot.png")
