from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from unspool.cli.terminal import byte_count, plain, print_json, print_table, progress


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_796_000, "1.80 MB"), (11_540_992, "11.5 MB"),
     (999_600, "1.00 MB"), (123_456_789_012, "123 GB")],
)  # fmt: skip
def test_bytes_have_three_digits(count, shown):
    assert byte_count(count) == shown


def test_json_has_no_numbers_that_json_lacks(capsys):
    print_json({"a": float("inf"), "b": (1, Path("c")), 2: True})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1, "c"], "2": True}


def test_plain_keeps_what_json_has():
    same = {"a": [1, 2.5, None, "text", False]}
    assert plain(same) == same


def test_a_table_in_a_pipe_is_not_cut(capsys):
    print_table("T", ("name", "value"), [("x" * 120, "1")])
    assert "x" * 120 in capsys.readouterr().out


def test_cells_are_no_markup(capsys):
    print_table("T", ("name",), [("[red]",)])
    assert "[red]" in capsys.readouterr().out


def test_no_progress_without_a_terminal(capsys):
    with progress("work") as advance:
        advance(1, 2, "half")
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_goes_to_stderr(monkeypatch, capsys):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("work") as advance:
        advance(1, 2, "second layer")
    assert "work" in screen.getvalue()
    assert capsys.readouterr().out == ""


def test_quiet_is_quiet_on_a_terminal(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("work", quiet=True) as advance:
        advance(1, 2, "")
    assert screen.getvalue() == ""
