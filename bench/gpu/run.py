"""Runs stages one after the other, whatever becomes of one, and writes the results after each."""

from __future__ import annotations

import json
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu.stage import (
    ABSENT,
    CUT,
    FAILED,
    PASSED,
    AbsentError,
    Deadline,
    Findings,
    Given,
    Stage,
    entry,
)

if TYPE_CHECKING:
    from gpu.board import Board

ALL_RIGHT, SOMETHING_FAILED, WRONG, NO_GPU, NO_TIME = 0, 1, 2, 3, 4
"""Exit codes; the third is of a wrong command line. `docs/gpu.md` has them too."""

SCHEMA = 1

GRACE = 20.0
"""Seconds after its end that a stage may take to notice; then it is interrupted."""


def run(
    board: Board,
    stages: Sequence[Stage],
    head: Mapping[str, Any],
    *,
    path: Path | None,
    whole: Deadline,
    say: Callable[[str], None],
    formats: Sequence[str] = (),
) -> dict[str, Any]:
    """The document with all stages; what was written last is all that was found by then."""
    document: dict[str, Any] = {"schema": SCHEMA, **head, "stages": []}
    for stage in stages:
        say(f"== {stage.name} ({whole.left:.0f} s left)")
        made = _run_one(board, stage, whole, say, formats)
        document["stages"].append(made)
        say(f"   {made['status']} in {made['seconds']} s {_last_line(made)}".rstrip())
        if path is not None:
            write(path, document)
    return document


def exit_code(document: Mapping[str, Any]) -> int:
    """What the process ends with."""
    statuses = {stage["status"] for stage in document["stages"]}
    if FAILED in statuses:
        return SOMETHING_FAILED
    return NO_TIME if CUT in statuses else ALL_RIGHT


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Replaces the file by a whole one: a run that is killed leaves the stages before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _run_one(
    board: Board,
    stage: Stage,
    whole: Deadline,
    say: Callable[[str], None],
    formats: Sequence[str],
) -> Mapping[str, Any]:
    found = Findings()
    if whole.over:
        return entry(stage.name, CUT, 0.0, found, "the time was up before it began")
    seconds = min(stage.seconds, whole.left)
    deadline = Deadline(seconds=seconds, clock=whole.clock)
    given = Given(board=board, deadline=deadline, findings=found, say=say, formats=formats)
    status, reason = PASSED, ""
    try:
        with _interrupted(seconds + GRACE):
            stage.run(given)
    except AbsentError as absent:
        status, reason = ABSENT, str(absent)
    except Exception:  # noqa: BLE001  it may break in any way; the others still say something
        status, reason = FAILED, traceback.format_exc()
    if found.wrong:
        status = FAILED
    elif status == PASSED and found.cut:
        status, reason = CUT, "the time was up"
    return entry(stage.name, status, seconds - deadline.left, found, reason)


@contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after so long: a compiler that hangs must not take all."""

    def over(*_: object) -> None:
        raise TimeoutError(f"interrupted after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _last_line(made: Mapping[str, Any]) -> str:
    lines = [*made["wrong"][:1], *made["reason"].strip().splitlines()[-1:]]
    return lines[0] if lines else ""
