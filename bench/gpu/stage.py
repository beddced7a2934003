"""What a stage is, and what it is given. A stage knows no other and needs none to have run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu.board import Board

PASSED, FAILED, ABSENT, CUT, RUNNING = "passed", "failed", "absent", "cut", "running"
"""How a stage ends: all right; something wrong or an exception; not possible here, with the
reason; the time was up before it was through. Or it has not: what was written while it ran."""

STATUSES = (PASSED, FAILED, ABSENT, CUT, RUNNING)


BROKEN_BY, TRYING = "broken_by", "trying"
"""The facts that name the product which broke the GPU, and the one whose turn it is."""


class AbsentError(Exception):
    """A stage or a peer that cannot be here; its text says why."""


class GpuBrokenError(Exception):
    """The GPU refuses every further call of this process (CUDA errors 700 to 719)."""


class Interrupted(BaseException):
    """The stage's time has long been up. No Exception: a compiler's or a peer's `except` is passed.

    As an Exception it was filed as a peer that is absent, and the stage went on.
    """


@dataclass(kw_only=True)
class Deadline:
    """Time that is left, to a stage or to the whole run."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.clock()

    @property
    def left(self) -> float:
        """Seconds left; negative after the end."""
        return self.seconds - (self.clock() - self._start)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.left <= 0


@dataclass(kw_only=True)
class Findings:
    """What a stage reports; written even where it ends early."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    #: each makes the stage a failed one
    wrong: list[str] = field(default_factory=list)
    #: whether it stopped because the time was up
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a stage works with."""

    board: Board
    deadline: Deadline
    findings: Findings
    say: Callable[[str], None]
    #: names of formats to keep to; empty: all
    formats: Sequence[str] = ()
    #: names of products that broke the GPU for this stage before
    without: Sequence[str] = ()
    #: writes what was found until now: a stage that is ended keeps that
    keep: Callable[[], None] = lambda: None

    def trying(self, product: str = "") -> None:
        """Writes down whose turn it is: a kernel that waits for ever says nothing. Empty: nobody's.

        A turn takes seconds; the parent ends a process whose turn does not end (apart.py).
        """
        self.findings.facts.pop(TRYING, None)
        if product:
            self.findings.facts[TRYING] = product
        self.keep()

    def go_on(self, after: Exception, product: str = "") -> None:
        """After an error: raises GpuBrokenError where no further call can succeed.

        Then the product's name is a fact: the stage can be run again without it.
        """
        reason = self.board.broken()
        if reason:
            if product:
                self.findings.facts[BROKEN_BY] = product
            raise GpuBrokenError(f"{said(after)}; since then every call fails: {reason}") from after


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run: fills `given.findings`; raises AbsentError, or anything when it breaks."""

    name: str
    run: Callable[[Given], None]
    #: its share of the usual time; what those before it leave is shared alike
    seconds: float


def chosen(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """The stages of these names, in their own order; all where there are none."""
    return [stage for stage in stages if not names or stage.name in names]


def allowance(stages: Sequence[Stage], whole: Deadline) -> float:
    """Seconds of the first of these: its part of what is left, so that the others keep theirs."""
    return whole.left * stages[0].seconds / sum(stage.seconds for stage in stages)


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def entry(
    name: str, status: str, seconds: float, found: Findings, reason: str
) -> Mapping[str, Any]:
    """A stage as it stands in the results."""
    return {
        "stage": name,
        "status": status,
        "seconds": round(seconds, 2),
        "reason": reason,
        "wrong": found.wrong,
        "facts": found.facts,
        "rows": found.rows,
    }
