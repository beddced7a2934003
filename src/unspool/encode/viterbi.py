"""The cheapest tail-biting walk through a trellis, for any code that can be tabulated.

A *node* is the memory between two steps: the window - stride bits that neighbouring windows of each
plane share, plane 0 lowest. A state is an *edge*: it leaves the node in its windows' low bits and
enters the node in their high bits. A ring's walk has to end at the node where it started.

Finding the best start exactly costs one search per node, so the search goes round a few times:

- pass 0 starts and ends anywhere, on the ring rotated by steps // 2 so that its ignored seam lies
  far from position 0; the trace-back stops at position 0 and keeps the node there;
- pass 1 starts at position 0 and has to start and end at that node, which makes it a valid walk;
- every further pass moves the boundary half a ring on (steps // 2, 0, ...) and starts and ends at
  the node that the walk before had there. That walk stays allowed, so the error never rises.

An edge costs sum(v * v) - 2 * sum(v * x) over its lanes: the squared error less sum(x * x), which
is the same for all. Both sums run in float32 in lane order, rounding after every operation, and
walk costs are not renormalised; so the C++ kernel and the numpy twin below return the same states,
bit for bit. Codes whose nodes all follow each other are searched in bytes instead (`dense`), and
small trellises of single weights in 16 bits (`binned`). Of equal candidates into a node the one
from the lowest node wins, of those the lowest state; of equal free ends, the lowest node.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unspool import native
from unspool.encode import binned, dense
from unspool.encode.passes import Floats, States, go_round
from unspool.errors import UnspoolError, WeightError
from unspool.spec.code import TABULATED_BITS

Plane = tuple[int, int]

_NO_MEMORY, _NO_WALK = 1, 2
_TWIN_CELLS = 1 << 22
"""Edges x rings that the numpy twin holds at once: 16 MiB per temporary."""


def viterbi(
    values: Floats,
    planes: Sequence[Plane],
    targets: Floats,
    *,
    passes: int = 2,
    threads: int | None = None,
) -> States:
    """The states [rings, steps] whose values come nearest to targets [rings, steps, lanes].

    values [2^L, lanes] tabulates the code; states with a NaN or Inf are never chosen. planes are
    (window, stride) with windows adding up to L. passes >= 2: four recover about half of what two
    lose. Results do not depend on threads (None: all visible cores). Raises WeightError for targets
    that are not finite, UnspoolError for arguments that contradict each other.
    """
    values, targets = checked(values, tuple(planes), targets, passes)
    table, count = trellis(values, tuple(planes)), native.threads(threads)
    if native.library() is None:
        native.warn_twin("the trellis search")
    found = _in_integers(values, table, targets, passes, count)
    if found is None:
        return _in_float(table, targets, passes, count)
    states, lost = found
    if lost.any():
        states[lost] = _in_float(table, targets[lost], passes, count)
    return states


class Search(Protocol):
    """The signature of `viterbi`, for searches elsewhere that return the same states."""

    def __call__(
        self,
        values: Floats,
        planes: Sequence[Plane],
        targets: Floats,
        *,
        passes: int = 2,
        threads: int | None = None,
    ) -> States:
        """See `viterbi`."""


def _in_integers(
    values: Floats, trellis: Trellis, targets: Floats, passes: int, threads: int
) -> tuple[States, NDArray[np.bool_]] | None:
    """States, and the rings that need the search in float32; None where all of them do."""
    twin = native.library() is None
    small = binned.binned(values, trellis.source, trellis.state)
    if small is not None:
        if twin:
            return binned.search_twin(small, targets, passes)
        return binned.search(small, targets, passes, threads)
    wide = dense.dense(values, trellis.source, trellis.state)
    if wide is not None:
        if twin:
            return dense.search_twin(wide, targets, passes)
        return dense.search(wide, targets, passes, threads)
    return None


def _in_float(trellis: Trellis, targets: Floats, passes: int, threads: int) -> States:
    if native.library() is None:
        return viterbi_twin(trellis, targets, passes)
    return _viterbi_native(trellis, np.ascontiguousarray(targets), passes, threads)


@dataclass(frozen=True, kw_only=True)
class Trellis:
    """A tabulated code as nodes and in-edges; edge = source * parallel + copy.

    values [2^L, lanes] by state; source [nodes, sources] are from-nodes, state [nodes, edges] the
    states.
    """

    values: Floats
    source: States
    state: States

    @property
    def parallel(self) -> int:
        """Edges that share both their nodes."""
        return int(self.state.shape[1] // self.source.shape[1])

    @functools.cached_property
    def table(self) -> Floats:
        """[nodes, lanes + 1, edges]: sum(v * v), then -2v of each lane; inf and 0 for a state that
        may not be chosen."""
        edge_values = np.moveaxis(self.values[self.state], 2, 1)
        finite = np.isfinite(edge_values).all(axis=1, keepdims=True)
        edge_values = np.where(finite, edge_values, np.float32(0))
        square = np.zeros_like(edge_values[:, :1])
        for lane in range(self.values.shape[1]):
            square += edge_values[:, lane : lane + 1] * edge_values[:, lane : lane + 1]
        square = np.where(finite, square, np.float32(np.inf))
        table = np.concatenate([square, np.float32(-2) * edge_values], axis=1)
        return np.ascontiguousarray(table)


def trellis(values: Floats, planes: tuple[Plane, ...]) -> Trellis:
    """The trellis of a table of values [2^L, lanes]."""
    source, state = _edges(planes)
    return Trellis(values=values, source=source, state=state)


@functools.lru_cache(maxsize=16)
def _edges(planes: tuple[Plane, ...]) -> tuple[States, States]:
    """In-edges by to-node, then from-node, then state: (source, state) as in Trellis."""
    state = np.arange(1 << sum(window for window, _ in planes), dtype=np.uint32)
    source, to = np.zeros_like(state), np.zeros_like(state)
    shift = node_bits = 0
    for window, stride in planes:
        bits = state >> np.uint32(shift) & np.uint32((1 << window) - 1)
        memory = window - stride
        source |= (bits & np.uint32((1 << memory) - 1)) << np.uint32(node_bits)
        to |= bits >> np.uint32(stride) << np.uint32(node_bits)
        shift, node_bits = shift + window, node_bits + memory
    order = np.lexsort((state, source, to)).astype(np.uint32).reshape(1 << node_bits, -1)
    parallel = 1 << sum(max(0, 2 * stride - window) for window, stride in planes)
    return np.ascontiguousarray(source[order][:, ::parallel]), order


def viterbi_twin(trellis: Trellis, targets: Floats, passes: int) -> States:
    """The same search in numpy: the definition of what the kernel returns."""
    group = max(1, _TWIN_CELLS // trellis.state.size)
    parts = range(0, len(targets), group)
    found = [_twin_rings(trellis, targets[i : i + group], passes) for i in parts]
    return np.concatenate(found) if found else np.empty(targets.shape[:2], np.uint32)


def _twin_rings(trellis: Trellis, targets: Floats, passes: int) -> States:
    enough = 1 if len(trellis.state) == 1 else passes
    return go_round(targets, enough, functools.partial(_twin_pass, trellis))


def _twin_pass(trellis: Trellis, targets: Floats, boundary: States | None) -> tuple[States, States]:
    """(states [rings, steps], nodes [rings, steps + 1]) of the best walk; free without boundary."""
    rings, steps = targets.shape[:2]
    every = np.arange(rings)
    alphas = np.zeros((steps + 1, rings, len(trellis.state)), np.float32)
    if boundary is not None:
        alphas[0] = np.inf
        alphas[0, every, boundary] = 0
    for i in range(steps):
        alphas[i + 1] = _candidates(trellis, targets[:, i], alphas[i]).min(axis=2)
    nodes = np.empty((rings, steps + 1), np.uint32)
    nodes[:, steps] = alphas[steps].argmin(axis=1) if boundary is None else boundary
    states = np.empty((rings, steps), np.uint32)
    for i in reversed(range(steps)):
        cost = _candidates(trellis, targets[:, i], alphas[i])[every, nodes[:, i + 1]]
        states[:, i], nodes[:, i] = _cheapest(trellis, cost, nodes[:, i + 1])
    return states, nodes


def _candidates(trellis: Trellis, targets: Floats, alphas: Floats) -> Floats:
    """Walk costs [rings, nodes, edges] into every node, for one step's targets [rings, lanes]."""
    cost = np.broadcast_to(trellis.table[:, 0], (len(targets), *trellis.state.shape))
    for lane, target in enumerate(targets.T, start=1):
        cost = cost + trellis.table[:, lane] * target[:, None, None]
    before: Floats = alphas[:, np.repeat(trellis.source, trellis.parallel, axis=1)]
    return before + cost


