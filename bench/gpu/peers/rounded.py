"""What the peers share: copies of a Gaussian weight, rounded and packed by the peer itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu.stage import AbsentError

if TYPE_CHECKING:
    from gpu.board import Board

Multiply = Callable[[Any], Any]
"""A torch tensor of rows `[m, k]` -> `[m, n]`, queued on the current stream."""

Build = Callable[[Any], tuple[int, Multiply]]
"""A torch weight `[n, k]` of bfloat16 on the GPU -> stored bytes, and the product."""


class RoundedProduct:
    """A peer: builds its copies from one weight."""

    def __init__(
        self, board: Board, shape: tuple[int, int], copies: int, build: Build, **named: Any
    ) -> None:
        """`named`: format, activations, and dtype of what it is given."""
        torch = board.torch
        self.format, self.activations = named["format"], named["activations"]
        self._device = board.device
        self._torch, self._dtype, self.copies = torch, named.get("dtype", torch.bfloat16), copies
        n, self._k = shape
        seeded = torch.Generator(device=board.device).manual_seed(0)
        self._weight = torch.randn(
            n, self._k, generator=seeded, device=board.device, dtype=torch.bfloat16
        )
        self.nbytes, first = build(self._weight)
        packed = isinstance(first, torch.nn.Module)  # packing may be slow; so copied as it is
        self._products = [
            first,
            *(
                copy.deepcopy(first) if packed else build(self._weight)[1]
                for _ in range(copies - 1)
            ),
        ]

    def queue(self, m: int) -> Callable[[int], object]:
        """`call(i)`: the product with copy i."""
        x = self._torch.randn(m, self._k, device=self._device, dtype=self._dtype)

        def call(i: int) -> object:
            return self._products[i](x)

        return call

    def result(self, x: np.ndarray) -> np.ndarray:
        """The product with copy 0, float32."""
        given = self._torch.from_numpy(x.copy()).to(self._device, self._dtype)
        return self._products[0](given).float().cpu().numpy()

    def expected(self, x: np.ndarray, batch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """With the weight before it was rounded: no bound for any one element, in any batch."""
        del batch
        want = (
            (self._torch.from_numpy(x.copy()).to(self._device).double() @ self._weight.double().t())
            .cpu()
            .numpy()
        )
        return want, np.full(want.shape, np.inf)


def need(condition: bool, reason: str) -> None:
    """Raises AbsentError where the condition does not hold."""
    if not condition:
        raise AbsentError(reason)
