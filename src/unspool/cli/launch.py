"""How this process was started: alone, or by `torchrun` as one of several."""

from __future__ import annotations

import os

from unspool import native


def several() -> bool:
    """Whether other processes work on the same run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def speaks() -> bool:
    """Whether this is the process that prints."""
    return not several() or os.environ["RANK"] == "0"


def device_each(wanted: str | None) -> str | None:
    """This process's device, by torch's name: of those of one kind each process has its own."""
    if wanted is None or not several() or ":" in wanted or wanted == "cpu":
        return wanted
    return f"{wanted}:{os.environ.get('LOCAL_RANK', '0')}"


def threads_each(wanted: int | None) -> int | None:
    """Threads of this process unless it was told: its share of the machine's cores."""
    if wanted is not None or not several():
        return wanted
    return max(1, native.threads(None) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
