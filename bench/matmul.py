"""Speed of products with coded weights from main memory, beside other people's.

`python bench/matmul.py [--json [FILE]] [--ggml FOLDER] [--torch] [--onnxruntime] ...`. Everything
runs in one process and takes turns; `unspool.evaluate.products` says what is measured and how.
Peers are described in `peers/README.md`. Sizes come one after the other, each with its own turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from timing import facts, parser, write

from unspool import native
from unspool.evaluate.gaussian import gaussian
from unspool.evaluate.memory_speed import ReadMemory, last_cache, load_width
from unspool.evaluate.products import FORMATS, CodedWeights, Weights, measure

SIZES = ("4096x4096", "14336x4096", "4096x14336")
BATCHES = (1, 4, 32, 512)

TRIAL, SANE = (256, 512), 0.15
"""Size and relative error of the products by which peers are checked. Torch's int4 is compared with
the weight before it was rounded, and has 0.10."""

Maker = Callable[[int, int], Weights]
"""Makes the copies of a matrix from n and k."""


def makers(options: Any) -> list[Maker]:
    """Everything that was asked for."""
    how = {"target": options.target, "activations": options.activations, "hot": options.hot}
    ours = [partial(CodedWeights, name, **how) for name in options.formats]
    others = list(peers(options))
    for make in others:
        check(make)
    return [*ours, *others]


def peers(options: Any) -> Iterator[Maker]:
    """The peers that were asked for, all their formats or those that `--peer-formats` names."""
    if options.torch:  # before ggml, so that one OpenMP runtime serves torch and us
        from peers import pytorch

        yield from chosen(options, pytorch.FORMATS, pytorch.TorchWeights)
    if options.onnxruntime:
        from peers import onnx_runtime

        yield from chosen(options, onnx_runtime.FORMATS, onnx_runtime.OnnxWeights)
    if options.ggml:
        from peers.ggml import GgmlWeights
        from peers.ggml_library import TYPES, Ggml

        yield from chosen(options, TYPES, partial(GgmlWeights, Ggml(options.ggml)))


def chosen(options: Any, formats: Iterable[str], make: Callable[..., Weights]) -> Iterator[Maker]:
    for name in formats:
        if not options.peer_formats or name in options.peer_formats:
            yield partial(make, name, hot=options.hot)


def check(make: Callable[..., Any]) -> None:
    """Ends the program where a peer's product is not that of the weight it was given."""
    weights, x = make(*TRIAL), gaussian((3, TRIAL[1]), seed=1)
    expected = x @ weights.dense().T
    error = np.linalg.norm(weights.result(x) - expected) / np.linalg.norm(expected)
    if not error < SANE:
        sys.exit(f"{weights.format} multiplies wrongly: a relative error of {error:.3f}")
    weights.close()


def show(row: dict[str, Any]) -> str:
    """A row as one line."""
    return (
        f"{row['format']:22} {row['bits_per_weight']:6.3f} bits {row['n']:6} x {row['k']:<6}"
        f" m {row['m']:3}  {row['threads']} threads  {row['path']:17} {row['us']:9.1f} us"
        f" ({row['us_low']:.0f}, {row['us_quarter']:.0f} to {row['us_three_quarters']:.0f},"
        f" {row['us_high']:.0f}; cpu {row['cpu_us']:.0f})  {row['gbps']:6.2f} GB/s"
        f" {row['fraction_of_read']:6.1%} of {row['read_gbps']:.1f}  {row['gflops']:6.1f} GFLOP/s"
    )


def options() -> Any:
    found = parser(__doc__, "matmul.json")
    found.set_defaults(rounds=15)
    found.add_argument("--formats", nargs="*", default=list(FORMATS))
    found.add_argument("--sizes", nargs="*", default=list(SIZES), help="n x k: 4096x4096 ...")
    found.add_argument("--batches", nargs="*", type=int, default=list(BATCHES))
    found.add_argument("--threads", nargs="*", type=int)
    found.add_argument("--target", help="default: the best one here")
    found.add_argument("--activations", default="auto")
    found.add_argument("--hot", action="store_true", help="one copy, which may stay in a cache")
    found.add_argument("--ggml", type=Path, metavar="FOLDER", help="where its libraries are")
    found.add_argument("--torch", action="store_true")
    found.add_argument("--onnxruntime", action="store_true")
    found.add_argument("--peer-formats", nargs="*", help="by name: Q2_K; default: all")
    return found.parse_args()


def measure_size(made: list[Weights], given: Any, memory: ReadMemory) -> list[dict[str, Any]]:
    """The rows of one size, printed as well; the copies are given back."""
    threads = given.threads or sorted({1, native.threads(None)})
    rows = measure(made, given.batches, threads, rounds=given.rounds, read=memory)
    for row in rows:
        print(show(row), flush=True)
    for weights in made:
        weights.close()
    return rows


def main() -> None:
    """Prints the rows; with --json writes them too."""
    given = options()
    if native.library() is None:
        sys.exit(f"no compiled library to measure: {native.why_not()}")
    found = {
        **facts(),
        "rounds": given.rounds,
        "cold": not given.hot,
        "last_cache_bytes": last_cache(),
        "read_load_bytes": load_width(),
    }
    rows, memory = [], ReadMemory()
    every = makers(given)
    for size in given.sizes:
        n, k = (int(part) for part in size.split("x"))
        rows += measure_size([make(n, k) for make in every], given, memory)
    write(given.json, found, rows)


if __name__ == "__main__":
    main()
