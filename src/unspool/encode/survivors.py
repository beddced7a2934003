"""The trellis search for weights whose errors are fed forward: every survivor has its own targets.

LDLQ (Chee et al. 2023, QuIP) and GPTQ (Frantar et al. 2022) add to a column what the errors of the
columns before it ask for. Inside a tile those errors are not known before the search has ended, so
each surviving walk carries the targets of the columns that are left of its row (per-survivor
processing, Raheli et al. 1995). Encoding a tile as if its columns were independent instead costs
10 % of the calibrated error with tiles of 8 columns and 20 % with 16 (bundled model).

The cost of a walk is the true one: a step with the targets u of its lanes and the values v adds
(u - v) P (u - v), then the row's later columns c move by sum over lanes of (u - v)[lane] * A[lane,
c]. A row's targets do not depend on other rows; memory of the code alone joins them. Passes around
the ring and ties are as in `viterbi`, the seam between rows; sums run in float32 in lane order.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unspool import native
from unspool.encode.passes import Floats, States, go_round
from unspool.encode.viterbi import Plane, Trellis, check_finite, trellis
from unspool.errors import UnspoolError

_NO_MEMORY, _NO_WALK = 1, 2
_VECTOR = 8
_MOST_LANES = 8


@dataclass(frozen=True, kw_only=True)
class RowMetric:
    """What an error costs, and what it asks of later columns, at each step of a tile's row.

    metric    [places, lanes, lanes]  P, symmetric
    feedback  [places, lanes, columns]  A; zero up to the step's own columns
    """

    metric: Floats
    feedback: Floats

    def over(self, unit: float) -> RowMetric:
        """The same with costs in that unit: sums over a tile stay far inside float32."""
        return RowMetric(metric=(self.metric / unit).astype(np.float32), feedback=self.feedback)


@dataclass(frozen=True, kw_only=True)
class Search:
    """A tabulated code with the squares v P v [places, nodes, edges] of a metric."""

    values: Floats
    trellis: Trellis
    squares: Floats
    row: RowMetric


def search(
    values: Floats, planes: Sequence[Plane], row: RowMetric, table: Trellis | None = None
) -> Search:
    """The search for one column of tiles; values [2^L, lanes] tabulate the code.

    `table`: their `trellis`, where it is at hand; it takes longer than the rest (m2-e2m1: 30 ms).
    """
    table = table or trellis(np.asarray(values, np.float32), tuple(planes))
    lanes = values.shape[1]
    if lanes > _MOST_LANES:
        raise _wrong("lanes", lanes, f"{_MOST_LANES} at most")
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    metric = row.metric.astype(np.float64)
    each = np.stack([((finite @ place) * finite).sum(axis=1) for place in metric])
    squares = np.where(np.isfinite(values).all(axis=1), each, np.inf).astype(np.float32)
    return Search(
        values=np.ascontiguousarray(finite, np.float32),
        trellis=table,
        squares=np.ascontiguousarray(squares[:, table.state]),
        row=row,
    )


def survivors(
    wanted: Search, targets: Floats, *, passes: int = 2, threads: int | None = None
) -> States:
    """The states [rings, rows * places] of the best walks for targets [rings, rows, columns].

    Raises WeightError for targets that are not finite, UnspoolError for shapes that contradict each
    other. Results do not depend on threads.
    """
    targets = np.ascontiguousarray(targets, np.float32)
    places, lanes, columns = wanted.row.feedback.shape
    if targets.ndim != 3 or targets.shape[2] != columns or columns != places * lanes:
        raise _wrong("targets", targets.shape, f"[rings, rows, {places * lanes}]")
    if targets.shape[1] % 2:
        raise _wrong("targets", targets.shape, "an even number of rows: the seam is between two")
    check_finite(targets, "survivors targets")
    count = native.threads(threads)
    if native.library() is None:
        native.warn_twin("the calibrated trellis search")
        return survivors_twin(wanted, targets, passes)
    return _native(wanted, targets, passes, count)


def survivors_twin(wanted: Search, targets: Floats, passes: int) -> States:
    """The same search in numpy: the definition of what the kernel returns."""
    needed = 1 if len(wanted.trellis.state) == 1 else passes
    one_pass = functools.partial(_twin_pass, wanted)
    return go_round(targets, needed, one_pass, places=len(wanted.row.metric))


def _twin_pass(wanted: Search, targets: Floats, boundary: States | None) -> tuple[States, States]:
    """(states [rings, steps], nodes [rings, steps + 1]) of the best walk; free without boundary."""
    rings, rows, columns = targets.shape
    t, places = wanted.trellis, len(wanted.row.metric)
    nodes, every = len(t.state), np.arange(rings)
    alphas = np.zeros((rings, nodes), np.float32)
    if boundary is not None:
        alphas[:] = np.inf
        alphas[every, boundary] = 0
    chosen = np.empty((rows * places, rings, nodes), np.int64)
    for i in range(rows * places):
        if i % places == 0:
            row = targets[:, i // places, None]
            opened = np.broadcast_to(row, (rings, nodes, columns))
        alphas, opened, chosen[i] = _twin_step(wanted, i % places, alphas, opened)
    walked = np.empty((rings, rows * places + 1), np.uint32)
    walked[:, -1] = alphas.argmin(axis=1) if boundary is None else boundary
    if np.isinf(alphas[every, walked[:, -1]]).any():
        raise _no_walk()
    states = np.empty((rings, rows * places), np.uint32)
    for i in reversed(range(rows * places)):
        to = walked[:, i + 1]
        edge = chosen[i, every, to]
        states[:, i], walked[:, i] = t.state[to, edge], t.source[to, edge // t.parallel]
    return states, walked


def _twin_step(
    wanted: Search, place: int, alphas: Floats, opened: Floats
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Walk costs [rings, nodes], targets of the row [rings, nodes, columns] and edges, after it."""
    t, metric, feedback = wanted.trellis, wanted.row.metric[place], wanted.row.feedback[place]
    lanes = len(metric)
    u = opened[..., place * lanes : (place + 1) * lanes]
    power = np.zeros_like(alphas)
    y = []
    for lane in range(lanes):
        y.append(np.zeros_like(alphas))
        for other in range(lanes):
            y[lane] = y[lane] + metric[lane, other] * u[..., other]
        power = power + u[..., lane] * y[lane]
    base = alphas + power
    source = np.repeat(t.source, t.parallel, axis=1)
    cost = np.broadcast_to(wanted.squares[place], (len(alphas), *t.state.shape))
    for lane in range(lanes):
        cost = cost + t.table[:, lane + 1] * y[lane][:, source]
    cost = base[:, source] + cost
    edge = cost.argmin(axis=2)
    node = np.arange(len(t.state))
    before = source[node, edge]
    rows = np.arange(len(alphas))[:, None]
    values = wanted.values[t.state[node, edge]]
    after = opened[rows, before]
    for lane in range(lanes):
        missed = u[rows, before, lane] - values[..., lane]
        after = after + missed[..., None] * feedback[lane]
    return cost.min(axis=2), after, edge


