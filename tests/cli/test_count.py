"""`unspool count`: the figures, and what is said where they cannot be had."""

from __future__ import annotations

import json

import pytest

from unspool.cli.loops import products
from unspool.cli.main import BAD_INPUT, DONE, status
from unspool.decode.machine import MACHINES
from unspool.perf import toolchain
from unspool.perf.toolchain import why_not

counting = pytest.mark.skipif(bool(why_not()), reason=why_not() or "counting works")


@counting
def test_count_prints_one_document(capsys):
    command = ["count", "m2-e4m3-quick", "--target", "sm90", "--operand", "e4m3", "--json"]
    assert status(command) == DONE
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "compiled, counted, simulated; not run on a GPU"
    (row,) = document["counts"]
    assert row["total"] == pytest.approx(0.75, abs=0.01)
    assert {"alu", "fma", "lds", "cvt", "other", "registers", "spills"} <= set(row)


@counting
def test_count_of_a_whole_main_loop(capsys):
    command = ["count", "s3-e4m3", "--target", "sm90", "--loop", "--activations", "fp8", "--json"]
    assert status(command) == DONE
    document = json.loads(capsys.readouterr().out)
    (row,) = document["loops"]
    assert document["compiler"]
    assert row["columns"] == row["tokens"] == 16
    assert row["total"] == pytest.approx(row["decode"] + row["beside"])
    assert row["opcodes"]["QGMMA"] == 32


@counting
def test_without_a_target_those_that_have_such_a_thing_are_counted(capsys):
    assert (
        status(["count", "v1.5-e2m1", "--operand", "e2m1", "--container", "packed", "--json"])
        == DONE
    )
    document = json.loads(capsys.readouterr().out)
    assert [row["target"] for row in document["counts"]] == ["sm100", "sm120"]
    made = products(["v1.5-e2m1"], [*MACHINES.values()], "fp4", all_of_them=False)
    assert [each.machine.name for each in made] == ["sm100", "sm120"]


@counting
def test_count_prints_a_table(capsys):
    assert status(["count", "s2-e4m3", "--target", "sm120", "--container", "bytes"]) == DONE
    assert "permute-table" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing to count"),
        (["mxfp4", "--all"], "nothing to count"),
        (["mxfp4", "--target", "sm75"], "no such CUDA target"),
        (["mxfp4", "--target", "sm90", "--operand", "e2m1"], "the target has no such operand"),
        (["nf4", "--target", "sm90", "--operand", "e4m3"], "are not E4M3 times a power of two"),
        (["mxfp4", "--loop", "--record"], "a main loop has one operand"),
        (["mxfp4", "--tokens", "8"], "a decoder has no activations"),
        (["mxfp4", "--activations", "nope"], "a decoder has no activations"),
        (["mxfp4", "--loop", "--activations", "nope"], "nope"),
        (["nf4", "--operand", "e9m9"], "the target has no such operand"),
        (["t2-e2m1", "--loop", "--target", "sm80", "--activations", "fp8"], "as 8-bit floats"),
    ],
)
@counting
def test_what_cannot_be_counted_is_explained(arguments, reason, capsys):
    assert status(["count", *arguments]) == BAD_INPUT
    assert reason in capsys.readouterr().err


def test_without_the_tools_one_line_says_how_to_get_them(monkeypatch, capsys):
    monkeypatch.setattr(toolchain, "_nvrtc", lambda: None)
    assert status(["count", "mxfp4"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert "NVRTC not found" in error
    assert "pip install 'unspool[cuda]'" in error
