"""`make gpu`: conformance, products, sanitizer, probe, benchmark on the GPU that is here.

PYTHONPATH=src:bench python3 -m gpu [--only STAGE ...] [--formats NAME ...] [--seconds N]
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
SECONDS = 430
"""Of eight minutes: the rest is for the first start of torch and the last of a stage."""

STAGES = ("decode", "products", "sanitizer", "probe", "benchmark")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; the exit code (docs/gpu.md)."""
    asked = options(arguments)
    say: Callable[[str], None] = functools.partial(print, flush=True)
    try:
        from gpu import run
    except ImportError as error:
        say(f"cannot start: {error} (make gpu sets PYTHONPATH; numpy and torch are needed)")
        return 3
    from unspool.errors import UnspoolError

    try:
        from gpu.board import Board

        board = Board()
    except UnspoolError as error:
        say(f"no GPU to run on: {error}")
        return run.NO_GPU
    return _on(board, asked, say)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a wrong one exits with 2."""
    found = argparse.ArgumentParser(prog="gpu", description=__doc__.splitlines()[0])
    found.add_argument("--only", nargs="*", default=[], choices=STAGES, metavar="STAGE")
    found.add_argument("--formats", nargs="*", default=[], metavar="NAME")
    found.add_argument("--seconds", type=float, default=SECONDS)
    found.add_argument("--json", type=Path, metavar="FILE", help="default: bench/results/gpu-*")
    found.add_argument("--no-json", action="store_true")
    return found.parse_args(arguments)


def _on(board: Any, asked: argparse.Namespace, say: Callable[[str], None]) -> int:
    from gpu import benchmark, conformance, correctness, machine, probe, run, sanitizer
    from gpu.entrants import ENTRANTS
    from gpu.stage import Deadline, chosen

    stages = (
        conformance.STAGE,
        correctness.stage(ENTRANTS),
        sanitizer.STAGE,
        probe.STAGE,
        benchmark.stage(ENTRANTS),
    )
    head = machine.facts(board)
    named = re.sub(r"[^a-z0-9]+", "-", str(head["gpu"]).lower()).strip("-")
    path = None if asked.no_json else asked.json or RESULTS / f"gpu-{named}.json"
    document = run.run(
        board,
        chosen(stages, asked.only),
        head,
        path=path,
        whole=Deadline(seconds=asked.seconds),
        say=say,
        formats=asked.formats,
    )
    if path is not None:
        say(f"written: {path.name}")
        for stage in document["stages"]:
            if stage["stage"] == probe.STAGE.name and stage["rows"]:
                beside = path.with_name(f"calibration-{named}.json")
                run.write(beside, probe.calibration(head, stage["rows"]))
                say(f"written: {beside.name}")
    return run.exit_code(document)


if __name__ == "__main__":
    sys.exit(main())