def _native(wanted: Search, targets: Floats, passes: int, threads: int) -> States:
    rings, rows, columns = targets.shape
    t, row = wanted.trellis, wanted.row
    (places, lanes), (nodes, sources) = row.metric.shape[:2], t.source.shape
    spare = -columns % _VECTOR
    if spare:
        targets = np.pad(targets, ((0, 0), (0, 0), (0, spare)))
    feedback = np.ascontiguousarray(np.pad(row.feedback, ((0, 0), (0, 0), (0, spare))))
    slopes, metric = np.ascontiguousarray(t.table[:, 1:]), np.ascontiguousarray(row.metric)
    states = np.empty((rings, rows * places), np.uint32)
    status = _function()(
        wanted.squares.ctypes.data, slopes.ctypes.data, wanted.values.ctypes.data,
        t.source.ctypes.data, t.state.ctypes.data, metric.ctypes.data, feedback.ctypes.data,
        nodes, sources, t.parallel, lanes, places, columns + spare,
        targets.ctypes.data, rings, rows, passes, threads, states.ctypes.data,
    )  # fmt: skip
    if status == _NO_WALK:
        raise _no_walk()
    if status == _NO_MEMORY:
        raise MemoryError(f"survivors: {nodes} nodes x {columns} columns x 16 rings x {threads}")
    native.check(status, "survivors")
    return states


@functools.cache
def _function() -> Callable[..., int]:
    library = native.library()
    assert library is not None
    function = library.unspool_survivors
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [*[pointer] * 7, *[size] * 6, pointer, *[size] * 4, pointer]
    function.restype = ctypes.c_int
    return function


def _no_walk() -> UnspoolError:
    return _wrong("values", "too many NaN or Inf", "finite values on some closed walk of the ring")


def _wrong(argument: str, found: object, allowed: str) -> UnspoolError:
    where = f"survivors {argument}"
    return UnspoolError("cannot search", where=where, found=str(found), allowed=allowed)
