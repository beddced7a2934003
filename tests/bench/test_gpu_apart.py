"""A stage that breaks, dies or hangs costs the others nothing: real children, no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAD = {"schema": 1, "gpu": "Stand-in 9000"}

# What a child of the run does, by the name of its stage.
CHILDREN = {
    "fine": "write(entry('passed', rows=[1]))",
    "wrong": "write(entry('failed', wrong=['a weight'])); sys.exit(1)",
    "dies": "os.abort()",
    "dies-late": "write(entry('passed', rows=[2])); os.abort()",
    "hangs": "time.sleep(60)",
    "leaves": "sys.exit(9)",
    "hangs-late": "write(entry('running', rows=[3])); time.sleep(60)",
    "starts-slowly": "time.sleep(1); write(entry('running')); time.sleep(2); write(entry('cut'))",
    "dies-amid": "write(entry('running', rows=[4])); os.abort()",
    "broken-twice": """
bad = [each for each in ("a", "b") if each not in without]
rows = [of("first", 1 + len(without)), *[of("c", 5)] * (not bad)]
if bad: write(entry("failed", rows, [bad[0] + " breaks"], broken_by=bad[0], absent=1))
else: write(entry("passed", rows))
""",
    "kernel-hangs": """
write(entry("running", [of("first", 1)], trying="" if without else "x"))
time.sleep(60 * (not without))
write(entry("passed", [of("second", 2)]))
""",
    "kernel-kills": """
write(entry("running", [of("first", 1)], trying="x"))
if not without: os.abort()
write(entry("passed", [of("second", 2)]))
""",
    "broken-always": "write(entry('failed', broken_by='z'))",
    "no-gpu": "print('no GPU to run on: none'); sys.exit(3)",
}
PREAMBLE = f"""
import json, os, sys, time
name, file, *without = sys.argv[1:]
def entry(status, rows=(), wrong=(), **facts):
    return dict(stage=name, status=status, seconds=0.1, reason="", wrong=wrong, facts=facts,
                rows=rows)
def of(format, us):
    return dict(format=format, us=us)
def write(made):
    with open(file, "w") as out:
        json.dump({{**{HEAD!r}, "stages": [made]}}, out)
"""


@pytest.fixture(autouse=True)
def _bench_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs children of these names; the document, the file it went to, what was said."""
    from gpu import apart
    from gpu.stage import Deadline, Stage

    monkeypatch.setattr(apart, "START_SECONDS", 2.0)
    monkeypatch.setattr(apart, "KILL_SECONDS", 2.0)
    monkeypatch.setattr(apart, "TURN_SECONDS", 2.0)
    path, said = tmp_path / "results.json", []

    def command(stage, file, seconds, without):
        text = PREAMBLE + CHILDREN[stage.name]
        return [sys.executable, "-c", text, stage.name, str(file), *without]

    def run(*names: str, seconds: float = 1000.0):
        stages = [Stage(name=name, run=lambda given: None, seconds=1.0) for name in names]
        document = apart.run(
            stages, command, path_of=lambda head: path, whole=Deadline(seconds=seconds),
            say=said.append,
        )  # fmt: skip
        return document, path, said

    return run


def statuses(document) -> dict[str, str]:
    return {made["stage"]: made["status"] for made in document["stages"]}


@pytest.mark.filterwarnings("ignore")
def test_others_go_on_after_one_that_broke(run):
    document, path, _ = run("fine", "dies", "wrong", "leaves", "dies-late")
    assert statuses(document) == {
        "fine": "passed", "dies": "failed", "wrong": "failed", "leaves": "failed",
        "dies-late": "passed",
    }  # fmt: skip
    reasons = {made["stage"]: made["reason"] for made in document["stages"]}
    assert reasons["dies"] == "it died of SIGABRT"
    assert "exit code 9" in reasons["leaves"]
    assert json.loads(path.read_text()) == document


def test_one_that_hangs_is_ended(run):
    start = time.monotonic()
    document, _, said = run("hangs", "fine")
    assert statuses(document) == {"hangs": "failed", "fine": "passed"}
    assert time.monotonic() - start < 30
    assert any("hung" in line for line in said)


