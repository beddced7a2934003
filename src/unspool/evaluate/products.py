"""Products of activations with weights that come from main memory, ours and other people's.

While a model generates, every weight is read once per token and none is in a cache when its turn
comes. Here a rotating set of copies of one matrix, larger than the last cache several times over,
does the same; the speed of reading memory is measured between the products.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from unspool.encode.rotate import hadamard, signs
from unspool.errors import EvaluationError
from unspool.evaluate.gaussian import gaussian
from unspool.evaluate.memory_speed import STREAMS, ReadMemory, free_memory, last_cache
from unspool.evaluate.stopwatch import Run, Times, take_turns
from unspool.matmul.kernel import FLOAT32, Kernel, multiply
from unspool.pack.matrix import CodedMatrix, array_specs
from unspool.spec.catalog import parse
from unspool.spec.format import Format

FORMATS = (
    *("t1-e2m1", "t1.5-e2m1", "t2-e2m1", "t2.5-e2m3", "t3-e2m3", "t3.5-e2m3", "t4-e2m3"),
    *("m2-e2m1", "mxfp4", "nvfp4", "int4", "lut-b", "fp8-e4m3", "int8"),
)
"""The catalog as it is measured: all trellises, a multiply code, plain formats."""

COLD = 3
"""A rotating set is larger than the last cache by this factor."""

MOST_COPIES = 256
"""Copies of a small matrix: of one under 400 kB they would not outgrow a cache of 32 MiB."""

ROTATED_ROWS = 16
"""Rows rotated at once where the rotation alone is timed: one takes as long as calling for it."""


class Weights(Protocol):
    """Copies of one matrix [n, k] in the memory of whoever multiplies."""

    #: name of the format, a peer's with the peer's name before it
    format: str
    #: what runs
    path: str
    n: int
    k: int
    #: stored bytes of one copy
    nbytes: int
    #: copies that a call of a product multiplies with
    products_per_call: int

    def product(self, x: np.ndarray, threads: int) -> Callable[[], object]:
        """A function that multiplies x [m, k] with the next copies."""
        ...

    def rotation(self, x: np.ndarray, threads: int) -> Callable[[], object] | None:
        """A function that only rotates x as the product does; None where it does not."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


