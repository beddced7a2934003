"""Every stage in a process of its own: what breaks the GPU for one stage breaks it for no other.

After a kernel that touched memory which is not its own, every further call of that process fails
(CUDA errors 700 to 719), and a kernel that waits for ever cannot be stopped from within. So a child
runs one stage and writes its document; the parent, which never opens the GPU, puts them together.

    child     torch, GPU | writes: its clock starts | rows, written every few | whole   alarm
    parent    START_SECONDS, no more                 | merges what is written             kill
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu.run import GRACE, NO_GPU, write
from gpu.stage import (
    BROKEN_BY,
    CUT,
    FAILED,
    RUNNING,
    TRYING,
    Deadline,
    Findings,
    Stage,
    allowance,
    entry,
)

START_SECONDS = 60.0
"""Torch's import and the GPU's context: 5 s usually, much more from a cold or distant disk. A
stage's own time begins with the first file that its child writes."""

KILL_SECONDS = GRACE + 10
"""After a stage's end: the child's alarm comes GRACE after it, and has ten seconds to write."""

TURN_SECONDS = 30.0
"""What a product's turn may take, which is some 5 s: beyond, its kernel waits for something."""

LOOK_SECONDS = 0.5
"""How often the parent looks at the file of a child."""

AGAIN, AGAIN_SECONDS = 4, 20.0
"""How often a stage is run again without the product that broke the GPU, and with how much time at
least: what is wrong with one of ours must not cost the rows of all behind it."""

SAME = ("what", "format", "peer", "activations", "n", "k", "m")
"""Rows that are alike in these are of the same measurement: the later one stays."""

Command = Callable[[Stage, Path, float, Sequence[str]], list[str]]
"""A stage, the file to write, the seconds it has, products to omit -> the child's command line."""

Join = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Of a stage's entry."""

Merge = Callable[[Mapping[str, Any]], None]
"""Takes a child's document."""


class NoGpuError(Exception):
    """The first child found no GPU, and has said so."""


@dataclass(kw_only=True)
class _Together:
    """The document of all stages; `path_of` names its file from the head that a child brings."""

    path_of: Callable[[Mapping[str, Any]], Path | None]
    document: dict[str, Any] = field(default_factory=dict)
    #: of stages that have ended
    stages: list[Mapping[str, Any]] = field(default_factory=list)

    def merge(self, found: Mapping[str, Any]) -> None:
        """Takes a child's head, and its stage as the last one, and writes all of it."""
        head = {name: value for name, value in found.items() if name != "stages"}
        self.document = self.document or head
        self._write([*self.stages, *found["stages"]])

    def end(self, made: Mapping[str, Any]) -> None:
        """Takes a stage that has ended."""
        self.stages.append(made)
        self._write(self.stages)

    def _write(self, stages: Sequence[Mapping[str, Any]]) -> None:
        path = self.path_of(self.document) if self.document else None
        if path is not None:
            write(path, {**self.document, "stages": list(stages)})


