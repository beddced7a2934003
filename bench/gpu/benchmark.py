"""Products timed beside each other: graphs, weights that no cache remembers, in turns.

    one replay     the product with copy 0, 1, ... of the weight; together over three times the L2
    a round        one replay of everybody, one after the other; rows hold medians and quartiles
    fraction       stored bytes per second, of what a copy of as many bytes reaches here

Before it is timed, everybody's product is compared with that of the weight it was given.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpu import probe
from gpu.product import Entrant, Product, activations
from gpu.stage import AbsentError, Given, Stage
from gpu.timing import Replay, interleaved, quartiles

SIZES = ((28672, 8192), (8192, 28672), (4096, 4096))
FEW, MANY = (1, 2, 4, 8, 16, 32, 64, 256), (8192,)
"""The many, where everybody computes and nobody reads, come once every size has its few."""

ROUNDS = 25
MOST_COPIES = 64
COPY_BYTES = 512 << 20

TRIAL_ROWS = 4
SANE = 0.9
"""Relative error of a product with a rounded weight: 0.6 for integers of two bits. One with some
other weight has 1.4."""


def measure(given: Given, entrants: Sequence[Entrant]) -> None:
    """Fills in a row per entrant, size and batch; reasons of the absent ones."""
    entrants = [entrant for entrant in entrants if entrant.among(given.formats)]
    reached = probe.copy(given.board, COPY_BYTES, given)
    given.findings.facts["copy"] = reached
    for batches in (FEW, MANY):
        for size in SIZES[: 1 if batches is MANY else None]:
            if given.deadline.over:
                given.findings.cut = True
                return
            _measure_size(given, entrants, size, batches)


def _measure_size(
    given: Given, entrants: Sequence[Entrant], size: tuple[int, int], batches: Sequence[int]
) -> None:
    made = dict(_make(given, entrants, size))
    for m in batches:
        if given.deadline.over:
            given.findings.cut = True
            break
        fitting = {e: product for e, product in made.items() if m <= e.most_rows}
        for row in _rows(given, fitting, size, m):
            given.findings.rows.append(row)
            given.say(show(row))
    made.clear()
    gc.collect()  # the graphs and the copies of this size: the next needs their memory


def _make(
    given: Given, entrants: Sequence[Entrant], size: tuple[int, int]
) -> Iterator[tuple[Entrant, Product]]:
    """Those that are here and multiply rightly; why the others are not is a fact."""
    n, k = size
    for entrant in entrants:
        nbytes = int(n * k * entrant.bits / 8)
        count = min(MOST_COPIES, probe.copies(given.board, nbytes))
        make = functools.partial(entrant.make, given.board, n, k, count)
        product = _attempt(given, entrant.name, make)
        if product is None:
            continue
        error = _attempt(given, entrant.name, functools.partial(_error, product, k))
        if error is not None and error > SANE:
            given.findings.wrong.append(f"{entrant.name} {n}x{k}: relative error {error:.2f}")
        elif error is not None:
            yield entrant, product


def _attempt(given: Given, name: str, what: Callable[[], Any]) -> Any:
    """Its result, or None and the reason: a peer that breaks costs its rows, nobody else's."""
    absent = given.findings.facts.setdefault("absent", {})
    try:
        return what()
    except AbsentError as error:
        absent[name] = str(error)
    except Exception as error:  # noqa: BLE001  other people's code
        absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _error(product: Product, k: int) -> float:
    x = activations(TRIAL_ROWS, k)
    want, _ = product.expected(x)
    return float(np.linalg.norm(product.result(x) - want) / np.linalg.norm(want))


def _rows(
    given: Given, made: dict[Entrant, Product], size: tuple[int, int], m: int
) -> Iterator[dict[str, Any]]:
    replays: dict[Entrant, Replay] = {}
    for entrant, product in made.items():
        graph = _attempt(
            given, f"{entrant.name} m={m}", functools.partial(_graph, given, product, m)
        )
        if graph is not None:
            replays[entrant] = graph
    if not replays:
        return
    timed = interleaved(given.board, list(replays.values()), ROUNDS, given.deadline)
    for entrant, seconds in zip(replays, timed, strict=True):
        yield row(entrant, made[entrant], size, m, seconds, given.findings.facts["copy"]["tbps"])


def _graph(given: Given, product: Product, m: int) -> Replay:
    call = product.queue(m)

    def run() -> None:
        for i in range(product.copies):
            call(i)

    return given.board.graph(run)


def row(
    entrant: Entrant,
    product: Product,
    size: tuple[int, int],
    m: int,
    seconds: Sequence[float],
    copy_tbps: float,
) -> dict[str, Any]:
    """One line of the results."""
    (n, k), timed = size, quartiles(seconds, product.copies)
    tbps = product.nbytes / timed["us"] / 1e6
    return {
        "format": product.format,
        "peer": entrant.peer,
        "bits_per_weight": round(8 * product.nbytes / (n * k), 4),
        "activations": product.activations,
        "n": n,
        "k": k,
        "m": m,
        **timed,
        "rounds": len(seconds),
        "copies": product.copies,
        "tbps": round(tbps, 4),
        "fraction_of_copy": round(tbps / copy_tbps, 4),
        "tflops": round(2e-6 * m * n * k / timed["us"], 2),
    }


def show(found: dict[str, Any]) -> str:
    """A row as one line."""
    return (
        f"   {found['format']:18} {found['bits_per_weight']:6.3f} bits {found['activations']:9}"
        f" {found['n']:6} x {found['k']:<6} m {found['m']:5} {found['us']:9.2f} us"
        f" {found['tbps']:6.3f} TB/s {found['fraction_of_copy']:6.1%}"
        f" {found['tflops']:7.1f} TFLOP/s"
    )


def stage(entrants: Sequence[Entrant]) -> Stage:
    """The stage for these."""
    return Stage(name="benchmark", run=lambda given: measure(given, entrants), seconds=165)
