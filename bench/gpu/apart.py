"""Every stage in a process of its own: what breaks the GPU for one stage breaks it for no other.

After a kernel that touched memory which is not its own, every further call of that process fails
(CUDA errors 700 to 719), and a kernel that waits for ever cannot be stopped from within. So a child
runs one stage and writes its document; the parent, which never opens the GPU, puts them together.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu.run import NO_GPU, write
from gpu.stage import CUT, FAILED, Deadline, Findings, Stage, entry

START_SECONDS = 25.0
"""Torch's import, the GPU's context and the last look at the clock, beside a stage's own time."""

Command = Callable[[Stage, Path, float], list[str]]
"""A stage, the file to write, the seconds it has -> the child's command line."""


class NoGpuError(Exception):
    """The first child found no GPU, and has said so."""


def run(
    stages: Sequence[Stage],
    command: Command,
    *,
    path_of: Callable[[Mapping[str, Any]], Path | None],
    whole: Deadline,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The document of all stages, written after each; raises NoGpuError.

    `path_of` names the file from the head, which the first child brings.
    """
    document: dict[str, Any] = {}
    lost: list[Mapping[str, Any]] = []  # stages that ended before there was a head
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            made, head = _one(stage, command, Path(folder) / f"{stage.name}.json", whole)
            if head and not document:
                document = {**head, "stages": lost}
            (document["stages"] if document else lost).append(made)
            if not head:  # else the child has said it
                say(f"== {stage.name}: {made['status']}, {made['reason']}")
            path = path_of(document) if document else None
            if path is not None:
                write(path, document)
    return document or {"stages": lost}


def _one(
    stage: Stage, command: Command, file: Path, whole: Deadline
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A stage's entry, and the head that came with it (empty where the child wrote none)."""
    if whole.over:
        return entry(stage.name, CUT, 0.0, Findings(), "the time was up before it began"), {}
    seconds = min(stage.seconds, whole.left)
    before = whole.left
    try:
        code = subprocess.run(
            command(stage, file, seconds), check=False, timeout=seconds + START_SECONDS
        ).returncode
        reason = _ending(code)
    except subprocess.TimeoutExpired:
        code, reason = None, "it hung and was ended"
    if code == NO_GPU:
        raise NoGpuError
    if file.is_file():  # what it found, even where it ended badly afterwards
        found = json.loads(file.read_text(encoding="utf-8"))
        (made,) = found.pop("stages")
        return made, found
    return entry(stage.name, FAILED, before - whole.left, Findings(), reason), {}


def _ending(code: int) -> str:
    """How a child ended that wrote nothing."""
    if code < 0:
        return f"it died of {signal.Signals(-code).name}"
    return f"it ended with exit code {code} and wrote nothing"
