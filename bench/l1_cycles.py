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
PROCESSES, ROUNDS = 7, 101
"""A round's parts take 0.1 to 0.3 ms: most of them end before another process gets the core. The
medians of processes differ by more than the rounds of one do, by where their memory lies."""


def measured(target: str, shape: StripShape | str, m: int) -> dict[str, Any] | None:
    """The median process's cycles, the least and the most of one, and the frequency.

    None where the target cannot run.
    """
    if why_not(target):
        return None
    text = source(target, str(shape), m, caller="#include <cstdlib>\n" + HARNESS.read_text())
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "cycles")
        compile_with(("-o", program), text, str(shape), (ARENA,))
        medians = np.array([_medians(program, m) for _ in range(PROCESSES)])
    cycles, gigahertz = medians.T
    return {
        "cycles_measured": round(float(np.median(cycles)), 2),
        "cycles_of_processes": [round(float(cycles.min()), 2), round(float(cycles.max()), 2)],
        "gigahertz": round(float(np.median(gigahertz)), 2),
    }


def _medians(program: str, m: int) -> np.ndarray:
    """Cycles and GHz of a process's median round."""
    command = [program, str(m), str(ROUNDS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rounds = np.array([line.split() for line in done.stdout.splitlines()], float)
    found: np.ndarray = np.median(rounds, axis=0)
    return found
