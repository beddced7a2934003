"""What data sheets do not say: instruction rates, bandwidth by size, the cost of a launch.

Rates are results per clock and multiprocessor; a block times itself, so no clock rate is assumed.
Copies count bytes read and written, reads what a kernel that only loads has read: a product reads
its weight and writes next to nothing. Everything goes into the calibration file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu.board import Arguments
from gpu.probe_source import (
    BODY,
    ITERATIONS,
    READ_BLOCKS,
    READ_BYTES,
    READ_THREADS,
    THREADS,
    UNLIKELY,
    Probe,
    kernel_name,
    probes,
    read_source,
    source,
)
from gpu.stage import Given, Stage
from gpu.timing import interleaved, quartiles

if TYPE_CHECKING:
    from gpu.board import Board

REPEATS = 5
BANDWIDTH_ROUNDS = 15
COPY_BYTES = tuple(1 << power for power in range(20, 31))
"""1 MiB to 1 GiB: small ones show what a layer of 4096 x 4096 can reach at all."""

LAUNCHES = 512
MEMORY_SHARE = 4
"""Copies take at most this part of the memory."""


def measure(given: Given) -> None:
    """Fills in rates, copies, reads and launches."""
    board, found = given.board, given.findings
    kernels = _kernels(board)
    empty = kernels.pop("empty")
    for name, probe in probes(board.gpu.facts.capability).items():
        rate = _rate(board, kernels[name], probe)
        found.rows.append({"what": "rate", "instruction": name, **rate})
        given.say(f"   {name:12} {rate['results_per_clock']:8.1f} results per clock and SM")
    found.rows += [{"what": "launch", **row} for row in _launches(board, empty)]
    given.keep()
    for nbytes in COPY_BYTES:
        if given.deadline.over:
            found.cut = True
            return
        if 2 * nbytes * MEMORY_SHARE > board.gpu.facts.memory_bytes:
            break
        for what, measured in (("copy", copy), ("read", read)):
            row = measured(board, nbytes, given)
            found.rows.append({"what": what, **row})
            given.say(f"   {what} {nbytes >> 20:5} MiB {row['tbps']:8.3f} TB/s")
        given.keep()


def read(board: Board, nbytes: int, given: Given) -> dict[str, Any]:
    """Bytes read per second by a kernel that only loads, from buffers that rotate past the L2."""
    (kernel,) = board.kernels(read_source(), ["read"])
    count = copies(board, nbytes)
    buffers = [board.empty(nbytes) for _ in range(count)]
    blocks = READ_BLOCKS * board.gpu.facts.multiprocessors
    out = board.empty(4 * blocks)

    def run() -> None:
        stream = board.stream
        for each in buffers:
            places = board.address(each), board.address(out), 0
            arguments = Arguments(*places, nbytes // READ_BYTES, UNLIKELY)
            kernel.launch((blocks, 1, 1), READ_THREADS, arguments, stream)

    return _bandwidth(given, run, nbytes, count, nbytes)


def copy(board: Board, nbytes: int, given: Given) -> dict[str, Any]:
    """Bytes read and written per second by copies of `nbytes` whose sources rotate past the L2."""
    count = copies(board, 2 * nbytes)
    pairs = [(board.empty(nbytes), board.empty(nbytes)) for _ in range(count)]

    def run() -> None:
        for source_, to in pairs:
            to.copy_(source_)

    return _bandwidth(given, run, nbytes, count, 2 * nbytes)


def _bandwidth(
    given: Given, run: Callable[[], None], nbytes: int, count: int, moved: int
) -> dict[str, Any]:
    """Of `count` operations on buffers of `nbytes`, each of which moves so many bytes."""
    board = given.board
    (seconds,) = interleaved(board, [board.graph(run)], BANDWIDTH_ROUNDS, given.deadline)
    timed = quartiles(seconds, count)
    return {"nbytes": nbytes, "copies": count, **timed, "tbps": moved / timed["us"] / 1e6}


def copies(board: Board, nbytes: int) -> int:
    """How many of that size are more than three times the L2: none is found there again."""
    return 3 * board.gpu.facts.l2_bytes // nbytes + 2


def calibration(facts: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The measured properties of this GPU, by name."""
    rates = {row["instruction"]: row for row in rows if row["what"] == "rate"}
    return {
        **facts,
        "results_per_clock": {name: row["results_per_clock"] for name, row in rates.items()},
        "copy_tbps": {str(row["nbytes"]): row["tbps"] for row in rows if row["what"] == "copy"},
        "read_tbps": {str(row["nbytes"]): row["tbps"] for row in rows if row["what"] == "read"},
        "launch_us": {row["how"]: row["us"] for row in rows if row["what"] == "launch"},
    }


def _kernels(board: Board) -> dict[str, Any]:
    capability = board.gpu.facts.capability
    names = list(probes(capability))
    loaded = board.kernels(source(capability), ["empty", *map(kernel_name, names)])
    return dict(zip(("empty", *names), loaded, strict=True))


def _rate(board: Board, kernel: Any, probe: Probe) -> dict[str, Any]:
    """The fastest repetition: a slower one was disturbed."""
    blocks = board.gpu.facts.multiprocessors
    start = board.upload(np.random.default_rng(0).integers(0, 1 << 32, 2048, dtype=np.uint32))
    out = board.empty(4 * blocks * (THREADS + 1))
    arguments = Arguments(board.address(start), board.address(out), 0, 0, ITERATIONS)
    clocks = []
    for _ in range(REPEATS):
        kernel.launch((blocks, 1, 1), THREADS, arguments, board.stream)
        clocks.append(float(np.median(board.download(out, np.uint32)[:blocks])))
    done = THREADS * BODY * ITERATIONS
    rate = done / max(min(clocks), 1.0)
    return {
        "instructions_per_clock": round(rate, 2),
        "results_per_clock": round(rate * probe.results, 2),
        "clocks": clocks,
    }


def _launches(board: Board, empty: Any) -> list[dict[str, Any]]:
    """Microseconds per empty kernel: queued one by one, the host's part of it, in a graph."""

    def run() -> None:
        stream, arguments = board.stream, Arguments()
        for _ in range(LAUNCHES):
            empty.launch((1, 1, 1), 32, arguments, stream)

    run()
    board.wait()
    start = time.perf_counter()
    run()
    host = (time.perf_counter() - start) / LAUNCHES * 1e6
    board.wait()
    streamed = [board.seconds(run) for _ in range(REPEATS)]
    replay = board.graph(run)
    replay()
    board.wait()
    replayed = [board.seconds(replay) for _ in range(REPEATS)]
    return [
        {"how": "stream", **quartiles(streamed, LAUNCHES)},
        {"how": "host", "us": round(host, 3), "spread": []},
        {"how": "graph", **quartiles(replayed, LAUNCHES)},
    ]


STAGE = Stage(name="probe", run=measure, seconds=25)
