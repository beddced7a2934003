"""compute-sanitizer over a small part of the run, in a process of its own.

It finds reads and writes outside memory and, by racecheck, shared memory without a barrier. It
runs kernels a hundred times slower; hence a few formats, and only what it can get through in time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gpu.stage import AbsentError, Given, Stage

PROGRAM = "compute-sanitizer"
PLACES = ("CUDA_HOME", "CUDA_PATH")
USUAL = Path("/usr/local/cuda")

TOOLS = ("memcheck", "racecheck")
FORMATS = ("m2-e4m3", "t2-e2m1", "lut3-row", "mxfp4")
"""One of multiplication, of a table in shared memory, of a parameter, of block scales."""

FOUND_ERRORS = 77
"""What it is told to exit with, so that its findings are no failure of the program."""


def check(given: Given) -> None:
    """A row per tool; what it found is wrong."""
    program = find()
    if program is None:
        raise AbsentError(f"{PROGRAM} is neither in CUDA_HOME nor on the PATH")
    for tool in TOOLS:
        if given.deadline.left < 5:
            given.findings.cut = True
            return
        row = _run(given, program, tool)
        given.findings.rows.append(row)
        if row["found_errors"]:
            given.findings.wrong.append(f"{tool}: {row['said']}")


def find() -> Path | None:
    """The program of an installed CUDA, else of the PATH."""
    homes = [Path(os.environ[name]) for name in PLACES if os.environ.get(name)]
    for home in (*homes, USUAL):
        path = home / "bin" / PROGRAM
        if path.is_file():
            return path
    on_path = shutil.which(PROGRAM)
    return Path(on_path) if on_path else None


def command(program: Path, tool: str, seconds: float) -> list[str]:
    """The part of the run that it watches; it keeps to the time by itself, too."""
    watch = [str(program), "--tool", tool, "--error-exitcode", str(FOUND_ERRORS)]
    # together: it watches the process that it starts
    part = ["-m", "gpu", "--together", "--only", "decode", "products", "--no-json"]
    kept = ["--seconds", f"{seconds:.0f}", "--formats", *FORMATS]
    return [*watch, sys.executable, *part, *kept]


def output(asked: Sequence[str], seconds: float) -> tuple[int, str]:
    """Exit code and what was said; TimeoutExpired after the end of all its processes.

    The sanitizer starts Python as its child: to end the one alone would leave the other on the GPU.
    """
    process = subprocess.Popen(
        asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, said


def _run(given: Given, program: Path, tool: str) -> dict[str, object]:
    seconds = max(given.deadline.left, 1)
    try:
        code, text = output(command(program, tool, seconds), seconds)
    except subprocess.TimeoutExpired:
        given.findings.cut = True
        return {"tool": tool, "found_errors": False, "said": "the time was up"}
    said = [line for line in text.splitlines() if line.startswith("=========")]
    return {
        "tool": tool,
        "found_errors": code == FOUND_ERRORS,
        "exit": code,
        "said": " | ".join(said[:20] if code == FOUND_ERRORS else said[-1:]),
    }


STAGE = Stage(name="sanitizer", run=check, seconds=50)
