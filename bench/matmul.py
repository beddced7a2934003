"""Speed of products with coded weights: `python bench/matmul.py [--json [FILE]] [--rounds N] ...`.

Microseconds and stored bytes per second of y = x W^T, rotation of x included, for formats of the
catalog, batches and thread counts. Cases take turns; median, lowest and highest time are kept. Each
case has one matrix of random words, 4096 x 4096: at few bits it stays in a large L3 cache, so this
measures decoding and arithmetic, not main memory. A dense float32 product in numpy runs beside.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from timing import facts, interleaved, parser, write

from unspool import native
from unspool.evaluate.gaussian import gaussian
from unspool.matmul.kernel import Kernel
from unspool.pack.matrix import CodedMatrix, array_specs
from unspool.spec.catalog import parse

FORMATS = (
    *("t1-e2m1", "t1.5-e2m1", "t2-e2m1", "t2.5-e2m3", "t3-e2m3", "t3.5-e2m3", "t4-e2m3"),
    *("m2-e2m1", "mxfp4", "nvfp4", "int4", "lut-b", "fp8-e4m3", "int8"),
)
DENSE = "float32 (numpy)"
SIZE = (4096, 4096)
BATCHES = (1, 4, 16, 256)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A product to time, and what is known of it beforehand."""

    name: str
    bits_per_weight: float
    m: int
    threads: int
    path: str
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


def cases(
    names: list[str], batches: list[int], threads: list[int], targets: list[str | None]
) -> Iterator[Case]:
    """Every format, target, batch and thread count; then the dense product."""
    inputs = {m: gaussian((m, SIZE[1]), seed=m) for m in batches}
    for name in names:
        matrix = random_matrix(name)
        for kernel in (Kernel(matrix, target=target) for target in targets):
            yield from (product(kernel, inputs[m], n) for m in batches for n in threads)
    dense = gaussian(SIZE)
    for m in batches:  # its threads are those of the BLAS library
        yield Case(
            name=DENSE,
            bits_per_weight=32.0,
            m=m,
            threads=native.threads(None),
            path="numpy",
            stored=dense.nbytes,
            run=lambda x=inputs[m]: x @ dense.T,
        )


def product(kernel: Kernel, x: np.ndarray, threads: int) -> Case:
    """One product with a prepared layer, result memory included."""
    fmt = kernel.matrix.format
    return Case(
        name=fmt.name,
        bits_per_weight=round(fmt.bits_per_weight(*SIZE), 4),
        m=len(x),
        threads=threads,
        path=kernel.choice(len(x)).path,
        stored=kernel.matrix.nbytes,
        run=lambda: kernel(x, threads=threads),
    )


def row(case: Case, seconds: list[float]) -> dict[str, str | int | float]:
    """The figures of one case; gbps are stored bytes of the weight per second, in 10^9."""
    median = statistics.median(seconds)
    return {
        "format": case.name,
        "bits_per_weight": case.bits_per_weight,
        "n": SIZE[0],
        "k": SIZE[1],
        "m": case.m,
        "threads": case.threads,
        "path": case.path,
        "us": round(median * 1e6, 1),
        "us_low": round(min(seconds) * 1e6, 1),
        "us_high": round(max(seconds) * 1e6, 1),
        "gbps": round(case.stored / median / 1e9, 3),
        "gflops": round(2 * SIZE[0] * SIZE[1] * case.m / median / 1e9, 2),
    }


def main() -> None:
    """Prints the rows; with --json writes them too."""
    options = parser(__doc__, "matmul.json")
    options.add_argument("--batches", nargs="*", type=int, default=list(BATCHES))
    options.add_argument("--targets", nargs="*", default=[None], help="default: the best one here")
    chosen = options.parse_args()
    if native.library() is None:
        sys.exit(f"no compiled library to measure: {native.why_not()}")
    found = {**facts(), "rounds": chosen.rounds}
    names = [n for n in FORMATS if not chosen.only or any(part in n for part in chosen.only)]
    threads = sorted({1, native.threads(None)})
    every = list(cases(names, chosen.batches, threads, chosen.targets))
    seconds = interleaved([case.run for case in every], chosen.rounds)
    rows = [row(case, seen) for case, seen in zip(every, seconds, strict=True)]
    for r in rows:
        print(
            f"{r['format']:16} {r['bits_per_weight']:7.3f} bits  m {r['m']:4}  {r['threads']} "
            f"threads  {r['path']:18} {r['us']:10.0f} us ({r['us_low']:.0f} to {r['us_high']:.0f})"
            f"  {r['gbps']:6.2f} GB/s  {r['gflops']:6.1f} GFLOP/s"
        )
    write(chosen.json, found, rows)


if __name__ == "__main__":
    main()