def _cheapest(trellis: Trellis, cost: Floats, to: States) -> tuple[States, States]:
    """The state and from-node of the first of the lowest costs [rings, edges]."""
    if np.isinf(cost.min(axis=1)).any():
        raise no_walk()
    edge = cost.argmin(axis=1)
    return trellis.state[to, edge], trellis.source[to, edge // trellis.parallel]


def _viterbi_native(trellis: Trellis, targets: Floats, passes: int, threads: int) -> States:
    rings, steps, lanes = targets.shape
    states = np.empty((rings, steps), np.uint32)
    nodes, sources = trellis.source.shape
    sizes = (nodes, sources, trellis.parallel, lanes)
    status = _function()(
        trellis.table.ctypes.data, trellis.source.ctypes.data, trellis.state.ctypes.data, *sizes,
        targets.ctypes.data, rings, steps, passes, threads, states.ctypes.data,
    )  # fmt: skip
    if status == _NO_WALK:
        raise no_walk()
    if status == _NO_MEMORY:
        raise MemoryError(f"viterbi: {nodes} nodes x {steps} steps x 16 rings x {threads} threads")
    native.check(status, "viterbi")
    return states


@functools.cache
def _function() -> Callable[..., int]:
    library = native.library()
    assert library is not None
    function = library.unspool_viterbi
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [*[pointer] * 3, *[size] * 4, pointer, *[size] * 4, pointer]
    function.restype = ctypes.c_int
    return function


def checked(
    values: Floats, planes: tuple[Plane, ...], targets: Floats, passes: int
) -> tuple[Floats, Floats]:
    """Values and targets as float32; raises as `viterbi` says."""
    values = np.asarray(values, np.float32)
    targets = np.ascontiguousarray(targets, np.float32)
    _check_planes(planes)
    rows = 1 << sum(window for window, _ in planes)
    if values.ndim != 2 or values.shape[0] != rows or values.shape[1] < 1:
        raise _wrong("values", values.shape, f"[{rows}, lanes]: the windows add up to its rows")
    if targets.ndim != 3 or targets.shape[2] != values.shape[1] or targets.shape[1] < 1:
        raise _wrong("targets", targets.shape, f"[rings, steps, {values.shape[1]}], a step or more")
    fewest = max(-(-(window - stride) // stride) for window, stride in planes)
    if targets.shape[1] < fewest:
        raise _wrong("steps", targets.shape[1], f"{fewest} or more: a window overlapped itself")
    if passes < 2:
        raise _wrong("passes", passes, "2 or more: a free one, then ones that close the ring")
    check_finite(targets, "viterbi targets")
    _check_range(values, targets)
    return values, targets


def _check_planes(planes: tuple[Plane, ...]) -> None:
    fit = all(1 <= stride <= window for window, stride in planes)
    if not planes or not fit or sum(window for window, _ in planes) > TABULATED_BITS:
        raise _wrong(
            "planes",
            planes,
            f"(window >= stride >= 1), windows adding up to {TABULATED_BITS} at most",
        )


def check_finite(targets: Floats, where: str) -> None:
    """Refuses NaN and Inf with the position of the first."""
    finite = np.isfinite(targets)
    if not finite.all():
        at = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), finite.shape))
        raise WeightError("not a finite number", where=f"{where} {at}", found=str(targets[at]))


def _check_range(values: Floats, targets: Floats) -> None:
    """Walk costs must stay inside float32: an overflow would look like a forbidden state."""
    finite = np.isfinite(values)
    ends = (float(each(values, where=finite, initial=0.0)) for each in (np.min, np.max))
    largest = max(map(abs, ends))
    reach = float(np.abs(targets).max(initial=0.0))
    bound = targets.shape[1] * targets.shape[2] * largest * (largest + 2 * reach)
    if bound > 1e38:
        raise _wrong("targets", f"up to {reach:g} against values up to {largest:g}", "scale first")


def no_walk() -> UnspoolError:
    """The error of a code that has no walk of finite values for some ring."""
    return _wrong("values", "too many NaN or Inf", "finite values on some closed walk of the ring")


def _wrong(argument: str, found: object, allowed: str) -> UnspoolError:
    where = f"viterbi {argument}"
    return UnspoolError("cannot search", where=where, found=str(found), allowed=allowed)
