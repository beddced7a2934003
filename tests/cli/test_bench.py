"""`unspool bench matmul` on sizes that take no time: what it reports, and what it refuses."""

from __future__ import annotations

import pytest

from unspool import native
from unspool.evaluate import memory_speed, stopwatch

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiled library")

FIGURES = {
    "format", "bits_per_weight", "n", "k", "m", "threads", "path", "us", "us_low", "us_high",
    "us_quarter", "us_three_quarters", "cpu_us", "rotation_us", "gbps", "read_gbps",
    "fraction_of_read", "gflops",
}  # fmt: skip

SMALL = ("--n", 64, "--k", 256, "--rounds", 2, "--threads", 1)


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch):
    monkeypatch.setattr(memory_speed, "BYTES", 4 << 20)
    monkeypatch.setattr(memory_speed, "SLICE", 1 << 20)
    monkeypatch.setattr(stopwatch, "TURN", 1e-4)
    monkeypatch.setattr(stopwatch, "PAUSE", 0.0)
    monkeypatch.setattr("unspool.evaluate.products.MOST_COPIES", 3)


def test_there_is_a_row_for_every_format_batch_and_thread_count(run):
    found = run("bench", "matmul", *SMALL, "--m", "1,3", "--formats", "t2-e2m1,mxfp4", "--json")
    rows = found.json["rows"]
    assert [(row["format"], row["m"]) for row in rows] == [
        ("t2-e2m1", 1), ("t2-e2m1", 3), ("mxfp4", 1), ("mxfp4", 3),
    ]  # fmt: skip
    assert all(set(row) == FIGURES for row in rows)


def test_figures_agree_with_each_other(run):
    found = run("bench", "matmul", *SMALL, "--m", "2", "--formats", "t2-e2m1", "--json").json
    (row,) = found["rows"]
    stored = row["bits_per_weight"] * 64 * 256 / 8
    assert row["gbps"] == pytest.approx(stored / row["us"] / 1e3, rel=0.05, abs=1e-3)
    assert row["fraction_of_read"] == pytest.approx(
        row["gbps"] / row["read_gbps"], rel=0.05, abs=1e-3
    )
    assert row["us_low"] <= row["us_quarter"] <= row["us"] <= row["us_three_quarters"]
    assert row["us_three_quarters"] <= row["us_high"]
    assert row["rotation_us"] > 0
    assert found["cold"] is True


def test_a_format_without_rotation_spends_nothing_on_it(run):
    found = run("bench", "matmul", *SMALL, "--hot", "--formats", "mxfp4", "--json").json
    assert found["rows"][0]["rotation_us"] == 0
    assert found["cold"] is False


def test_the_default_is_the_catalog_on_one_thread_and_all(run):
    found = run("bench", "matmul", "--n", 8, "--k", 32, "--rounds", 1, "--json").json
    threads = {row["threads"] for row in found["rows"]}
    assert threads == {1, native.threads(None)}
    assert len({row["format"] for row in found["rows"]}) > 10


def test_the_target_is_the_one_asked_for(run):
    found = run("bench", "matmul", *SMALL, "--formats", "t2-e2m1", "--target", "portable", "--json")
    assert found.json["rows"][0]["path"] == "integer-portable"


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (9, 127)])
def test_sizes_need_not_fit_a_tile(run, size):
    sizes = ("--n", size[0], "--k", size[1], "--rounds", 1, "--formats", "t3-e2m3,fp8-e4m3")
    found = run("bench", "matmul", *sizes, "--json").json
    assert {(row["n"], row["k"]) for row in found["rows"]} == {size}


def test_the_table_ends_with_the_speed_of_memory(run):
    result = run("bench", "matmul", *SMALL, "--formats", "t2-e2m1")
    assert result.code == 0
    assert "read speed of memory, 1 threads" in result.out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--formats", "t9-e2m1"), "no such format"),
        (("--formats", "t2-e2m1,"), "an empty entry"),
        (("--n", "0"), "Invalid value for '--n'"),
        (("--k", "-1"), "Invalid value for '--k'"),
        (("--m", "0"), "not a list of counts"),
        (("--m", "1,x"), "not a list of counts"),
        (("--threads", "0"), "not a list of counts"),
        (("--threads", "100000"), "not a list of counts"),
        (("--rounds", "0"), "Invalid value for '--rounds'"),
        (("--target", "mars"), "no such target"),
        (("--activations", "int4"), "no such activations"),
        (("--n", "100000000", "--k", "100000"), "do not fit into memory"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_measured_is_one_line(run, arguments, complaint):
    result = run("bench", "matmul", *arguments, "--json")
    assert result.code == 2
    assert complaint in result.err
    assert result.err.count("\n") == 1
    assert "error" in result.json


def test_bench_alone_prints_its_help(run):
    assert "matmul" in run("bench").out
