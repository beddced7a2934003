from __future__ import annotations

import json
import re

import pytest

from unspool.cli.picture import describe, draw_window
from unspool.evaluate import gaussian
from unspool.spec.catalog import FORMATS
from unspool.spec.code import Plane
from unspool.spec.format import Format

KEYS = {
    "name", "operand", "bits_per_weight", "gaussian_mse", "parameters", "content_hash", "rotation",
    "scale", "tile", "planes",
}  # fmt: skip


def test_the_list_has_every_format_with_its_figures(run):
    rows = run("formats", "--json").json
    assert [row["name"] for row in rows] == list(FORMATS)
    for row in rows:
        fmt = FORMATS[row["name"]]
        assert set(row) >= KEYS
        assert row["bits_per_weight"] == fmt.bits_per_weight(4096, 4096)
        assert row["gaussian_mse"] == gaussian.distortion(fmt).gaussian_mse


def test_the_table_shows_the_same_formats(run):
    shown = run("formats").out
    assert all(name in shown for name in FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_show_explains_the_whole_declaration(run, name):
    fmt, shown = FORMATS[name], run("formats", "show", name).out
    assert fmt.content_hash in shown
    assert all(str(instruction) in shown for instruction in fmt.code.program.instructions)
    assert shown.count("\nplane ") == len(fmt.code.planes)


@pytest.mark.parametrize("name", ["t2-e2m1", "nvfp4", "lut-b", "t3-e2m3:b128-fp16:h64-both"])
def test_the_declaration_in_json_is_the_format(run, name):
    row = run("formats", "show", name, "--json").json
    assert Format.from_json(row["declaration"]).content_hash == row["content_hash"]


@pytest.mark.parametrize("name", FORMATS)
def test_the_parts_of_the_bits_add_up(name):
    lines = describe(FORMATS[name], 0.1).split("bits per weight of a")[1].splitlines()[1:]
    figures = [re.fullmatch(r"  (.+?) +(\d+\.\d+)", line) for line in lines]
    parts = {m[1]: float(m[2]) for m in figures if m}
    # Each figure is rounded to 5 decimals: half a unit of the last per part.
    whole = parts.pop("in all")
    assert sum(parts.values()) == pytest.approx(whole, abs=1e-5 * len(parts))


def test_a_window_wraps_around_its_ring():
    plane = Plane(window=5, stride=1)
    assert draw_window(plane, 0, 16) == "#####..........."
    assert draw_window(plane, 14, 16) == "###...........##"
    assert draw_window(plane, 63, 64) == "####" + "." * 28 + " ~ " + "." * 7 + "#"


def test_measure_rewrites_the_record_once_per_format(run, monkeypatch, tmp_path):
    record = tmp_path / "distortion.json"
    monkeypatch.setattr(gaussian, "_FILE", record)
    monkeypatch.setattr("unspool.spec.catalog.FORMATS", {"mxfp4": FORMATS["mxfp4"]})
    monkeypatch.setattr(gaussian, "SHAPE", (8, 4096))
    (row,) = run("formats", "--measure", "--json").json
    gaussian._recorded.cache_clear()
    written = json.loads(record.read_text())
    assert list(written) == [FORMATS["mxfp4"].content_hash]
    assert written[row["content_hash"]]["gaussian_mse"] == row["gaussian_mse"]
