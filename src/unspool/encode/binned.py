"""The tail-biting search through small trellises of single weights: table codes.

With one weight per step, what every edge costs depends on one number. That is rounded to a bin, and
a table has, for each bin and node, the cheapest edge from either from-node and its state. With 8
or 16 nodes the costs of all walks are one register of 16-bit integers, and a step is a load, a
shuffle, two additions and a minimum, whatever the number of parallel edges. On one Zen 3
core it takes a half (t2-e2m1) to two fifths of the time of the search in float32.

A bin is so narrow that encoding its centre in the target's place adds LOSS of the least error
possible. A walk's cost is the sum over its steps of how much further than the nearest value its
values are, squared, in units of RESOLUTION of that error; it saturates at 65,535. Where the best
walk does, or a target lies beyond REACH times the largest value, `viterbi` searches the ring in
float32. Integers make sums exact, so the C++ kernel and the numpy twin below return the same
states, bit for bit. Passes around the ring and ties are as in `viterbi`.
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

NODES = (8, 16)
"""Walks that fill a register of 16 or 32 bytes."""

LOSS = 3e-4
"""Of the distortion, by bins."""

RESOLUTION = 1 / 128
"""The unit of costs. 64 steps of twice the least error possible cost 16,384."""

REACH = 2.0

MOST_BINS = 8192
"""512 KiB of costs for 16 nodes: more would not stay in the second cache."""

MOST = 65535

Words = NDArray[np.uint16]

_LINE = 64


@dataclass(frozen=True, kw_only=True)
class Binned:
    """A tabulated shift register of single weights: node n is entered from 2n and 2n + 1, modulo
    nodes, by parallel edges each.

    costs, states [bins, 2, nodes]: the cheapest of the parallel edges for the targets of a bin.
    Costs begin on a cache line, so that no vector crosses one. The bin of a target is the whole
    part of target * scale + middle.
    """

    costs: Words
    states: Words
    scale: np.float32
    middle: np.float32

    def bins(self, targets: Floats) -> tuple[Words, NDArray[np.bool_]]:
        """Bins of targets [rings, steps], and which rings have targets without one."""
        places = targets * self.scale + self.middle
        inside = (places >= 0) & (places < len(self.costs))
        bins: Words = np.where(inside, places, 0).astype(np.uint16)
        outside: NDArray[np.bool_] = np.any(~inside, axis=1)
        return bins, outside


def binned(values: Floats, source: States, state: States) -> Binned | None:
    """The search for values [2^L, 1] and in-edges as in `Trellis`; None where it is another."""
    nodes = len(source)
    shifted = (2 * np.arange(nodes)[:, None] + [0, 1]) % nodes
    single = values.shape[1] == 1 and np.isfinite(values).all() and values.any()
    if nodes not in NODES or not np.array_equal(source, shifted) or not single:
        return None
    return _tabulated(values.tobytes(), state.tobytes(), nodes)


@functools.lru_cache(maxsize=16)
def _tabulated(value_bytes: bytes, state_bytes: bytes, nodes: int) -> Binned | None:
    values = np.frombuffer(value_bytes, np.float32).astype(np.float64)
    state = np.frombuffer(state_bytes, np.uint32).reshape(nodes, 2, -1)
    least = np.mean(values**2) / (state[0].size ** 2)
    width, reach = np.sqrt(12 * LOSS * least), REACH * np.abs(values).max()
    count = 2 * int(np.ceil(reach / width))
    if count > MOST_BINS or len(values) > MOST:
        return None
    centres = (np.arange(count) + 0.5 - count / 2) * width
    squares = (centres[:, None, None, None] - values[state]) ** 2
    cheapest = squares.argmin(axis=3)
    costs = squares.min(axis=3)
    costs = (costs - costs.min(axis=(1, 2), keepdims=True)) / (RESOLUTION * least)
    states = np.take_along_axis(state[None], cheapest[..., None], axis=3)[..., 0]
    return Binned(
        costs=_aligned(np.minimum(np.rint(costs), MOST).swapaxes(1, 2)),
        states=_aligned(states.swapaxes(1, 2)),
        scale=np.float32(1 / width),
        middle=np.float32(count / 2),
    )


def _aligned(array: NDArray[np.generic]) -> Words:
    """A copy as uint16 that begins on a cache line."""
    space = np.empty(array.size + _LINE // 2, np.uint16)
    first = -space.ctypes.data % _LINE // 2
    out = space[first : first + array.size].reshape(array.shape)
    out[:] = array
    return out


def search(
    trellis: Binned, targets: Floats, passes: int, threads: int
) -> tuple[States, NDArray[np.bool_]]:
    """The states [rings, steps] whose values come nearest to targets [rings, steps, 1].

    And which rings [rings] have targets or walks beyond the tables: those are not the best.
    """
    rings, steps = targets.shape[:2]
    bins, _, nodes = trellis.costs.shape
    targets = np.ascontiguousarray(targets, np.float32)
    states, lost = np.empty((rings, steps), np.uint32), np.zeros(rings, np.bool_)
    status = _function()(
        trellis.costs.ctypes.data, trellis.states.ctypes.data, nodes, bins, trellis.scale,
        trellis.middle, targets.ctypes.data, rings, steps, passes, threads,
        states.ctypes.data, lost.ctypes.data,
    )  # fmt: skip
    if status:
        raise MemoryError(f"viterbi: {nodes} nodes x {steps} steps")
    return states, lost


def search_twin(trellis: Binned, targets: Floats, passes: int) -> tuple[States, NDArray[np.bool_]]:
    """The same search in numpy: the definition of what the kernel returns."""
    bins, outside = trellis.bins(targets[..., 0])
    lost = np.zeros_like(outside)
    states = go_round(bins, passes, functools.partial(_twin_pass, trellis, lost))
    return states, lost | outside


def _twin_pass(
    trellis: Binned, lost: NDArray[np.bool_], bins: Words, boundary: States | None
) -> tuple[States, States]:
    """(states [rings, steps], nodes [rings, steps + 1]) of the best walk; says which saturated."""
    rings, steps = bins.shape
    nodes = trellis.costs.shape[2]
    every, walks = np.arange(rings), np.zeros((rings, nodes), np.int64)
    if boundary is not None:
        walks[:] = MOST
        walks[every, boundary] = 0
    odd = np.empty((steps, rings, nodes), np.intp)
    for i in range(steps):
        into = np.stack([np.tile(walks[:, parity::2], 2) for parity in (0, 1)], axis=1)
        into = np.minimum(into + trellis.costs[bins[:, i]], MOST)
        odd[i], walks = into.argmin(axis=1), into.min(axis=1)
    walked = np.empty((rings, steps + 1), np.uint32)
    walked[:, steps] = walks.argmin(axis=1) if boundary is None else boundary
    lost[:] = walks[every, walked[:, steps]] == MOST
    states = np.empty((rings, steps), np.uint32)
    for i in reversed(range(steps)):
        to = walked[:, i + 1]
        from_odd = odd[i, every, to]
        states[:, i] = trellis.states[bins[:, i], from_odd, to]
        walked[:, i] = (2 * to + from_odd) % nodes
    return states, walked


@functools.cache
def _function() -> Callable[..., int]:
    library = native.library()
    assert library is not None
    function = library.unspool_viterbi_binned
    pointer, size, real = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float
    function.argtypes = [
        *[pointer] * 2, *[size] * 2, real, real, pointer, *[size] * 4, pointer, pointer,
    ]  # fmt: skip
    function.restype = ctypes.c_int
    return function
