"""Several processes of one run (`torchrun`): who does what, and results in one order everywhere.

Windows of the calibration text are divided among processes in chunks, whose sums are added in one
order; layers, or the strips of large ones, are encoded by one process each. What a process makes
does not depend on which one it is, so neither do the bytes. They talk by gloo: the work is on CPUs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from unspool.encode.encode import Share, alone
from unspool.errors import ModelError, UnspoolError

T = TypeVar("T")

MEETING = timedelta(minutes=10)
"""How long a process waits at the start for those that do not come."""

PATIENCE = timedelta(days=7)
"""How long one waits for another later, which may be encoding a large layer; the death of one ends
the others at once."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run, as one of them sees them; `group` is how torch knows them."""

    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` gives here. An error in any process is raised in all of them."""
        if self.count == 1:
            return work()
        try:
            found, error = work(), None
        except Exception as raised:
            self._all(_told(raised, self.rank))
            raise
        for error in self._all(None):
            if error is not None:
                raise error
        return found

    def told(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process, which alone runs it."""
        found = self.agreed(lambda: work() if self.first else None)
        if self.count == 1:
            return found  # type: ignore[return-value]
        box = [found]
        with _talking():
            distributed.broadcast_object_list(box, src=0, group=self.group)
        return box[0]  # type: ignore[return-value]

    def share(self, work: Callable[[int], T], count: int) -> list[T]:
        """`[work(0), ...]` everywhere, each done by one process: they take turns."""
        if self.count == 1:
            return alone(work, count)
        mine = range(self.rank, count, self.count)
        everyone = self._all(self.agreed(lambda: [work(place) for place in mine]))
        return [everyone[place % self.count][place // self.count] for place in range(count)]

    def encoded(self, strips: Mapping[str, int], encode: Callable[[str, Share], T]) -> dict[str, T]:
        """`encode` of every name: whole layers in turn, or the strips of layers that have enough
        of them for all processes, by the `Share` given."""
        small = [name for name in strips if strips[name] < self.count]
        found = dict(
            zip(small, self.share(lambda i: encode(small[i], alone), len(small)), strict=True)
        )
        return {n: found[n] if n in found else encode(n, self.share) for n in strips}

    def merged(self, mine: Mapping[int, T]) -> dict[int, T]:
        """What all processes have, by place."""
        if self.count == 1:
            return dict(mine)
        return {place: each for part in self._all(dict(mine)) for place, each in part.items()}

    def from_one(self, owner: int, arrays: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
        """The arrays of one process everywhere."""
        if self.count == 1:
            return list(arrays)
        box: list[Any] = [[None if a is None else (a.shape, a.dtype.str) for a in arrays]]
        out: list[np.ndarray | None] = []
        with _talking():
            distributed.broadcast_object_list(box, src=owner, group=self.group)
            for place, kind in enumerate(box[0]):
                mine = arrays[place] if self.rank == owner else None
                array = None if kind is None else np.empty(*kind) if mine is None else mine
                if array is not None:
                    distributed.broadcast(torch.from_numpy(array), owner, self.group)
                out.append(array)
        return out

    def _all(self, mine: T) -> list[T]:
        found: list[Any] = [None] * self.count
        with _talking():
            distributed.all_gather_object(found, mine, self.group)
        return found


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that `torchrun` started this one among, connected."""
    with _talking():
        distributed.init_process_group("gloo", timeout=MEETING)
    try:
        with _talking():
            group = distributed.new_group(timeout=PATIENCE)
        rank, count = distributed.get_rank(), distributed.get_world_size()
        yield Processes(rank=rank, count=count, group=group)
    finally:
        distributed.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            "another process of the run has ended, or cannot be reached",
            found=re.sub(r"^\[.*?\] ", "", str(error)).partition(". ")[0],  # no line of gloo's own
            allowed="start all again; --work and --resume keep finished blocks",
        ) from error


def _told(error: Exception, rank: int) -> UnspoolError:
    """An error as the other processes raise it."""
    if isinstance(error, UnspoolError):
        return error
    return ModelError(f"process {rank} failed", found=f"{type(error).__name__}: {error}")
