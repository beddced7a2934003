"""What is multiplied and timed: ours and other people's products, all seen alike.

A new one is a class with these members, and an Entrant of it in `entrants.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from gpu.board import Board
    from gpu.stage import Given


class Product(Protocol):
    """Copies of a weight `[n, k]` in GPU memory, and products with them."""

    #: the format's or the peer's name
    format: str
    #: what multiplies: bfloat16, float16, fp8, fp8x2, ...
    activations: str
    #: stored bytes of one copy, scales and all
    nbytes: int
    #: instances of the weight, for turns that no cache remembers
    copies: int

    def queue(self, m: int) -> Callable[[int], object]:
        """`call(i)` queues the product of m rows with copy i on the current stream.

        All memory is there before: a call neither allocates for good nor waits. Raises AbsentError
        for an m that it cannot do.
        """

    def result(self, x: np.ndarray) -> np.ndarray:
        """The product of x `[m, k]` (float32, exact in bfloat16) with copy 0, float32 `[m, n]`."""

    def expected(self, x: np.ndarray, batch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """What it has to be, float64 `[m, n]`, and how far every element may be from that.

        `batch`: how many rows are multiplied of which these are some.
        """


Maker = Callable[["Board", int, int, int], Product]
"""Makes `copies` of a weight: (board, n, k, copies). Raises AbsentError with the reason."""


Size = tuple[tuple[int, int], Sequence[int]]
"""(n, k), and the batches of it."""

Sources = Callable[["Board", tuple[int, int], Sequence[int], str], Sequence[str]]
"""(board, (n, k), batches, dtype in and out) -> the texts of the kernels that products of these
take, to compile them before; empty where this machine does not multiply so."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """Who takes part."""

    #: a format of ours first: "m2-e4m3", "m2-e4m3 fp8x2"
    name: str
    make: Maker
    #: bits per stored weight, roughly: how many copies go past the L2
    bits: float
    peer: bool = False
    #: rows that it is made for at most
    most_rows: int = 1 << 20
    #: of those that are timed at all sizes before anybody else
    flagship: bool = False
    sources: Sources = lambda board, shape, batches, dtype: ()

    def among(self, names: Sequence[str]) -> bool:
        """Whether it is asked for: by its name, its first word (a format, torch), or everybody."""
        return not names or bool({self.name, self.name.split()[0]} & set(names))

    def asked(self, given: Given) -> bool:
        """Whether it takes part in this run."""
        return self.among(given.formats) and self.name not in given.without


def compiled(
    given: Given,
    entrants: Sequence[Entrant],
    sizes: Sequence[Size],
    dtype: str,
) -> None:
    """Compiles what products of these take, on all cores: a kernel takes 0.2 to 0.6 s of one."""
    asked = [
        source
        for entrant in entrants
        for shape, batches in sizes
        for source in entrant.sources(given.board, shape, batches, dtype)
    ]
    given.board.ready(asked, given.deadline.left)


def activations(m: int, k: int, seed: int = 0) -> np.ndarray:
    """Gaussian rows `[m, k]`, float32 that bfloat16 holds exactly."""
    x = np.random.default_rng(seed).standard_normal((m, k), np.float32)
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
