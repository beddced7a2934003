"""Cycles per 64 weights of the strip kernels' loops, run here with all data in the L1."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from unspool.decode.target import why_not
from unspool.perf.strip_loop import SOURCE, StripShape, compile_with, source

HARNESS = Path(__file__).with_name("l1_cycles.cpp")
ARENA = str(SOURCE / "matmul/cpu/arena.cpp")
ROUNDS = 301
"""Of 0.1 to 0.3 ms a part: most of them end before another process gets the core."""


def measured(target: str, shape: StripShape | str, m: int) -> dict[str, Any] | None:
    """Median and quartiles of the cycles, and the frequency; None where the target cannot run."""
    if why_not(target):
        return None
    text = source(target, str(shape), m, caller="#include <cstdlib>\n" + HARNESS.read_text())
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "cycles")
        compile_with(("-o", program), text, str(shape), (ARENA,))
        done = subprocess.run(
            [program, str(m), str(ROUNDS)], stdout=subprocess.PIPE, text=True, check=True
        )
    cycles, gigahertz = np.array([line.split() for line in done.stdout.splitlines()], float).T
    low, median, high = np.percentile(cycles, (25, 50, 75))
    return {
        "cycles_measured": round(float(median), 2),
        "cycles_quartiles": [round(float(low), 2), round(float(high), 2)],
        "gigahertz": round(float(np.median(gigahertz)), 2),
        "rounds": ROUNDS,
    }
