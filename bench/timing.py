"""What all benchmarks share: cases that take turns, and the facts that figures depend on."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unspool.cli.machine import machine

HERE = Path(__file__).parent


def interleaved(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of every run, once per round in turn, after a warm-up of each.

    A machine that slows down slows all of them alike.
    """
    for run in runs:
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, seen in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            seen.append(time.perf_counter() - start)
    return seconds


def facts() -> dict[str, Any]:
    """Machine, versions, the load that others put on it, and the commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE,
    )
    load = round(os.getloadavg()[0], 1)
    return {**machine(), "load_at_start": load, "commit": commit.stdout.strip() or "none"}


def parser(description: str, results: str) -> argparse.ArgumentParser:
    """The options of every benchmark; `--json` alone writes to `bench/results/`."""
    options = argparse.ArgumentParser(description=description.splitlines()[0])
    default = HERE / "results" / results
    options.add_argument("--json", nargs="?", const=default, type=Path, metavar="FILE")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--only", nargs="*", default=[], help="parts of the names to measure")
    return options


def write(path: Path | None, found: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Writes facts and rows as JSON, where a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**found, "rows": list(rows)}, indent=1) + "\n")
