"""The tail-biting search where every node may follow every node in one step: multiply codes.

A multiply code's step reads as many new bits as it remembers, or more, so that each of its nodes is
reached from all of them: 65,536 edges a step at 2 bits. No walk is then ever much worse than the
best: one edge leads from the best walk to any node. So bytes hold all costs, 32 rings fit one AVX2
register, and what a lane's value costs is looked up: 15 levels of E2M1 (as 225 pairs), 63 of E4M3
behind the mask of the multiply codes. That takes 1/5.5 and 1/3.2 of the time of the search in
float32 (2 bits, one Zen 3 core), with the same distortion within 0.1 %.

The cost of a level v of a lane with target x is (x - v)^2 less that of the nearest level, times
`units`, rounded; an edge costs the sum over its lanes, a walk the sum over its edges less the
cheapest walk's after each step. Nothing costs more than MOST: sums saturate, and where the walk
found has such a step (weights that the code cannot follow) `viterbi` searches its ring in float32.
Integers make all sums exact, so the C++ kernel and the numpy twin below return the same states, bit
for bit. Targets beyond REACH times the largest level count as that. Passes around the ring and ties
are as in `viterbi`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unspool import native
from unspool.encode.passes import Floats, States, go_round

FEWEST_EDGES = 1 << 12
"""Smaller trellises have little to look up and keep the search in float32: into 64 nodes, or 16
of many parallel edges."""

FEWEST_NODES = 8
"""So many at once are advanced where a GPU searches."""

MOST_LEVELS = 96
"""Levels of a lane whose costs stay in the first cache, for 32 rings: 3 KiB a lane. With the 75 of
a tail this takes 1 / 2.5 of the time of the search in float32."""

PAIRED_LEVELS = 16
"""Up to so many, the costs of two lanes are looked up as one."""

MOST = 255
"""What a cost is at most."""

SPAN = 12.0
"""MOST as a multiple of the least error that a step can have on average at its rate.

