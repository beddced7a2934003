"""Speed of products with coded weights: `python bench/matmul.py [--json [FILE]] [--rounds N] ...`.

Microseconds and stored bytes per second of y = x W^T, rotation of x included, for formats of the
catalog, batches and thread counts. The cases take turns, round by round after a warm-up, so that a
machine that slows down slows all of them alike; median, lowest and highest time are kept. Each case
has one matrix of random words, 4096 x 4096: at few bits it stays in a large L3 cache, so this
measures decoding and arithmetic, not main memory. A dense float32 product in numpy runs beside.
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
from unspool.matmul.kernel import Kernel
from unspool.pack.matrix import CodedMatrix, array_specs
from unspool.spec.catalog import parse

RESULTS = Path(__file__).parent / "results" / "matmul.json"
FORMATS = (
    "t1-e2m1", "t1.5-e2m1", "t2-e2m1", "t2.5-e2m3", "t3-e2m3", "t3.5-e2m3", "t4-e2m3",
    "m2-e2m1", "mxfp4", "nvfp4", "int4", "lut-b", "fp8-e4m3", "int8",
)  # fmt: skip
DENSE = "float32 (numpy)"
SIZE = (4096, 4096)
BATCHES = (1, 4, 16, 256)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured case. gbps: stored bytes of the weight per second, in 10^9."""

    format: str
    bits_per_weight: float
    n: int
    k: int
    m: int
    threads: int
    target: str
    path: str
    us: float
    us_low: float
    us_high: float
    gbps: float
    gflops: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A case to time, and what is known of it beforehand."""

    facts: dict[str, str | int | float]
    stored: int
    run: Callable[[], object]


def random_matrix(name: str) -> CodedMatrix:
    """Random words; scales and parameters are finite positive numbers."""
    rng, fmt, arrays = np.random.default_rng(0), parse(name), {}
    for part, spec in array_specs(fmt, *SIZE).items():
        low, top = {"codes": (0, 1 << 32), "tensor_scale": (1, 2)}.get(part, (96, 120))
        arrays[part] = rng.integers(low, top, spec.shape, np.uint64).astype(spec.dtype)
    if fmt.code.operand.name == "E4M3" and not fmt.code.memory:
        arrays["codes"] &= np.uint32(0xBBBBBBBB)  # no NaN patterns
    return CodedMatrix(format=fmt, shape=SIZE, **arrays)


def trials(names: list[str], batches: list[int], threads: list[int], targets: list[str | None]):
    """Every format, target, batch and thread count; then the dense product."""
    rng = np.random.default_rng(1)
    inputs = {m: rng.standard_normal((m, SIZE[1]), np.float32) for m in batches}
    for name in names:
        matrix = random_matrix(name)
        for kernel in (Kernel(matrix, target=target) for target in targets):
            for m in batches:
                for count in threads:
                    yield trial(kernel, inputs[m], count)
    dense = rng.standard_normal(SIZE, np.float32)
    for m in batches:  # its threads are those of the BLAS library
        facts = {"format": DENSE, "bits_per_weight": 32.0, "n": SIZE[0], "k": SIZE[1], "m": m,
                 "threads": native.threads(None), "target": "numpy", "path": "numpy"}  # fmt: skip
        yield Trial(facts=facts, stored=dense.nbytes, run=lambda x=inputs[m]: x @ dense.T)


def trial(kernel: Kernel, x: np.ndarray, threads: int) -> Trial:
    """One product with a prepared layer, result memory included."""
    fmt = kernel.matrix.format
    facts = {"format": fmt.name, "bits_per_weight": round(fmt.bits_per_weight(*SIZE), 4),
             "n": SIZE[0], "k": SIZE[1], "m": len(x), "threads": threads,
             "target": kernel.target, "path": kernel.choice(len(x)).path}  # fmt: skip
    run = lambda: kernel(x, threads=threads)  # noqa: E731
    return Trial(facts=facts, stored=kernel.matrix.nbytes, run=run)


def measure(cases: list[Trial], rounds: int) -> list[Row]:
    """Each case once per round, in turn, after a warm-up of each."""
    for case in cases:
        case.run()
    seconds: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for case, seen in zip(cases, seconds, strict=True):
            start = time.perf_counter()
            case.run()
            seen.append(time.perf_counter() - start)
    return [row(case, seen) for case, seen in zip(cases, seconds, strict=True)]


def row(case: Trial, seen: list[float]) -> Row:
    """The figures of one case."""
    median = statistics.median(seen)
    operations = 2 * SIZE[0] * SIZE[1] * int(case.facts["m"])
    return Row(
        **case.facts,
        us=round(median * 1e6, 1), us_low=round(min(seen) * 1e6, 1),
        us_high=round(max(seen) * 1e6, 1), gbps=round(case.stored / median / 1e9, 3),
        gflops=round(operations / median / 1e9, 2),
    )  # fmt: skip


def machine() -> dict[str, str | int]:
    """What a time depends on."""
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
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--batches", nargs="*", type=int, default=list(BATCHES))
    parser.add_argument("--targets", nargs="*", default=[None], help="default: the best one here")
    chosen = parser.parse_args()
    if native.library() is None:
        sys.exit(f"no compiled library to measure: {native.why_not()}")
    facts = machine()
    threads = sorted({1, native.threads(None)})
    cases = list(trials(chosen.formats, chosen.batches, threads, chosen.targets))
    rows = measure(cases, chosen.rounds)
    for r in rows:
        print(f"{r.format:16} {r.bits_per_weight:7.3f} bits  m {r.m:4}  {r.threads} threads  "
              f"{r.path:18} {r.us:10.0f} us ({r.us_low:.0f} to {r.us_high:.0f})  "
              f"{r.gbps:6.2f} GB/s  {r.gflops:6.1f} GFLOP/s")  # fmt: skip
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"machine": facts, "rounds": chosen.rounds, "rows": [asdict(r) for r in rows]}
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
