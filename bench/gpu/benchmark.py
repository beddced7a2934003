"""Products timed beside each other: graphs, weights that no cache remembers, in turns.

    a group        flagships, then few at a time: rows come early, and copies of all find memory
    one replay     the product with copy 0, 1, ... of the weight; together over three times the L2
    a round        one replay of everybody in the group, one after the other
    fractions      stored bytes per second, of what a copy and what mere reading reaches here

Before it is timed, everybody's product is compared with that of the weight it was given: ours
within their bound, element by element, and twice the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gpu import probe
from gpu.correctness import check_batch
from gpu.product import Entrant, Product, activations, compiled
from gpu.stage import AbsentError, Given, Stage, said
from gpu.timing import Replay, interleaved, quartiles

SIZES = ((28672, 8192), (8192, 28672), (4096, 4096))
FEW, MANY = (1, 2, 4, 8, 16, 32, 64, 256), (8192,)
"""The many, where everybody computes and nobody reads, come once every size has its few."""

GROUP = 8
"""Entrants that take turns, beside the flagships: their copies are in memory together."""

ALONE_ROWS, ALONE_COPIES = 1024, 2
"""From so many rows on one graph at a time, of two copies: it keeps its activations and outputs,
470 MB a copy of 28672 outputs, and at 8192 rows no weight's way from memory counts."""

ROUNDS = 25
MOST_COPIES = 64
COPY_BYTES = 512 << 20

TRIAL_ROWS = (4, 64)
"""A narrow and a wide tile."""

SANE = 0.9
"""Relative error of a peer with a rounded weight: 0.6 for integers of two bits. One with some other
weight has 1.4."""

Turn = tuple[Sequence[int], tuple[int, int], Sequence[Entrant]]
"""Batches, size, group."""


class WrongProductError(Exception):
    """A product that is not the one of its weight."""


def measure(given: Given, entrants: Sequence[Entrant]) -> None:
    """Fills in a row per entrant, size and batch; reasons of the absent ones."""
    found = given.findings
    wanted = [entrant for entrant in entrants if entrant.asked(given)]
    if not wanted:
        raise AbsentError("nobody takes part (bench/gpu/entrants.py)")
    found.facts["absent"] = dict.fromkeys(given.without, "it broke the GPU before")
    found.facts["copy"] = probe.copy(given.board, COPY_BYTES, given)
    found.facts["read"] = probe.read(given.board, COPY_BYTES, given)
    for batches, size, group in turns(wanted):
        if given.deadline.over:
            found.cut = True
            return
        _measure_group(given, group, size, batches)
    if not (found.rows or found.wrong or found.cut):
        raise AbsentError("; ".join(f"{who}: {why}" for who, why in found.facts["absent"].items()))


def turns(entrants: Sequence[Entrant]) -> Iterator[Turn]:
    """Flagships with few rows at every size, then with many; then all others, group by group."""
    first = [entrant for entrant in entrants if entrant.flagship]
    others = [entrant for entrant in entrants if not entrant.flagship]
    rest = [others[i : i + GROUP] for i in range(0, len(others), GROUP)]
    for groups in ([first] if first else [], rest):
        for batches in (FEW, MANY):
            for size in SIZES[: 1 if batches is MANY else None]:
                for group in groups:
                    yield batches, size, group


def _measure_group(
    given: Given, group: Sequence[Entrant], size: tuple[int, int], batches: Sequence[int]
) -> None:
    given.trying()
    compiled(given, group, [(size, batches)], "bfloat16")
    compiled(given, group, [(size, TRIAL_ROWS)], "float32")
    made = _make(given, group, size, batches)
    for m in batches:
        fitting = {e: product for e, product in made.items() if m <= e.most_rows}
        alone = m >= ALONE_ROWS
        for together in [{e: p} for e, p in fitting.items()] if alone else [fitting]:
            if given.deadline.over:
                given.findings.cut = True
                return
            _time(given, together, size, m)
            if alone:
                given.board.give_back()
    made.clear()
    given.board.give_back()  # the graphs and the copies: the next need their memory


