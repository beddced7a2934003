"""What calibration sums over the windows of a text for the layers that read one activation.

Windows are passed through the block by threads that take whole ones. The products of what some
windows give are then made in blocks of columns, one thread each, and added in float32: windows in
their order inside chunks, then the chunks. No shape of a product depends on the number of threads
or of processes, so neither do the bytes. What float32 rounds away of a sum is 1e-7 of the mean
square; damping adds 1e-2 of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from unspool.encode.blas import one_thread, slices
from unspool.model.experts import is_expert
from unspool.model.importance import Importance
from unspool.model.processes import ALONE, Processes
from unspool.model.residual import read_before
from unspool.model.taps import THROUGH, Call, Each, Parts, Read, Taps, without_bias

CHUNKS = 8
"""Parts of the text that are summed apart: more processes than these share layers alone. A process
that sums several keeps each until all are summed, 8 bytes x k x k."""

TOGETHER = 2048
"""Tokens, in whole windows, of one product: a sum is read and written once for all of them. With
windows of 512 one by one that took 34 s of a layer with k = 8192."""

BLOCK = 1024
"""Columns of a product that one thread makes."""

DRIFT_TOKENS = 32
"""Per column of an expert's weight that its drift is made good from: what fewer tell of it is
noise. On the layers of the bundled model 16 raised KL from .0775 to .0843; 64 lower it."""

SYMMETRIC = ("inputs", "weighed")


@dataclass(kw_only=True)
class Streams:
    """Hidden states `[1, tokens, width]` per window, before the block at hand.

    original    those of the original model
    quantized   those of the model as quantized so far
    calls       what every block is called with beside them
    place       of the block at hand
    count       windows of all processes; the lists hold those of this one
    processes   those that have the windows between them
    importance  of every token to every layer; without it all count alike
    """

    original: list[torch.Tensor]
    quantized: list[torch.Tensor]
    calls: Sequence[Call]
    count: int
    processes: Processes = ALONE
    importance: Importance | None = None
    place: int = 0

    @property
    def call(self) -> Call:
        """What the block at hand is called with."""
        return self.calls[self.place]


def chunks(windows: int, processes: int) -> list[tuple[int, range]]:
    """Every chunk's process and windows, in order; the first process has the first window."""
    begins = [-(-chunk * windows // CHUNKS) for chunk in range(CHUNKS + 1)]
    owners = [chunk * min(processes, CHUNKS) // CHUNKS for chunk in range(CHUNKS)]
    return [(owners[chunk], range(*begins[chunk : chunk + 2])) for chunk in range(CHUNKS)]


def own(windows: int, processes: Processes) -> list[int]:
    """The places of a process's own windows among those of all."""
    divided = chunks(windows, processes.count)
    return [place for owner, part in divided if owner == processes.rank for place in part]


@dataclass(kw_only=True)
class Sums:
    """Sums over windows; None where there is nothing to sum.

    inputs   [k, k]  x x^T of what the layers read
    weighed  [k, k]  g x x^T, g the importance of a token
    moved    [k, k]  (x of the original - x) x^T, of several layers or a tall one
    drift    [n, k]  (output of the original - output) x^T, of a layer by itself: what it gives for
                     another x, and what the residual stream lacks where it adds to that
    """

    inputs: np.ndarray | None = None
    weighed: np.ndarray | None = None
    moved: np.ndarray | None = None
    drift: np.ndarray | None = None
    tokens: int = 0

    def arrays(self) -> tuple[np.ndarray | None, ...]:
        """All sums, in the order of the fields."""
        return self.inputs, self.weighed, self.moved, self.drift

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray | None], tokens: int) -> Sums:
        """The sums whose `arrays` those are."""
        inputs, weighed, moved, drift = arrays
        return cls(inputs=inputs, weighed=weighed, moved=moved, drift=drift, tokens=tokens)

    def add(self, found: Sums) -> None:
        """Adds others, in the place of these."""
        sums = zip(self.arrays(), found.arrays(), strict=True)
        self.inputs, self.weighed, self.moved, self.drift = [_added(*each) for each in sums]
        self.tokens += found.tokens


def _added(total: np.ndarray | None, more: np.ndarray | None) -> np.ndarray | None:
    if total is None or more is None:
        return more if total is None else total
    total += more
    return total


@dataclass(frozen=True, kw_only=True)
class _Window:
    """What a window gives: the rows of `Sums`' products, beside x itself."""

    x: torch.Tensor
    weighed: torch.Tensor | None = None
    moved: torch.Tensor | None = None
    drift: torch.Tensor | None = None


Reads = Mapping[str, Read]
"""What modules read, by their names."""

Weigh = Callable[[int, Sequence[str], Read], torch.Tensor]
"""The rows of a window times the roots of their importance to layers of those names."""


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Layers that read the same tensor, the module that tells what the residual lacks, and the
    tokens that drift is worth looking at from."""

    names: Sequence[str]
    layers: Sequence[nn.Module]
    beside: str | None
    least: int
    call: Call
    weigh: Weigh | None

    @classmethod
    def of(
        cls, block: nn.Module, names: Sequence[str], streams: Streams, weigh: Weigh | None
    ) -> _Group:
        """The named layers of a block."""
        call, alone = streams.call, len(names) == 1
        beside = read_before(block, names[0], streams.original, call) if alone else None
        layers = [block.get_submodule(name) for name in names]
        least = DRIFT_TOKENS * layers[0].in_features if is_expert(block, names[0]) else 0
        return cls(names=names, layers=layers, beside=beside, least=least, call=call, weigh=weigh)

    @property
    def tapped(self) -> list[str]:
        """Modules whose inputs are needed."""
        return [self.names[0], *([self.beside] if self.beside else [])]

    def window(self, place: int, new: Reads, old: Reads, moved: torch.Tensor) -> _Window | None:
        """What a window gives; `moved`: how far its hidden states before the block are off."""
        first = self.names[0]
        if first not in new:
            return None
        lacks = None
        if self.beside is not None:
            lacks = old[self.beside].x - new[self.beside].x if self.beside else moved
        found = _window(new[first], old.get(first), lacks, self.layers, self.call)
        if self.weigh is None:
            return found
        return replace(found, weighed=self.weigh(place, self.names, new[first]))


def gather(
    original: Parts,
    changed: Parts,
    groups: Sequence[Sequence[str]],
    streams: Streams,
    each: Each,
    *,
    prefix: str = "",
    last: bool = False,
) -> list[Sums]:
    """The sums of groups of layers over all windows, made in one pass; `prefix` is the block's name
    in the model.

    `changed` has the layers of the block before these quantized; none of the groups reads what
    another gives. Of the `last` pass of a block the original stream is moved on as well.
    """
    weigh = _weigher(streams, prefix)
    asked = [_Group.of(original.block, names, streams, weigh) for names in groups]
    tapped = [name for group in asked for name in group.tapped]
    tokens = streams.count * (streams.original[0].shape[1] if streams.original else 0)
    with Taps(changed, tapped) as taps, Taps(original, tapped, through=last) as originals:

        def window(place: int) -> list[_Window | None]:
            before, now = streams.original[place], streams.quantized[place]
            new = taps.read(now, streams.call, place)
            old = originals.read(before, streams.call, place)
            if last:
                streams.original[place] = old.pop(THROUGH).x
            off = before - now
            return [g.window(place, new, old if tokens >= g.least else {}, off) for g in asked]

        chunk = partial(_of_chunk, window, len(asked), streams, each)
        totals = _over_chunks(chunk, len(asked), streams)
    for group, total in zip(asked, totals, strict=True):
        if total.tokens < group.least:
            total.moved = total.drift = None
        for square in total.inputs, total.weighed:
            if square is not None:
                _mirror(square)
    return totals


def sums_bytes(shape: tuple[int, int], weighed: bool) -> int:
    """Bytes of the sums of a layer `[n, k]` by itself."""
    n, k = shape
    return 4 * k * (k * (1 + weighed) + min(n, k))


def _weigher(streams: Streams, prefix: str) -> Weigh | None:
    """None without importance."""
    importance = streams.importance
    if importance is None:
        return None

    def weigh(place: int, names: Sequence[str], read: Read) -> torch.Tensor:
        rows = _rows(read.x)
        tokens = None if read.tokens is None else read.tokens.numpy()
        layers = [f"{prefix}.{name}" for name in names]
        return rows * torch.from_numpy(importance.roots(place, layers, len(rows), tokens))

    return weigh


@one_thread()
def _of_chunk(
    window: Callable[[int], list[_Window | None]],
    groups: int,
    streams: Streams,
    each: Each,
    places: range,
) -> list[Sums]:
    """The sums of a chunk, over as many windows at a time as are multiplied together."""
    totals = [Sums() for _ in range(groups)]
    some = max(1, TOGETHER // streams.original[places.start].shape[1]) if places else 1
    for first in range(places.start, places.stop, some):
        here = range(first, min(first + some, places.stop))
        tasks: list[_Block] = []
        for total, found in zip(totals, zip(*each(window, here), strict=True), strict=True):
            rows = [one for one in found if one is not None]
            tasks += _products(total, rows) if rows else ()
        for _ in each(partial(_add, tasks), range(len(tasks))):
            pass
    return totals


def _add(tasks: Sequence[_Block], place: int) -> None:
    tasks[place].add()


def _window(
    new: Read,
    old: Read | None,
    lacks: torch.Tensor | None,
    layers: Sequence[nn.Module],
    call: Call,
) -> _Window:
    """What a window gives for what is read now, and what was."""
    x = _rows(new.x)
    moved = None if old is None else _moved(new, old)
    if moved is None:
        return _Window(x=x)
    weight = layers[0].weight
    if len(layers) > 1 or (lacks is None and len(weight) > x.shape[1]):
        return _Window(x=x, moved=moved)
    drift = without_bias(layers[0], moved, call)
    return _Window(x=x, drift=drift if lacks is None else drift + _rows(lacks))


def _moved(new: Read, old: Read) -> torch.Tensor | None:
    """What was read less what is, row by row; nothing for a token that had another expert, and None
    where rows cannot be told apart."""
    x, before = _rows(new.x), _rows(old.x)
    if new.tokens is None or old.tokens is None:
        return before - x if before.numel() == x.numel() else None
    at = torch.searchsorted(old.tokens, new.tokens).clamp(max=len(old.tokens) - 1)
    same = old.tokens[at] == new.tokens
    return torch.where(same[:, None], before[at] - x, 0)


def _products(total: Sums, windows: Sequence[_Window]) -> list[_Block]:
    """The products of some windows, to be added; of those that are symmetric the blocks from the
    diagonal on."""
    x = torch.cat([window.x for window in windows]).numpy()
    total.tokens += len(x)
    tasks: list[_Block] = []
    for name in ("inputs", "weighed", "moved", "drift"):
        rows = x if name == "inputs" else _together([getattr(w, name) for w in windows], windows)
        if rows is None:
            continue
        if getattr(total, name) is None:
            setattr(total, name, np.zeros((rows.shape[1], x.shape[1]), np.float32))
        symmetric = name in SYMMETRIC
        into, right = getattr(total, name), rows if symmetric else x
        tasks += [
            _Block(into=into, left=rows.T[here], right=right[:, there], place=(here, there))
            for here in slices(rows.shape[1], BLOCK)
            for there in slices(x.shape[1], BLOCK)
            if not symmetric or there.start >= here.start
        ]
    return tasks


def _together(rows: Sequence[torch.Tensor | None], windows: Sequence[_Window]) -> np.ndarray | None:
    """The rows of all windows, zeros for those that have none; None where none has."""
    width = next((each.shape[1] for each in rows if each is not None), None)
    if width is None:
        return None
    return torch.cat(
        [
            window.x.new_zeros(len(window.x), width) if each is None else each
            for each, window in zip(rows, windows, strict=True)
        ]
    ).numpy()


@dataclass(frozen=True, kw_only=True)
class _Block:
    """left right, to be added to a block of a sum."""

    into: np.ndarray
    left: np.ndarray
    right: np.ndarray
    place: tuple[slice, slice]

    def add(self) -> None:
        self.into[self.place] += self.left @ self.right


def _mirror(square: np.ndarray) -> None:
    """Gives the blocks below the diagonal those above it."""
    blocks = slices(len(square), BLOCK)
    for place, here in enumerate(blocks):
        for there in blocks[:place]:
            square[here, there] = square[there, here].T


def _over_chunks(chunk: Callable[[range], list[Sums]], groups: int, streams: Streams) -> list[Sums]:
    """The sums of all chunks, added in their order, in every process."""
    processes = streams.processes
    divided = chunks(streams.count, processes.count)
    mine = [part for owner, part in divided if owner == processes.rank]
    first = mine[0].start if mine else 0  # the window that is this process's first
    if processes.count > 1:
        held = iter(processes.agreed(lambda: [chunk(_before(part, first)) for part in mine]))
    else:
        held = (chunk(part) for part in mine)
    totals = [Sums() for _ in range(groups)]
    for owner, _ in divided:
        found = next(held) if owner == processes.rank else [Sums()] * groups
        for total, of_chunk in zip(totals, found, strict=True):
            arrays = (*of_chunk.arrays(), np.array(of_chunk.tokens))
            *sums, tokens = processes.from_one(owner, arrays)
            assert tokens is not None
            total.add(Sums.of(sums, int(tokens)))
    return totals


def _before(part: range, first: int) -> range:
    return range(part.start - first, part.stop - first)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).float()
