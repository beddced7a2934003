"""A run that fails or is killed at any operation on the disk goes on to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unspool.checkpoint import durable
from unspool.checkpoint.journal import Journal

CRASH = Path(__file__).parents[2] / "bench" / "crash.py"


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads the names of open files")
def test_every_fault_and_some_kills_are_survived():
    # In a process of its own: it forks, and this one may have threads.
    child = [sys.executable, str(CRASH), "--quick"]
    done = subprocess.run(child, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["points"] > 40
    assert all(count >= 5 for count in found["faults"].values())
    assert found["random_kills"] >= 1
    assert found["processes"] == [1, 2]


def test_nothing_is_renamed_before_it_is_on_the_disk(tmp_path, monkeypatch):
    from crash import Faulty

    monkeypatch.setattr(durable, "DISK", disk := Faulty())
    journal = Journal(tmp_path / "work", {}, resume=False)
    journal.put(0, {"codes": np.zeros(9, np.uint8)}, {"name": "b"})
    assert disk.seen == [
        *("write .settings.json.partial", "flush .settings.json.partial"),
        *("rename settings.json", "flush work"),
        *("write .block-00000.safetensors.partial", "flush .block-00000.safetensors.partial"),
        *("rename block-00000.safetensors", "flush work"),
        *("write log.jsonl", "flush log.jsonl"),
    ]
