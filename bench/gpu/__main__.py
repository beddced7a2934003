"""`make gpu`: conformance, products, benchmark, probe, search, sanitizer on the GPU that is here.

PYTHONPATH=src:bench python3 -m gpu [--only STAGE ...] [--formats NAME ...] [--seconds N]

Several stages run each in a process of its own (apart.py), unless `--together`.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu.run import NO_GPU, WRONG

RESULTS = Path(__file__).parents[1] / "results"
SECONDS = 420
"""Of eight minutes: the rest is for the last stage's start, alarm and end (apart.py)."""

PYTHON = (3, 11)

STAGES = ("decode", "products", "benchmark", "probe", "search", "sanitizer")
"""What nobody knows yet comes first: a run that is ended early has its timings."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; the exit code (docs/gpu.md)."""
    asked = options(arguments)
    say: Callable[[str], None] = functools.partial(print, flush=True)
    if sys.version_info < PYTHON:
        say(f"cannot start: Python {sys.version.split()[0]}, 3.11 or newer is needed")
        return NO_GPU
    try:
        known = _known()
    except ImportError as error:
        say(f"cannot start: {error} (make gpu sets PYTHONPATH; numpy and torch are needed)")
        return NO_GPU
    unknown = [name for name in asked.formats if name not in known]
    if unknown:
        say(f"--formats: found {', '.join(unknown)}; allowed: {', '.join(known)}")
        return WRONG
    if not _writable(asked):
        say(f"--json: no file can be written there; found {asked.json or RESULTS}")
        return WRONG
    if len(asked.only or STAGES) > 1 and not asked.together:
        return _apart(asked, say)
    from unspool.errors import UnspoolError

    try:
        from gpu.board import Board

        board = Board()
    except UnspoolError as error:
        say(f"no GPU to run on: {error}")
        return NO_GPU
    return _on(board, asked, say)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a wrong one exits with 2."""
    found = argparse.ArgumentParser(prog="gpu", description=__doc__.splitlines()[0])
    found.add_argument("--only", nargs="*", default=[], choices=STAGES, metavar="STAGE")
    found.add_argument("--formats", nargs="*", default=[], metavar="NAME")
    found.add_argument("--seconds", type=_seconds, default=SECONDS)
    found.add_argument("--json", type=Path, metavar="FILE", help="default: bench/results/gpu-*")
    found.add_argument("--no-json", action="store_true")
    found.add_argument("--together", action="store_true", help="all stages in this process")
    found.add_argument("--without", nargs="*", default=[], metavar="NAME", help="products to omit")
    found.add_argument("--small", action="store_true", help="products: one shape, 1 and 9 rows")
    return found.parse_args(arguments)


def _seconds(given: str) -> float:
    seconds = float(given)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"a positive number of seconds, found {given}")
    return seconds


def _known() -> list[str]:
    """What --formats takes: formats, and other entrants by name or by its first word."""
    from gpu.entrants import ENTRANTS
    from unspool.spec.catalog import FORMATS

    names = [name for each in ENTRANTS for name in (each.name.split()[0], each.name)]
    return list(dict.fromkeys([*FORMATS, *names]))


def _writable(asked: argparse.Namespace) -> bool:
    """Whether results can be written: a run is long."""
    if asked.no_json:
        return True
    file = asked.json or RESULTS / "gpu.json"
    folder = next(each for each in file.absolute().parents if each.exists())
    named = bool(file.name) and not file.is_dir()
    return named and folder.is_dir() and os.access(folder, os.W_OK)


def _stages(*, small: bool = False) -> Sequence[Any]:
    from gpu import benchmark, conformance, correctness, probe, sanitizer, search
    from gpu.entrants import ENTRANTS

    return (
        conformance.STAGE,
        correctness.stage(ENTRANTS, correctness.SMALL if small else ()),
        benchmark.stage(ENTRANTS),
        probe.STAGE,
        search.STAGE,
        sanitizer.STAGE,
    )


def _apart(asked: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Each stage in a child of this process, which never opens the GPU."""
    from gpu import apart
    from gpu.stage import Deadline, chosen

    def command(stage: Any, file: Path, seconds: float, without: Sequence[str]) -> list[str]:
        part = ["--only", stage.name, "--json", str(file), "--seconds", f"{max(seconds, 0.1):.1f}"]
        formats = ["--formats", *asked.formats] if asked.formats else []
        omitted = [*asked.without, *without]
        part += ["--without", *omitted] if omitted else []
        return [sys.executable, "-m", "gpu", *part, *["--small"] * asked.small, *formats]

    try:
        document = apart.run(
            chosen(_stages(), asked.only),
            command,
            path_of=functools.partial(_path, asked),
            whole=Deadline(seconds=asked.seconds),
            say=say,
        )
    except apart.NoGpuError:
        return NO_GPU
    return _finish(asked, document, say)


def _on(board: Any, asked: argparse.Namespace, say: Callable[[str], None]) -> int:
    from gpu import machine, run
    from gpu.stage import Deadline, chosen

    head = machine.facts(board)
    document = run.run(
        board,
        chosen(_stages(small=asked.small), asked.only),
        head,
        path=_path(asked, head),
        whole=Deadline(seconds=asked.seconds),
        say=say,
        formats=asked.formats,
        without=asked.without,
    )
    return _finish(asked, document, say)


def _path(asked: argparse.Namespace, head: Mapping[str, Any]) -> Path | None:
    """The file of the results: the one asked for, or one named after the GPU."""
    if asked.no_json:
        return None
    return asked.json or RESULTS / f"gpu-{_named(head)}.json"


def _named(head: Mapping[str, Any]) -> str:
    return re.sub(r"[^a-z0-9]+", "-", str(head["gpu"]).lower()).strip("-")


def _finish(
    asked: argparse.Namespace, document: Mapping[str, Any], say: Callable[[str], None]
) -> int:
    """Writes the calibration beside the results; the exit code."""
    from gpu import probe, run

    head = {name: value for name, value in document.items() if name not in ("stages", "schema")}
    path = _path(asked, head) if head else None
    if path is not None:
        say(f"written: {path.name}")
        for stage in document["stages"]:
            if stage["stage"] == probe.STAGE.name and stage["rows"]:
                beside = path.with_name(f"calibration-{_named(head)}.json")
                run.write(beside, probe.calibration(head, stage["rows"]))
                say(f"written: {beside.name}")
    return run.exit_code(document)


if __name__ == "__main__":
    sys.exit(main())
