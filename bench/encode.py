"""Encoding rates: `python bench/encode.py [--json FILE] [--rounds N] [--only NAME ...]`.

Weights per second of the trellis search on Gaussian data for the shapes of code that the catalog
has, and of the two encoders' neighbours, nearest value and rotation. The cases take turns, round
by round after a warm-up, so that a machine that slows down slows all of them alike; median, lowest
and highest rate over the rounds are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unspool import native
from unspool.encode.nearest import nearest
from unspool.encode.rotate import hadamard, signs
from unspool.encode.viterbi import viterbi

RESULTS = Path(__file__).parent / "results" / "encode.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """planes (window, stride); rings are chosen so that a round takes a fraction of a second."""

    name: str
    planes: tuple[tuple[int, int], ...]
    lanes: int
    steps: int
    rings: int


TRELLISES = (
    Case(name="window 5 + 1 plain", planes=((5, 1), (1, 1)), lanes=1, steps=64, rings=1 << 16),
    Case(name="window 5 + 2 plain", planes=((5, 1), (2, 2)), lanes=1, steps=64, rings=1 << 16),
    Case(name="window 5 + 3 plain", planes=((5, 1), (3, 3)), lanes=1, steps=64, rings=1 << 15),
    Case(name="pairs, 5 + 4 plain", planes=((5, 1), (4, 4)), lanes=2, steps=64, rings=1 << 13),
    Case(name="window 16 stride 8", planes=((16, 8),), lanes=4, steps=32, rings=512),
    Case(name="window 20 stride 12", planes=((20, 12),), lanes=4, steps=32, rings=32),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured case; rates in weights per second."""

    code: str
    states: int
    lanes: int
    passes: int
    threads: int
    weights_per_second: float
    slowest: float
    fastest: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Something to time: `weights` go through every call of `run`."""

    row: dict[str, str | int]
    weights: int
    run: Callable[[], object]


def trellis_trial(case: Case, passes: int, threads: int) -> Trial:
    """Two-pass (or more) search of one case; the table is random, which costs the same."""
    random = np.random.default_rng(0)
    states = 1 << sum(window for window, _ in case.planes)
    values = random.standard_normal((states, case.lanes), np.float32)
    targets = random.standard_normal((case.rings, case.steps, case.lanes), np.float32)
    return Trial(
        row={"code": case.name, "states": states, "lanes": case.lanes, "passes": passes,
             "threads": threads},
        weights=targets.size,
        run=lambda: viterbi(values, case.planes, targets, passes=passes, threads=threads),
    )  # fmt: skip


def plain_trials(threads: int) -> list[Trial]:
    """Nearest value in tables of 16 and 256, and rotation by blocks of 512, on 4096 x 1024."""
    targets = np.random.default_rng(0).standard_normal((1024, 4096), np.float32)
    flips = signs(4096, 0, "in")
    trials = [
        Trial(
            row={"code": "nearest value", "states": states, "lanes": 1, "passes": 1,
                 "threads": threads},
            weights=targets.size,
            run=lambda table=targets[0, :states]: nearest(table, targets, threads=threads),
        )
        for states in (16, 256)
    ]  # fmt: skip
    turn = Trial(
        row={"code": "rotation by 512", "states": 0, "lanes": 1, "passes": 1, "threads": threads},
        weights=targets.size,
        run=lambda: hadamard(targets, 512, flips, threads=threads),
    )
    return [*trials, turn]


def measure(trials: list[Trial], rounds: int) -> list[Row]:
    """Each trial once per round, in turn, after a warm-up of each."""
    for trial in trials:
        trial.run()
    rates: list[list[float]] = [[] for _ in trials]
    for _ in range(rounds):
        for trial, seen in zip(trials, rates, strict=True):
            start = time.perf_counter()
            trial.run()
            seen.append(trial.weights / (time.perf_counter() - start))
    return [
        Row(**trial.row, weights_per_second=round(statistics.median(seen)),
            slowest=round(min(seen)), fastest=round(max(seen)))
        for trial, seen in zip(trials, rates, strict=True)
    ]  # fmt: skip


def machine() -> dict[str, str | int]:
    """What a rate depends on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": native.threads(None),
        "load_at_start": round(os.getloadavg()[0]),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": commit.stdout.strip() or "none",
    }


def main() -> None:
    """Prints the rows; with --json writes them too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", nargs="?", const=RESULTS, type=Path, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names to measure")
    chosen = parser.parse_args()
    if native.library() is None:
        sys.exit(f"no compiled library to measure: {native.why_not()}")
    facts = machine()
    threads = sorted({1, native.threads(None)})
    trials = [trellis_trial(case, 2, n) for case in TRELLISES for n in threads]
    trials += [trellis_trial(TRELLISES[0], 4, threads[-1])]
    trials += [trial for n in threads for trial in plain_trials(n)]
    wanted = [t for t in trials if not chosen.only or any(o in t.row["code"] for o in chosen.only)]
    rows = measure(wanted, chosen.rounds)
    for row in rows:
        print(f"{row.code:28} {row.states:8} states  {row.passes} passes  {row.threads} threads "
              f"{row.weights_per_second / 1e6:9.2f} M/s  ({row.slowest / 1e6:.2f} to "
              f"{row.fastest / 1e6:.2f})")  # fmt: skip
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": facts, "rounds": chosen.rounds, "rows": [asdict(r) for r in rows]}
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