def run(
    stages: Sequence[Stage],
    command: Command,
    *,
    path_of: Callable[[Mapping[str, Any]], Path | None],
    whole: Deadline,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The document of all stages, written whenever there is more of it; raises NoGpuError.

    `path_of` names the file from the head, which the first child brings.
    """
    together = _Together(path_of=path_of)
    without: list[str] = []  # also of the stages behind: what hangs in one hangs in the next
    with tempfile.TemporaryDirectory() as folder:
        for number, stage in enumerate(stages):
            child = _Child(
                stage=stage,
                command=command,
                file=Path(folder) / f"{stage.name}.json",
                merge=together.merge,
            )
            made, told = child.run(allowance(stages[number:], whole), without)
            for _ in range(AGAIN):
                by = made["facts"].get(BROKEN_BY)
                seconds = allowance(stages[number:], whole)
                if not by or by in without or seconds < AGAIN_SECONDS:
                    break
                without.append(by)
                say(f"== {stage.name} again, without {', '.join(without)}")
                again = replace(child, joined=functools.partial(_joined, made))
                made, told = again.run(seconds, without)
            together.end(made)
            if not told:
                say(f"== {stage.name}: {made['status']}, {made['reason']}")
    return {**together.document, "stages": together.stages}


@dataclass(frozen=True, kw_only=True)
class _Child:
    """A process that runs a stage and writes a file."""

    stage: Stage
    command: Command
    file: Path
    merge: Merge
    #: adds what earlier runs of this stage have found
    joined: Join = lambda made: made

    def run(self, seconds: float, without: Sequence[str]) -> tuple[Mapping[str, Any], bool]:
        """The stage's entry, and whether the child has said how it ended."""
        name, file = self.stage.name, self.file
        if seconds <= 0:
            return entry(name, CUT, 0.0, Findings(), "the time was up before it began"), False
        file.unlink(missing_ok=True)
        spent = Deadline(seconds=0.0)
        asked = self.command(self.stage, file, seconds, without)
        reason = _watched(asked, file, seconds, self._merged)
        if not file.is_file():
            return self.joined(entry(name, FAILED, -spent.left, Findings(), reason)), False
        found = _read(file)  # what it found, even where it ended badly afterwards
        self._merged(found)
        (made,) = found["stages"]
        running = made["status"] == RUNNING
        return self.joined(_ended(made, reason) if running else made), not running

    def _merged(self, found: Mapping[str, Any]) -> None:
        self.merge({**found, "stages": [self.joined(made) for made in found["stages"]]})


def _ended(made: Mapping[str, Any], reason: str) -> Mapping[str, Any]:
    """The entry of a stage that did not end by itself: whose turn it was is to blame."""
    facts = dict(made["facts"])
    by = facts.pop(TRYING, "")
    wrong = [*made["wrong"], f"{by}: {reason}"] if by else made["wrong"]
    facts |= {BROKEN_BY: by} if by else {}
    return {**made, "status": FAILED, "reason": reason, "wrong": wrong, "facts": facts}


def _joined(first: Mapping[str, Any], again: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage's entry of two runs, the second of which left out what broke the first."""
    rows = {tuple(row.get(name) for name in SAME): row for row in (*first["rows"], *again["rows"])}
    facts = {name: value for name, value in first["facts"].items() if name != BROKEN_BY}
    reasons = first["reason"], f"again: {again['reason'] or again['status']}"
    return {
        **again,
        "status": RUNNING if again["status"] == RUNNING else FAILED,
        "seconds": round(first["seconds"] + again["seconds"], 2),
        "reason": "; ".join(reasons),
        "wrong": list(dict.fromkeys([*first["wrong"], *again["wrong"]])),
        "facts": {**facts, **again["facts"]},
        "rows": list(rows.values()),
    }


def _watched(asked: Sequence[str], file: Path, seconds: float, merge: Merge) -> str:
    """Runs a child, merges what it writes, ends it when it takes too long; how it ended."""
    seen = 0
    until, turn = Deadline(seconds=START_SECONDS), Deadline(seconds=math.inf)
    process = subprocess.Popen(asked)
    try:
        while not until.over and not turn.over:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return _ending(process.wait(timeout=LOOK_SECONDS))
            written = file.stat().st_mtime_ns if file.is_file() else 0
            if written and not seen:
                until = Deadline(seconds=seconds + KILL_SECONDS)
            if written != seen:
                found = _read(file)
                merge(found)
                somebodys = any(TRYING in made["facts"] for made in found["stages"])
                turn = Deadline(seconds=TURN_SECONDS if somebodys else math.inf)
            seen = written
        return "it hung and was ended" if seen else "it hung before it began and was ended"
    finally:
        process.kill()  # nothing where it has ended
        with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may hold it
            process.wait(timeout=10)


def _read(file: Path) -> Mapping[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _ending(code: int) -> str:
    """How a child ended, in case it did not say it; raises NoGpuError."""
    if code == NO_GPU:
        raise NoGpuError
    if code < 0:
        return f"it died of {signal.Signals(-code).name}"
    return f"it ended with exit code {code} before it was through"
