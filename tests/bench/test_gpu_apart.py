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
    "no-gpu": "print('no GPU to run on: none'); sys.exit(3)",
}
PREAMBLE = f"""
import json, os, sys, time
name, file = sys.argv[1:]
def entry(status, rows=(), wrong=()):
    return dict(stage=name, status=status, seconds=0.1, reason="", wrong=wrong, facts={{}},
                rows=rows)
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
    path, said = tmp_path / "results.json", []

    def command(stage, file, seconds):
        return [sys.executable, "-c", PREAMBLE + CHILDREN[stage.name], stage.name, str(file)]

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


def test_the_head_comes_from_the_first_child_that_has_one(run):
    document, _, _ = run("dies", "fine")
    assert {name: document[name] for name in HEAD} == HEAD
    assert list(statuses(document)) == ["dies", "fine"]


def test_what_was_found_before_the_time_was_up_is_kept(run):
    document, _, _ = run("fine", "wrong", seconds=0.0)
    assert set(statuses(document).values()) == {"cut"}


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