def copies(nbytes: int, *, hot: bool = False) -> int:
    """Copies of a matrix that no cache holds together; one where it may stay there (`hot`)."""
    return 1 if hot else min(MOST_COPIES, max(2, COLD * last_cache() // nbytes + 1))


def check_room(names: Iterable[str], n: int, k: int, *, hot: bool = False) -> None:
    """Raises EvaluationError where all copies together would not fit the memory that is free."""
    sizes = [int(parse(name).bits_per_weight(n, k) * n * k / 8) + 1 for name in names]
    # One more of each while a copy is put into the kernel's order.
    needed = sum(size * (copies(size, hot=hot) + 1) for size in sizes)
    free = free_memory()
    if free is not None and needed > free:
        raise EvaluationError(
            "the copies of the weights do not fit into memory",
            where=f"{n} x {k}",
            found=f"{needed >> 20:,} MiB",
            allowed=f"{free >> 20:,} MiB; fewer formats, or a smaller matrix",
        )


class CodedWeights:
    """Copies of a matrix of random words in a format of ours."""

    products_per_call = 1

    def __init__(
        self,
        name: str,
        n: int,
        k: int,
        *,
        target: str | None = None,
        activations: str = "auto",
        hot: bool = False,
    ) -> None:
        """Prepares them; the arguments are those of `Kernel`."""
        matrix = random_matrix(parse(name), n, k)
        self.format, self.n, self.k, self.nbytes = name, n, k, matrix.nbytes
        self._kernels = []
        for _ in range(copies(matrix.nbytes, hot=hot)):
            own = {part: array.copy() for part, array in matrix.arrays.items()}
            apart = CodedMatrix(format=matrix.format, shape=(n, k), **own)
            self._kernels.append(Kernel(apart, target=target, activations=activations))
            self._kernels[-1].drop_codes()
        self.path = self._kernels[0].path
        self._next = itertools.count()
        self._rotation = matrix.format.rotation

    def product(self, x: np.ndarray, threads: int) -> Callable[[], object]:
        """x W^T with the next copy, into memory that is there; the library is called directly."""
        y = np.empty((len(x), self.n), np.float32)
        calls = [_bound(kernel, x, y, threads) for kernel in self._kernels]
        return in_turn(calls, self._next)

    def rotation(self, x: np.ndarray, threads: int) -> Callable[[], object] | None:
        """The rotation of x along k, padded."""
        size = self._rotation.input_size
        if not size:
            return None
        padded = np.zeros((len(x), -(-self.k // size) * size), np.float32)
        padded[:, : self.k] = x
        flips = signs(padded.shape[1], self._rotation.seed, "in")
        return lambda: hadamard(padded, size, flips, threads=threads)

    def close(self) -> None:
        """Drops all copies."""
        self._kernels.clear()


def in_turn(calls: Sequence[Callable[[], object]], count: Iterator[int]) -> Callable[[], object]:
    """A function that calls the next one; who shares a counter never calls the same twice."""
    if len(calls) == 1:
        return calls[0]
    return lambda: calls[next(count) % len(calls)]()


def _bound(kernel: Kernel, x: np.ndarray, y: np.ndarray, threads: int) -> Callable[[], object]:
    """The product without the checks of `Kernel.into`, which take microseconds of Python."""
    if not kernel.compiled:
        return lambda: kernel(x, threads=threads)
    place, results = (x.ctypes.data, FLOAT32, *x.shape), ((y.ctypes.data, None),)

    def product(x: np.ndarray = x) -> np.ndarray:  # which keeps x alive
        multiply((kernel,), place, results, threads)
        return y

    return product


def random_matrix(fmt: Format, n: int, k: int) -> CodedMatrix:
    """Random words; scales and parameters are finite positive numbers."""
    rng, arrays = np.random.default_rng(0), {}
    for part, spec in array_specs(fmt, n, k).items():
        ranges = {"codes": (0, 1 << 32), "tensor_scale": (1, 2)}
        # 2^-4 to 2^-3 in FP16, about 2^-23 to 2^-7 in E8M0, about 2^5 to 2^8 in E4M3
        low, top = ranges.get(part, (0x2C00, 0x3000) if spec.dtype == "uint16" else (96, 120))
        arrays[part] = rng.integers(low, top, spec.shape, np.uint64).astype(spec.dtype)
    if fmt.code.operand.name == "E4M3" and not fmt.code.memory:
        arrays["codes"] &= np.uint32(0xBBBBBBBB)  # no NaN patterns
    return CodedMatrix(format=fmt, shape=(n, k), **arrays)


@dataclass(frozen=True, kw_only=True)
class _Case:
    weights: Weights
    m: int
    threads: int
    run: Run
    rotation: Run | None


def measure(
    weights: Sequence[Weights],
    batches: Sequence[int],
    threads: Sequence[int],
    *,
    rounds: int = 15,
    read: ReadMemory,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """A row of figures for every matrix, batch and thread count.

    us (median, low, high, quartiles) are wall times of a product, rounding of activations and
    rotation included; rotation_us that of the rotation alone. gbps: stored bytes of the weight per
    second, in 10^9; read_gbps: of memory read by as many threads in the same rounds, in one stream
    per thread or four, whichever is quicker.
    """
    cases = list(_cases(weights, batches, threads))
    reads = [
        Run(call=partial(read.read, count, streams), threads=count)
        for count in threads
        for streams in STREAMS
    ]
    turns = [case.rotation for case in cases if case.rotation]
    times = iter(take_turns([*reads, *(c.run for c in cases), *turns], rounds, progress=progress))
    speeds = {count: max(_speed(read, next(times)) for _ in STREAMS) for count in threads}
    products = [next(times) for _ in cases]
    return [
        _row(case, found, speeds[case.threads], next(times) if case.rotation else None)
        for case, found in zip(cases, products, strict=True)
    ]


def _speed(read: ReadMemory, times: Times) -> float:
    """10^9 bytes per second."""
    return read.slice / times.median / 1e3


def _cases(
    weights: Sequence[Weights], batches: Sequence[int], threads: Sequence[int]
) -> Iterator[_Case]:
    for matrix in weights:
        for m in batches:
            x = gaussian((m, matrix.k), seed=m)
            many = np.resize(x, (max(m, ROTATED_ROWS), matrix.k))
            for count in threads:
                call, repeats = matrix.product(x, count), matrix.products_per_call
                run = Run(call=call, threads=count, repeats=repeats)
                # A single row is rotated by a single thread.
                turn = matrix.rotation(many, count if m > 1 else 1)
                rotation = None if turn is None else Run(call=turn, threads=count)
                yield _Case(weights=matrix, m=m, threads=count, run=run, rotation=rotation)


def _row(case: _Case, times: Times, speed: float, turned: Times | None) -> dict[str, Any]:
    weights, seconds = case.weights, times.median / 1e6
    rate = weights.nbytes / seconds / 1e9
    rotation = turned.median * case.m / max(case.m, ROTATED_ROWS) if turned else 0.0
    return {
        "format": weights.format,
        "bits_per_weight": round(8 * weights.nbytes / weights.n / weights.k, 4),
        "n": weights.n,
        "k": weights.k,
        "m": case.m,
        "threads": case.threads,
        "path": weights.path,
        **times.to_json(),
        "rotation_us": round(rotation, 2),
        "gbps": round(rate, 3),
        "read_gbps": round(speed, 3),
        "fraction_of_read": round(rate / speed, 4),
        "gflops": round(2 * weights.n * weights.k * case.m / seconds / 1e9, 2),
    }
