"""compute-sanitizer over a small part of the run, in a process of its own.

It finds reads and writes outside memory and, by racecheck, shared memory without a barrier. It
runs kernels a hundred times slower; hence one format, and each tool has its part of the time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu.run import NO_TIME
from gpu.stage import ABSENT, CUT, FAILED, PASSED, AbsentError, Given, Stage

PROGRAM = "compute-sanitizer"
PLACES = ("CUDA_HOME", "CUDA_PATH")
USUAL = Path("/usr/local/cuda")

TOOLS = ("memcheck", "racecheck")
FORMAT = "m2-e4m3"
"""With all activations that this GPU multiplies it with."""

OPTIONS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
"""torch and we ask the driver for what it may not have; that is no error of a kernel."""

ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Every tensor an allocation of its own: inside torch's blocks nothing is out of bounds."""

FOUND_ERRORS = 77
"""What it is told to exit with, so that its findings are no failure of the program."""

FOUND = re.compile(r"Invalid|Misaligned|hazard|(ERROR|RACECHECK) SUMMARY: [1-9]")
BEGUN, THROUGH = "== products", "passed in"
"""What the watched run says."""

LEAST_SECONDS = 5


def check(given: Given) -> None:
    """A row per tool; what it found is wrong."""
    program = find()
    if program is None:
        raise AbsentError(f"{PROGRAM} is neither in CUDA_HOME nor on the PATH")
    found = given.findings
    for number, tool in enumerate(TOOLS):
        seconds = given.deadline.left / (len(TOOLS) - number)
        if seconds < LEAST_SECONDS:
            found.cut = True
            return
        code, text = output(command(program, tool, seconds, given.without), seconds)
        status, told = judged(code, text)
        found.rows.append({"tool": tool, "status": status, "exit": code, "said": told})
        found.cut |= status == CUT
        if status == FAILED:
            found.wrong.append(f"{tool}: {told}")
        given.keep()
    if all(row["status"] == ABSENT for row in found.rows):
        raise AbsentError(found.rows[0]["said"])


def find() -> Path | None:
    """The program of an installed CUDA, else of the PATH."""
    homes = [Path(os.environ[name]) for name in PLACES if os.environ.get(name)]
    for home in (*homes, USUAL):
        path = home / "bin" / PROGRAM
        if path.is_file():
            return path
    on_path = shutil.which(PROGRAM)
    return Path(on_path) if on_path else None


def command(program: Path, tool: str, seconds: float, without: Sequence[str] = ()) -> list[str]:
    """The part of the run that it watches: one format, one shape, 1 and 9 rows.

    Its clock starts when torch has: so it gets half of the time, and ends by itself.
    """
    watch = [str(program), "--tool", tool, *OPTIONS[tool], "--error-exitcode", str(FOUND_ERRORS)]
    # together: it watches the process that it starts
    part = ["-m", "gpu", "--together", "--only", "products", "--small", "--no-json"]
    kept = ["--seconds", f"{seconds / 2:.1f}", "--formats", FORMAT, "--without", *without]
    return [*watch, sys.executable, *part, *kept]


def output(asked: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit code (None: the time was up) and all that was said until the end of all its processes.

    The sanitizer starts Python as its child: to end the one alone would leave the other on the GPU.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(
            asked, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        code = None
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if code is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        file.seek(0)
        return code, file.read()


def judged(code: int | None, text: str) -> tuple[str, str]:
    """A status, and what was said of it.

    An error that was reported counts even where the time was up afterwards. A tool that never got
    as far as the run (a GPU that it does not know, no permission) is absent.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    tool = [line for line in lines if line.startswith("=========")]
    last = " | ".join(lines[-3:])
    if code == FOUND_ERRORS or any(map(FOUND.search, tool)):
        return FAILED, " | ".join(tool[:20])
    if code is None or code == NO_TIME:
        return CUT, f"the time was up: {last}"
    if BEGUN not in text:
        return ABSENT, f"it did not start the run, exit code {code}: {last}"
    if code:
        return FAILED, f"the run under it ended with exit code {code}: {last}"
    return (PASSED, " | ".join(tool[-1:])) if THROUGH in text else (ABSENT, last)


STAGE = Stage(name="sanitizer", run=check, seconds=50)