Gaussian distortion of m2-e2m1 and m3-e2m3 with 8: .07542, .02065; with 12: .07520, .02065; with 24:
.07527, .02071; with costs in float32: .07521, .02065. With 4, walks that saturate break it (.2).
"""

REACH = 4.0

_ABREAST, _RINGS = 4, 32
_TWIN_CELLS = 1 << 22
_NEVER = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A tabulated code whose nodes all follow each other.

    levels [lanes, count] are the values of each lane, ascending; places [nodes, edges, lanes] say
    which of them an edge has, edges by from-node, then state; state [nodes, edges].
    """

    levels: Floats
    places: NDArray[np.uint16]
    state: States

    @property
    def parallel(self) -> int:
        """Edges that share both their nodes."""
        return int(self.state.shape[1] // self.state.shape[0])

    @property
    def units(self) -> np.float32:
        """What a squared error of one costs."""
        lanes, edges = len(self.levels), self.state.shape[1]
        power = np.mean(np.square(self.levels, dtype=np.float64))
        bound = lanes * power * edges ** (-2 / lanes)
        return np.float32(MOST / (SPAN * bound))

    @property
    def paired(self) -> bool:
        """Whether the costs of two lanes are looked up as one."""
        lanes, count = self.levels.shape
        return count <= PAIRED_LEVELS and lanes % 2 == 0

    def looked_up(self) -> tuple[int, NDArray[np.uint32]]:
        """(entries of a table, what an edge looks up [nodes, edges, tables]): tables are of lanes
        or of pairs of them, one behind another."""
        count, places = self.levels.shape[1], self.places.astype(np.uint32)
        if self.paired:
            places, count = places[..., ::2] * count + places[..., 1::2], count * count
        return count, places + np.arange(places.shape[-1], dtype=np.uint32) * np.uint32(count)

    @property
    def limit(self) -> np.float32:
        """What targets further out count as, so that no sum of squares overflows."""
        return np.float32(REACH) * np.abs(self.levels).max()

    def clipped(self, targets: Floats) -> Floats:
        """The targets, within the limit."""
        return np.clip(targets, -self.limit, self.limit)


def dense(values: Floats, source: States, state: States) -> Dense | None:
    """The dense trellis of values [2^L, lanes] and in-edges as in `Trellis`; None if it is not."""
    nodes, sources = source.shape
    small = nodes < FEWEST_NODES or state.size < FEWEST_EDGES
    if sources != nodes or small or not np.isfinite(values).all():
        return None
    found, places = zip(*map(_numbered, np.ascontiguousarray(values.T)), strict=True)
    count = max(map(len, found))
    if count > MOST_LEVELS or not any(lane.any() for lane in found):
        return None
    levels = np.stack([np.pad(lane, (0, count - len(lane)), mode="edge") for lane in found])
    return Dense(levels=levels, places=np.stack(places, axis=1)[state], state=state)


def _numbered(values: Floats) -> tuple[Floats, NDArray[np.uint16]]:
    """Distinct values, ascending, and the number of each value's: by its upper half where that
    tells them apart, as it does operands', in half the time of sorting a million of them."""
    upper = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    some = np.zeros(1 << 16, np.float32)
    some[upper] = values
    if not np.array_equal(some[upper], values):
        levels = np.unique(values)
        return levels, np.searchsorted(levels, values).astype(np.uint16)
    known = np.zeros(1 << 16, np.bool_)
    known[upper] = True
    levels = np.unique(some[known])
    return levels, np.searchsorted(levels, some).astype(np.uint16)[upper]


def search(
    trellis: Dense, targets: Floats, passes: int, threads: int
) -> tuple[States, NDArray[np.bool_]]:
    """The states [rings, steps] whose values come nearest to targets [rings, steps, lanes].

    And which rings [rings] have walks whose costs saturated: those are not the best.
    """
    rings, steps, lanes = targets.shape
    targets = np.ascontiguousarray(trellis.clipped(targets), np.float32)
    count, offsets = _offsets(trellis)
    levels = np.zeros((lanes, count), np.float32)
    levels[:] = np.pad(trellis.levels, ((0, 0), (0, count - trellis.levels.shape[1])), mode="edge")
    states, lost = np.empty((rings, steps), np.uint32), np.zeros(rings, np.bool_)
    status = _function()(
        levels.ctypes.data, offsets.ctypes.data, trellis.state.ctypes.data,
        len(trellis.state), trellis.parallel, lanes, count, offsets.shape[-1],
        trellis.units, targets.ctypes.data, rings, steps, passes, threads,
        states.ctypes.data, lost.ctypes.data,
    )  # fmt: skip
    if status:
        raise MemoryError(f"viterbi: {len(trellis.state)} nodes x {steps} steps x 32 rings")
    return states, lost


def search_twin(trellis: Dense, targets: Floats, passes: int) -> tuple[States, NDArray[np.bool_]]:
    """The same search in numpy: the definition of what the kernel returns."""
    group = max(1, _TWIN_CELLS // trellis.state.size)
    targets = trellis.clipped(targets)
    lost = np.zeros(len(targets), np.bool_)
    states = np.empty(targets.shape[:2], np.uint32)
    for first in range(0, len(targets), group):
        part = slice(first, first + group)
        one_pass = functools.partial(_twin_pass, trellis, lost[part])
        states[part] = go_round(targets[part], passes, one_pass)
    return states, lost


def _offsets(trellis: Dense) -> tuple[int, NDArray[np.uint16]]:
    """(levels of a lane, where each edge's costs lie in the kernel's tables).

    [nodes / 4, from-nodes, 4 to-nodes, parallel, tables], in the order in which the kernel reads
    it, in bytes.
    """
    nodes, (_, places) = len(trellis.state), trellis.looked_up()
    shape = nodes // _ABREAST, _ABREAST, nodes, trellis.parallel, places.shape[-1]
    ordered = (places * _RINGS).reshape(shape).swapaxes(1, 2)
    return trellis.levels.shape[1], np.ascontiguousarray(ordered, np.uint16)


def _twin_pass(
    trellis: Dense, lost: NDArray[np.bool_], targets: Floats, boundary: States | None
) -> tuple[States, States]:
    """(states [rings, steps], nodes [rings, steps + 1]) of the best walk; says which saturated."""
    rings, steps = targets.shape[:2]
    every = np.arange(rings)
    walks = np.zeros((steps + 1, rings, len(trellis.state)), np.int64)
    if boundary is not None:
        walks[0] = _NEVER
        walks[0, every, boundary] = 0
    costs = [_level_costs(trellis, targets[:, i]) for i in range(steps)]
    for i in range(steps):
        edges = _edge_costs(costs[i], every[:, None, None], trellis.places)
        walks[i + 1] = _into(trellis, walks[i][:, None], edges).min(axis=2)
        walks[i + 1] -= walks[i + 1].min(axis=1, keepdims=True)
    walked = np.empty((rings, steps + 1), np.uint32)
    walked[:, steps] = walks[steps].argmin(axis=1) if boundary is None else boundary
    states = np.empty((rings, steps), np.uint32)
    lost[:] = False
    for i in reversed(range(steps)):
        to = walked[:, i + 1]
        edges = _edge_costs(costs[i], every[:, None], trellis.places[to])
        into = _into(trellis, walks[i], edges)
        edge = into.argmin(axis=1)
        lost |= into[every, edge] == MOST
        states[:, i], walked[:, i] = trellis.state[to, edge], edge // trellis.parallel
    return states, walked


def _into(trellis: Dense, walks: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Costs of walks [..., nodes] and edges [..., edges] together, saturated."""
    before = np.repeat(walks, trellis.parallel, axis=-1)
    return np.where(before == _NEVER, _NEVER, np.minimum(before + edges, MOST))


def _level_costs(trellis: Dense, targets: Floats) -> NDArray[np.int64]:
    """What the levels [rings, lanes, count] cost for one step's targets [rings, lanes]."""
    missed = targets[:, :, None] - trellis.levels
    square = missed * missed
    units = (square - square.min(axis=2, keepdims=True)) * trellis.units
    return (np.minimum(units, np.float32(MOST)) + np.float32(0.5)).astype(np.int64)


def _edge_costs(
    costs: NDArray[np.int64], ring: NDArray[np.intp], places: NDArray[np.uint16]
) -> NDArray[np.int64]:
    """Sums over lanes of a ring's level costs at places [..., lanes], saturated."""
    whole = np.zeros((), np.int64)
    for lane in range(places.shape[-1]):
        whole = whole + costs[ring, lane, places[..., lane]]
    return np.minimum(whole, MOST)


@functools.cache
def _function() -> Callable[..., int]:
    library = native.library()
    assert library is not None
    function = library.unspool_viterbi_dense
    pointer, size, real = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float
    function.argtypes = [
        *[pointer] * 3, *[size] * 5, real, pointer, *[size] * 4, pointer, pointer,
    ]  # fmt: skip
    function.restype = ctypes.c_int
    return function