def _make(
    given: Given, group: Sequence[Entrant], size: tuple[int, int], batches: Sequence[int]
) -> dict[Entrant, Product]:
    """Those that are here and multiply rightly; why the others are not is a fact."""
    n, k = size
    made: dict[Entrant, Product] = {}
    for entrant in group:
        if given.deadline.over:
            given.findings.cut = True
            break
        count = min(MOST_COPIES, probe.copies(given.board, int(n * k * entrant.bits / 8)))
        count = min(count, ALONE_COPIES) if min(batches) >= ALONE_ROWS else count
        make = functools.partial(_trusted, given, entrant, size, count)
        product = _attempt(given, entrant, size, entrant.name, make)
        if product is not None:
            made[entrant] = product
    return made


def _trusted(given: Given, entrant: Entrant, size: tuple[int, int], copies: int) -> Product:
    """The product; WrongProductError where it is another than it has to be."""
    product = entrant.make(given.board, *size, copies)
    for rows in TRIAL_ROWS:
        measured = check_batch(product, activations(rows, size[1]), None)
        near = measured["relative_error"] <= SANE
        steady = entrant.peer or measured["repeatable"]
        if measured["wrong"] or not near or not steady:
            raise WrongProductError(f"m={rows}: {measured}")
    return product


def _attempt(
    given: Given, entrant: Entrant, size: tuple[int, int], what: str, call: Callable[[], Any]
) -> Any:
    """Its result, or None: a peer that breaks is absent with the reason, one of ours is wrong."""
    no_memory = False
    given.trying("" if entrant.peer else entrant.name)  # some peers compile for minutes
    try:
        return call()
    except AbsentError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001  other people's code, and it costs its rows alone
        reason = said(error)
        no_memory = "out of memory" in str(error).lower()
        if isinstance(error, WrongProductError) or not (entrant.peer or no_memory):
            given.findings.wrong.append(f"{what} {size[0]}x{size[1]}: {reason}")
        given.go_on(error, entrant.name)
    if no_memory:
        given.board.give_back()
    given.findings.facts["absent"][what] = reason
    return None


def _time(given: Given, made: Mapping[Entrant, Product], size: tuple[int, int], m: int) -> None:
    try:
        for row in _rows(given, made, size, m):
            given.findings.rows.append(row)
            given.say(show(row))
    except Exception as error:  # noqa: BLE001  of some replay; others have other graphs
        names = ", ".join(entrant.name for entrant in made)
        given.findings.wrong.append(f"one of {names} {size[0]}x{size[1]} m={m}: {said(error)}")
        given.go_on(error)
    given.keep()


def _rows(
    given: Given, made: Mapping[Entrant, Product], size: tuple[int, int], m: int
) -> Iterator[dict[str, Any]]:
    replays: dict[Entrant, Replay] = {}
    for entrant, product in made.items():
        if given.deadline.over:
            given.findings.cut = True
            break
        capture = functools.partial(_graph, given, product, m)
        graph = _attempt(given, entrant, size, f"{entrant.name} m={m}", capture)
        if graph is not None:
            replays[entrant] = graph
    if not replays:
        return
    given.trying()
    timed = interleaved(given.board, list(replays.values()), ROUNDS, given.deadline)
    for entrant, seconds in zip(replays, timed, strict=True):
        yield row(entrant, made[entrant], size, m, seconds, given.findings.facts)


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
    reached: Mapping[str, Any],
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
        "fraction_of_copy": round(tbps / reached["copy"]["tbps"], 4),
        "fraction_of_read": round(tbps / reached["read"]["tbps"], 4),
        "tflops": round(2e-6 * m * n * k / timed["us"], 2),
    }


def show(found: dict[str, Any]) -> str:
    """A row as one line."""
    return (
        f"   {found['format']:18} {found['bits_per_weight']:6.3f} bits {found['activations']:9}"
        f" {found['n']:6} x {found['k']:<6} m {found['m']:5} {found['us']:9.2f} us"
        f" {found['tbps']:6.3f} TB/s {found['fraction_of_copy']:6.1%} of a copy"
        f" {found['fraction_of_read']:6.1%} of reading {found['tflops']:7.1f} TFLOP/s"
    )


def stage(entrants: Sequence[Entrant]) -> Stage:
    """The stage for these."""
    return Stage(name="benchmark", run=lambda given: measure(given, entrants), seconds=165)