def test_one_that_is_ended_keeps_the_rows_that_it_had_written(run):
    document, path, _ = run("hangs-late", "dies-amid", "fine", seconds=6.0)
    assert statuses(document) == {"hangs-late": "failed", "dies-amid": "failed", "fine": "passed"}
    assert [made["rows"] for made in document["stages"]] == [[3], [4], [1]]
    reasons = [made["reason"] for made in document["stages"]]
    assert reasons[:2] == ["it hung and was ended", "it died of SIGABRT"]
    assert json.loads(path.read_text()) == document


def test_rows_are_in_the_results_while_their_stage_runs(run, monkeypatch):
    from gpu import apart

    written = []
    monkeypatch.setattr(apart, "write", lambda path, made: written.append(made["stages"]))
    run("fine", "hangs-late", seconds=2.0)
    assert [[made["status"] for made in stages] for stages in written] == [
        ["passed"], ["passed"], ["passed", "running"], ["passed", "running"], ["passed", "failed"],
    ]  # fmt: skip


def test_a_stages_time_begins_with_its_first_file(run):
    document, _, _ = run("starts-slowly", seconds=1.5)  # 3.2 s in all, 2 to start and 3.5 to run
    assert statuses(document) == {"starts-slowly": "cut"}


def test_the_head_comes_from_the_first_child_that_has_one(run):
    document, _, _ = run("dies", "fine")
    assert {name: document[name] for name in HEAD} == HEAD
    assert list(statuses(document)) == ["dies", "fine"]


def test_what_was_found_before_the_time_was_up_is_kept(run):
    document, _, _ = run("fine", "wrong", seconds=0.0)
    assert set(statuses(document).values()) == {"cut"}


def test_a_stage_is_run_again_without_what_broke_the_gpu(run):
    document, path, said = run("broken-twice", "fine")
    made = document["stages"][0]
    assert statuses(document) == {"broken-twice": "failed", "fine": "passed"}
    assert made["wrong"] == ["a breaks", "b breaks"]
    assert made["rows"] == [{"format": "first", "us": 3}, {"format": "c", "us": 5}]
    assert made["facts"] == {"absent": 1}
    assert said == ["== broken-twice again, without a", "== broken-twice again, without a, b"]
    assert json.loads(path.read_text()) == document


@pytest.mark.parametrize(
    ("name", "reason"),
    [("kernel-hangs", "it hung and was ended"), ("kernel-kills", "it died of SIGABRT")],
)
def test_a_kernel_that_hangs_or_kills_costs_its_product_alone(run, name, reason):
    start = time.monotonic()
    document, _, said = run(name, "fine")
    made = document["stages"][0]
    assert time.monotonic() - start < 30
    assert statuses(document) == {name: "failed", "fine": "passed"}
    assert made["wrong"] == [f"x: {reason}"]
    assert made["rows"] == [{"format": "first", "us": 1}, {"format": "second", "us": 2}]
    assert said[0] == f"== {name} again, without x"


def test_what_broke_the_gpu_is_left_out_of_the_stages_behind_too(run):
    document, _, said = run("kernel-kills", "kernel-hangs")
    assert statuses(document) == {"kernel-kills": "failed", "kernel-hangs": "passed"}
    assert said == ["== kernel-kills again, without x"]


def test_what_breaks_the_gpu_though_it_is_left_out_ends_the_stage(run):
    document, _, said = run("broken-always", "fine")
    assert statuses(document) == {"broken-always": "failed", "fine": "passed"}
    assert said == ["== broken-always again, without z"]
    assert statuses(run("broken-always", seconds=15.0)[0]) == {"broken-always": "failed"}


def test_no_gpu_ends_the_run(run):
    from gpu import apart

    with pytest.raises(apart.NoGpuError):
        run("no-gpu", "fine")


def test_the_command_says_once_that_there_is_no_gpu():
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "bench")])
    done = subprocess.run(
        [sys.executable, "-m", "gpu", "--no-json"],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if "no GPU to run on" in line]
    assert (done.returncode, len(said)) == (3, 1), done.stdout + done.stderr
