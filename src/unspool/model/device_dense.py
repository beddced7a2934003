"""Dense trellises on a torch device: costs of 255 at most, as `encode.dense` has them.

What goes forwards is one of two. A kernel (`search_kernel`), where there is one for the GPU. Or
torch's operations: what edges cost is one matrix product, of what the levels cost [rings, lanes *
levels] with ones where an edge has a level. Its sums are whole and small enough for binary16, so a
GPU's tensor cores make them, and 16 bits go through memory where float32 would take 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unspool.encode import dense
from unspool.model.device_steps import advance, put, retrace

_HALF_WHOLE = 2048
"""Whole numbers up to this one are exact in binary16."""

_LEVEL_BYTES, _INDEX_BYTES = 16, 8
"""Of temporaries: per level of a step, in float32, and per edge into a node."""


class Forwards(Protocol):
    """What finds the walks of a pass."""

    @property
    def dtype(self) -> torch.dtype:
        """Of costs and walks."""

    @property
    def edge_bytes(self) -> int:
        """What a ring's edges take."""

    def __call__(self, told: Tensor, boundary: Tensor | None) -> Tensor:
        """`Steps.walked`, of what levels cost [steps, rings, lanes * levels]."""


def never_of(found: dense.Dense) -> int:
    """More than any edge costs: the walks that may not begin."""
    return (dense.MOST + 1) * len(found.levels)


@dataclass(frozen=True, kw_only=True)
class OnesProduct:
    """Forwards by torch's operations.

    ones  [lanes * levels, nodes * edges]: 1 where an edge has a level
    """

    ones: Tensor
    nodes: int
    parallel: int
    never: int

    @staticmethod
    def of(found: dense.Dense, device: torch.device, dtype: torch.dtype) -> OnesProduct:
        """In `dtype` where that is exact, else in float32."""
        (lanes, count), edges, never = found.levels.shape, found.state.size, never_of(found)
        if never + dense.MOST * lanes > _HALF_WHOLE:
            dtype = torch.float32
        ones = torch.zeros((lanes * count, edges), dtype=dtype, device=device)
        every = torch.arange(edges, device=device)
        for places in _places(found):
            ones[put(places.reshape(-1), device), every] = 1
        return OnesProduct(ones=ones, nodes=len(found.state), parallel=found.parallel, never=never)

    @property
    def dtype(self) -> torch.dtype:
        """See `Forwards`."""
        return self.ones.dtype

    @property
    def edge_bytes(self) -> int:
        """See `Forwards`."""
        return 2 * self.dtype.itemsize * self.ones.shape[1]

    def __call__(self, told: Tensor, boundary: Tensor | None) -> Tensor:
        """See `Forwards`."""
        return advance(self, told, boundary)

    def forward(self, at: Tensor, walks: Tensor) -> Tensor:
        """The walks after a step."""
        edges = (at @ self.ones).view(len(at), self.nodes, self.nodes, self.parallel)
        cost = edges.amin(3) if self.parallel > 1 else edges[..., 0]
        after = cost.add_(walks[:, None]).amin(2).clamp_(max=dense.MOST)
        return after - after.amin(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class DenseSteps:
    """A dense trellis as `device_steps.Steps`.

    levels  float32 [lanes, count]
    places  per lane [nodes, edges]: where an edge's level lies among lanes * count
    """

    levels: Tensor
    units: float
    limit: float
    places: tuple[Tensor, ...]
    state: Tensor
    parallel: int
    never: int
    forwards: Forwards

    @staticmethod
    def of(found: dense.Dense, device: torch.device, forwards: Forwards) -> DenseSteps:
        """The steps of a dense trellis."""
        return DenseSteps(
            levels=put(found.levels, device),
            units=float(found.units),
            limit=float(found.limit),
            places=tuple(put(places, device) for places in _places(found)),
            state=put(found.state.astype(np.int64), device),
            parallel=found.parallel,
            never=never_of(found),
            forwards=forwards,
        )

    @property
    def nodes(self) -> int:
        """See `Steps`."""
        return len(self.state)

    def ring_bytes(self, steps: int) -> int:
        """See `Steps`."""
        each = self.forwards.dtype.itemsize
        held = self.levels.numel() * (_LEVEL_BYTES + each) + 2 * self.nodes * each
        return self.forwards.edge_bytes + 3 * _INDEX_BYTES * self.state.shape[1] + steps * held

    def inputs(self, targets: Tensor) -> Tensor:
        """What every level costs, [steps, rings, lanes * count], rounded to whole units."""
        x = targets.swapaxes(0, 1).clamp(-self.limit, self.limit)
        missed = x[..., None] - self.levels
        square = missed * missed
        units = (square - square.amin(3, keepdim=True)) * self.units
        whole = (units.clamp_(max=float(dense.MOST)) + 0.5).floor_()
        return whole.to(self.forwards.dtype).flatten(2)

    def walked(self, told: Tensor, boundary: Tensor | None) -> Tensor:
        """See `Steps`."""
        return self.forwards(told, boundary)

    def trace(self, told: Tensor, walks: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """See `Steps`."""
        return retrace(self._backward, told, walks, nodes)

    def _backward(self, at: Tensor, to: Tensor, walks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        edges = at.gather(1, self.places[0][to])
        for places in self.places[1:]:
            edges += at.gather(1, places[to])
        cost = edges.clamp_(max=dense.MOST) + walks.repeat_interleave(self.parallel, 1)
        cost = torch.where(cost < self.never, cost.clamp(max=dense.MOST), cost)
        edge = cost.argmin(1, keepdim=True)
        found = edge[:, 0]
        bad = cost.gather(1, edge)[:, 0] == dense.MOST
        return self.state[to, found], found // self.parallel, bad


def _places(found: dense.Dense) -> list[np.ndarray]:
    """Per lane [nodes, edges]: where an edge's level lies among lanes * levels."""
    lanes, count = found.levels.shape
    places = found.places.astype(np.int64)
    return [np.ascontiguousarray(places[..., lane] + lane * count) for lane in range(lanes)]
