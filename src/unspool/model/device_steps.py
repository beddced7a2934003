"""One step of a trellis on any torch device, forwards and back, for many rings at a time.

The searches of `encode.viterbi`, `dense` and `binned` as a few large tensor operations, with the
states of their numpy twins bit for bit: whole numbers are exact in any order, and float32 goes
through the same products and sums, each an operation of its own, so that nothing is fused or
reassociated. Of equal candidates `argmin` gives the first, as torch documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unspool.encode import binned
from unspool.encode.viterbi import Trellis

_FLOAT_BYTES, _WHOLE_BYTES = 4, 4


class Steps(Protocol):
    """A trellis as a pass around rings needs it.

    Walks are costs [rings, nodes].
    """

    @property
    def nodes(self) -> int:
        """Of the trellis."""

    def ring_bytes(self, steps: int) -> int:
        """What a ring takes on the device, temporaries included."""

    def inputs(self, targets: Tensor) -> Tensor:
        """[steps, rings, ...] of targets [rings, steps, ...]: what a step is told."""

    def walked(self, told: Tensor, boundary: Tensor | None) -> Tensor:
        """The walks [steps + 1, rings, nodes] before every step and after the last; they begin at
        the boundary's nodes [rings], or anywhere."""

    def trace(self, told: Tensor, walks: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """States [rings, steps] of the best walks that end at the last of `nodes` [rings, steps +
        1], which it fills from there on, and which rings have a step whose cost is out of reach.

        walks [steps or more, rings, nodes]: before every step.
        """


def one_pass(
    steps: Steps, beyond: list[Tensor], targets: Tensor, boundary: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(states [rings, steps], nodes [rings, steps + 1]) of the best walk; free without boundary.

    Adds to `beyond` which rings [rings] have a step whose cost was out of reach.
    """
    told = steps.inputs(targets)
    count, rings = told.shape[:2]
    # The last layer matters only where the end is free: else the trace-back starts from its node.
    walks = steps.walked(told if boundary is None else told[:-1], boundary)
    nodes = torch.empty((rings, count + 1), dtype=torch.int64, device=targets.device)
    nodes[:, count] = walks[-1].argmin(1) if boundary is None else boundary
    states, bad = steps.trace(told, walks, nodes)
    beyond.append(bad)
    return states, nodes


class Stepping(Protocol):
    """What can go a step at a time."""

    @property
    def nodes(self) -> int:
        """Of the trellis."""

    @property
    def dtype(self) -> torch.dtype:
        """Of walks."""

    @property
    def never(self) -> float:
        """More than any walk costs that may be chosen."""

    def forward(self, at: Tensor, walks: Tensor) -> Tensor:
        """The walks after a step."""


def advance(steps: Stepping, told: Tensor, boundary: Tensor | None) -> Tensor:
    """`Steps.walked` a step at a time."""
    count, rings = told.shape[:2]
    walks = torch.zeros((count + 1, rings, steps.nodes), dtype=steps.dtype, device=told.device)
    if boundary is not None:
        walks[0] = steps.never
        walks[0].scatter_(1, boundary[:, None], 0)
    for i in range(count):
        walks[i + 1] = steps.forward(told[i], walks[i])
    return walks


Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""What a step was told, the nodes [rings] after it and the walks before it: state, node before and
whether the cost is out of reach, of the best edge."""


def retrace(
    backward: Backward, told: Tensor, walks: Tensor, nodes: Tensor
) -> tuple[Tensor, Tensor]:
    """`Steps.trace` a step at a time, costs found again: all of them would not fit in memory."""
    states, lost = torch.empty_like(nodes[:, 1:]), torch.zeros_like(nodes[:, 0], dtype=torch.bool)
    for i in reversed(range(len(told))):
        states[:, i], nodes[:, i], bad = backward(told[i], nodes[:, i + 1], walks[i])
        lost |= bad
    return states, lost


@dataclass(frozen=True, kw_only=True)
class FloatSteps:
    """`viterbi`'s own: any trellis, in float32. Beyond reach is what has no walk at all.

    square, slopes [nodes * edges] are the rows of `Trellis.table`.
    """

    square: Tensor
    slopes: tuple[Tensor, ...]
    source: Tensor
    state: Tensor
    parallel: int
    dtype: torch.dtype = torch.float32
    never: float = float("inf")

    @staticmethod
    def of(found: Trellis, device: torch.device) -> FloatSteps:
        """The steps of a trellis."""
        square, *slopes = (put(row.reshape(-1), device) for row in found.table.swapaxes(0, 1))
        return FloatSteps(
            square=square,
            slopes=tuple(slopes),
            source=put(found.source.astype(np.int64), device),
            state=put(found.state.astype(np.int64), device),
            parallel=found.parallel,
        )

    @property
    def nodes(self) -> int:
        """See `Steps`."""
        return len(self.state)

    def ring_bytes(self, steps: int) -> int:
        """See `Steps`."""
        return _FLOAT_BYTES * (3 * self.state.numel() + (steps + 1) * self.nodes)

    def inputs(self, targets: Tensor) -> Tensor:
        """See `Steps`."""
        return targets.swapaxes(0, 1)

    def walked(self, told: Tensor, boundary: Tensor | None) -> Tensor:
        """See `Steps`."""
        return advance(self, told, boundary)

    def forward(self, at: Tensor, walks: Tensor) -> Tensor:
        """The walks after a step."""
        cost = self._cost(at, self.square, self.slopes)
        cost = cost.view(len(at), *self.source.shape, self.parallel)
        cost = cost.amin(3) if self.parallel > 1 else cost[..., 0]
        return cost.add_(walks[:, self.source]).amin(2)

    def trace(self, told: Tensor, walks: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """See `Steps`."""
        return retrace(self._backward, told, walks, nodes)

    def _backward(self, at: Tensor, to: Tensor, walks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.state.shape
        rows = (self.square.view(shape)[to], [slope.view(shape)[to] for slope in self.slopes])
        before = walks.gather(1, self.source[to]).repeat_interleave(self.parallel, 1)
        cost = self._cost(at, *rows).add_(before)
        edge = cost.argmin(1, keepdim=True)
        node = self.source[to, edge[:, 0] // self.parallel]
        return self.state[to, edge[:, 0]], node, cost.gather(1, edge)[:, 0].isinf()

    @staticmethod
    def _cost(at: Tensor, square: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """Lane by lane, a product and a sum each, as the definition has it."""
        cost = (slopes[0] * at[:, :1]).add_(square)
        for lane, slope in enumerate(slopes[1:], start=1):
            cost.add_(slope * at[:, lane : lane + 1])
        return cost


@dataclass(frozen=True, kw_only=True)
class BinnedSteps:
    """`binned`: small shift registers of single weights, targets in bins, costs in 16 bits.

    costs, states [bins, 2, nodes]: the cheapest edge from the even and from the odd node, its state
    """

    costs: Tensor
    states: Tensor
    dtype: torch.dtype = torch.int32
    never: float = binned.MOST

    @staticmethod
    def of(found: binned.Binned, device: torch.device) -> BinnedSteps:
        """The steps of a binned trellis."""
        return BinnedSteps(
            costs=put(found.costs.astype(np.int32), device),
            states=put(found.states.astype(np.int64), device),
        )

    @property
    def nodes(self) -> int:
        """See `Steps`."""
        return self.costs.shape[2]

    def ring_bytes(self, steps: int) -> int:
        """See `Steps`."""
        return steps * self.nodes * (7 * _WHOLE_BYTES + 3 * 8)

    def inputs(self, targets: Tensor) -> Tensor:
        """The bins themselves, [steps, rings]."""
        return targets.swapaxes(0, 1)

    def walked(self, told: Tensor, boundary: Tensor | None) -> Tensor:
        """See `Steps`."""
        return advance(self, told, boundary)

    def forward(self, at: Tensor, walks: Tensor) -> Tensor:
        """The walks after a step."""
        return self._sides(at, walks).amin(1)

    def trace(self, told: Tensor, walks: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """All choices at once, then one look-up a step: launches are what this search waits for."""
        steps, half = len(told), self.nodes // 2
        even, odd = self._sides(told, walks[:steps]).unbind(2)
        side = (odd < even).to(torch.int64)
        first = 2 * torch.arange(half, device=nodes.device).repeat(2)
        before, back = side + first, nodes.t().contiguous()
        for i in reversed(range(steps)):
            torch.gather(before[i], 1, back[i + 1, :, None], out=back[i, :, None])
        nodes.copy_(back.t())
        side = back[:-1] % 2
        states = self.states[told, side, back[1:]].t()
        last = torch.minimum(even[-1], odd[-1]).gather(1, back[-1, :, None])[:, 0]
        return states, last == binned.MOST

    def _sides(self, bins: Tensor, walks: Tensor) -> Tensor:
        """Costs [..., 2, nodes] of the walks [..., nodes] into every node from its even and its odd
        one, for targets of those bins [...]."""
        pairs = walks.unflatten(-1, (self.nodes // 2, 2)).transpose(-1, -2)
        return torch.cat((pairs, pairs), -1).add_(self.costs[bins]).clamp_(max=binned.MOST)


def put(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of an array on a device."""
    return torch.from_numpy(np.array(array, order="C")).to(device)
