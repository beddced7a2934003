"""Runs stages one after the other, whatever becomes of one, and writes the results after each."""

from __future__ import annotations

import functools
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
    RUNNING,
    TRYING,
    AbsentError,
    Deadline,
    Findings,
    Given,
    GpuBrokenError,
    Interrupted,
    Stage,
    allowance,
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
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """The document with all stages; what was written last is all that was found by then.

    It is written before a stage begins, too: then the stage's clock has started (apart.py).
    """
    document: dict[str, Any] = {"schema": SCHEMA, **head, "stages": []}

    def keep(made: Mapping[str, Any]) -> None:
        if path is not None:
            write(path, {**document, "stages": [*document["stages"], made]})

    def running(name: str, deadline: Deadline, found: Findings) -> None:
        keep(entry(name, RUNNING, deadline.seconds - deadline.left, found, ""))

    for number, stage in enumerate(stages):
        say(f"== {stage.name} ({whole.left:.0f} s left)")
        seconds = allowance(stages[number:], whole)
        deadline = Deadline(seconds=seconds, clock=whole.clock)
        found = Findings()
        given = Given(
            board=board, deadline=deadline, findings=found, say=say, formats=formats,
            without=without,
            keep=functools.partial(running, stage.name, deadline, found),
        )  # fmt: skip
        given.keep()
        made = _run_one(stage, given)
        keep(made)
        document["stages"].append(made)
        say(f"   {made['status']} in {made['seconds']} s {_last_line(made)}".rstrip())
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


def _run_one(stage: Stage, given: Given) -> Mapping[str, Any]:
    found, deadline = given.findings, given.deadline
    if deadline.over:
        return entry(stage.name, CUT, 0.0, found, "the time was up before it began")
    status, reason = PASSED, ""
    try:
        with _interrupted(deadline.seconds + GRACE):
            stage.run(given)
    except AbsentError as absent:
        status, reason = ABSENT, str(absent)
    except GpuBrokenError as broken:
        status, reason = FAILED, f"ended early: {broken}"
    except (Exception, Interrupted):  # noqa: BLE001  the others still say something
        status, reason = FAILED, traceback.format_exc()
    found.facts.pop(TRYING, None)
    if found.wrong:
        status = FAILED
    elif status == PASSED and found.cut:
        status, reason = CUT, "the time was up"
    elif status == PASSED and not found.rows:
        status, reason = FAILED, "it found nothing wrong, and nothing at all: no row"
    return entry(stage.name, status, deadline.seconds - deadline.left, found, reason)


@contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """Raises Interrupted in the block after so long: a compiler that hangs must not take all."""

    def over(*_: object) -> None:
        raise Interrupted(f"interrupted after {seconds:.0f} s")

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
