"""`unspool bound`: a table or one document, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
FIGURES = ("memory", "tensor", "issue", "alu", "fma", "shared")


def test_bound_prints_one_document(run):
    told = run("bound", "m2-e4m3", "s3-e4m3", "--gpu", "h200", "--gpu", "B200", "--batch", "1,16",
               "--json")  # fmt: skip
    assert told.code == 0, told.err
    assert told.json["status"] == "bounds; not run on a GPU"
    rows = told.json["bounds"]
    assert [(r["format"], r["device"], r["m"]) for r in rows] == [
        (fmt, gpu, m) for fmt in ("m2-e4m3", "s3-e4m3") for gpu in ("h200", "b200") for m in (1, 16)
    ]
    for row in rows:
        needed = row["resources"]
        assert row["binds"] == max(needed, key=needed.get)
        assert row["seconds"] == needed[row["binds"]] + row["launch"]
        assert row["fraction"] == needed["memory"] / needed[row["binds"]]
        assert row["instructions"]["source"] == "recorded"


def test_bound_prints_a_table(run):
    told = run("bound", "s2-e4m3", "--gpu", "rtx5090", "--batch", "8", "--activations", "fp8x3")
    assert told.code == 0, told.err
    assert "bounds; not run on a GPU" in told.out
    assert "fp8x3" in told.out


def test_the_table_of_the_page_is_what_the_command_says(run):
    (command,) = re.findall(r"`unspool (bound m2-e4m3 [^`]*)`", PAGE)
    told = run(*command.split(), "--json")
    assert told.code == 0, told.err
    wanted = [
        [row["format"], row["device"], str(row["m"]),
         *(f"{1e6 * row['resources'][name]:.1f}" for name in FIGURES),
         row["binds"], f"{1e6 * row['seconds']:.1f}", f"{100 * row['fraction']:.0f} %"]
        for row in told.json["bounds"]
    ]  # fmt: skip
    assert {row["activations"] for row in told.json["bounds"]} == {"fp8x2"}
    lines = [line.strip("| ").split(" | ") for line in PAGE.splitlines()]
    assert [line for line in lines if len(line) == 12][1:] == wanted


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--gpu", "h300"), "no such GPU; found h300; allowed: h100, h200, b200, rtx4090, rtx5090"),
        (("--gpu", "h200", "--batch", "1,x"), "not numbers of tokens"),
        (("--gpu", "h200", "--batch", "0"), "not numbers of tokens"),
        (("--gpu", "h200", "--batch", "1,512"), "so many rows are the vendor's GEMM's"),
        (("--gpu", "h200", "--activations", "fp4"), "do not multiply the code's values as packed"),
        ((), "--gpu"),
    ],
)
def test_bad_input_is_explained(run, arguments, part):
    told = run("bound", "s2-e4m3", *arguments)
    assert told.code == 2
    assert part in told.err
