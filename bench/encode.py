"""Encoding rates: `python bench/encode.py [--json [FILE]] [--rounds N] [--only NAME ...]`.

Weights per second on Gaussian data: the trellis search of every coded format of the catalog alone,
whole encoders (rotation, scales, search, packing), nearest value, and rotation; on one thread and
on all. Cases take turns; median, lowest and highest rate over the rounds are kept, and the median
rate per second of CPU time of all threads, which other work on the machine disturbs less.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from timing import facts, interleaved, parser, write

from unspool import native
from unspool.decode.interpret import state_values
from unspool.encode.encode import encode
from unspool.encode.nearest import nearest
from unspool.encode.rotate import hadamard, signs
from unspool.encode.viterbi import viterbi
from unspool.evaluate.gaussian import gaussian
from unspool.spec.catalog import FORMATS, parse

SEARCHED = {
    **dict.fromkeys(("t1-e2m1", "t2-e2m1", "t3-e2m3", "t4-e2m3"), 1 << 21),
    **dict.fromkeys(("t1.5-e2m1", "t2.5-e2m3", "t3.5-e2m3"), 1 << 20),
    **dict.fromkeys(("m2-e2m1", "m2-e4m3"), 1 << 18),
    **dict.fromkeys(("m3-e2m1", "m3-e4m3"), 1 << 14),
}
"""Weights searched per round; each takes some tenths of a second."""

ENCODED = ("t2-e2m1", "t3-e2m3", "t4-e2m3", "m2-e2m1", "m2-e4m3", "nvfp4", "mxfp4", "lut-b")
SHAPE = (256, 4096)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something to time: `weights` go through every call of `run`."""

    name: str
    threads: int
    weights: int
    run: Callable[[], object]


def cases(threads: int) -> Iterator[Case]:
    """All cases on that many threads."""
    for name, count in SEARCHED.items():
        yield search(name, count, threads)
    weight = gaussian(SHAPE)
    for name in ENCODED:
        run = encoder(name, weight, threads)
        yield Case(name=f"encode {name}", threads=threads, weights=weight.size, run=run)
    for states in (16, 256):
        table = weight[0, :states]
        yield Case(
            name=f"nearest of {states} values",
            threads=threads,
            weights=weight.size,
            run=lambda table=table: nearest(table, weight, threads=threads),
        )
    flips = signs(SHAPE[1], 0, "in")
    yield Case(
        name="rotation by 128",
        threads=threads,
        weights=weight.size,
        run=lambda: hadamard(weight, 128, flips, threads=threads),
    )


def search(name: str, count: int, threads: int) -> Case:
    """The two-pass trellis search alone."""
    code = FORMATS[name].code
    values, planes = state_values(code), [(p.window, p.stride) for p in code.planes]
    targets = gaussian((count // code.steps // code.lanes, code.steps * code.lanes))
    rings = (targets * np.float32(code.sigma or 1)).reshape(-1, code.steps, code.lanes)
    return Case(
        name=f"search {name}",
        threads=threads,
        weights=rings.size,
        run=lambda: viterbi(values, planes, rings, threads=threads),
    )


def encoder(name: str, weight: np.ndarray, threads: int) -> Callable[[], object]:
    """The whole encoder of a format."""
    return lambda: encode(weight, parse(name), threads=threads)


def clocked(case: Case, spent: list[float]) -> Callable[[], object]:
    """The case's run, which also notes the CPU seconds of all threads."""

    def run() -> None:
        start = time.process_time()
        case.run()
        spent.append(time.process_time() - start)

    return run


def row(case: Case, seconds: list[float], spent: list[float]) -> dict[str, str | int]:
    """Rates of one case in weights per second."""
    return {
        "case": case.name,
        "threads": case.threads,
        "weights_per_second": round(case.weights / statistics.median(seconds)),
        "slowest": round(case.weights / max(seconds)),
        "fastest": round(case.weights / min(seconds)),
        "per_cpu_second": round(case.weights / statistics.median(spent)),
    }


def main() -> None:
    """Prints the rows; with --json writes them too."""
    options = parser(__doc__, "encode.json").parse_args()
    if native.library() is None:
        sys.exit(f"no compiled library to measure: {native.why_not()}")
    found = {**facts(), "rounds": options.rounds}
    every = [case for threads in sorted({1, native.threads(None)}) for case in cases(threads)]
    chosen = [c for c in every if not options.only or any(o in c.name for o in options.only)]
    spent: list[list[float]] = [[] for _ in chosen]
    runs = [clocked(case, each) for case, each in zip(chosen, spent, strict=True)]
    seconds = interleaved(runs, options.rounds)
    rows = [row(*each) for each in zip(chosen, seconds, spent, strict=True)]
    for entry in rows:
        rate, low, high = (entry[key] / 1e6 for key in ("weights_per_second", "slowest", "fastest"))
        each, spent_rate = f"{entry['case']:24} {entry['threads']} threads", entry["per_cpu_second"]
        print(f"{each} {rate:9.3f} M/s  ({low:.3f} to {high:.3f}), {spent_rate / 1e6:.3f} M/CPU s")
    write(options.json, found, rows)


if __name__ == "__main__":
    main()
