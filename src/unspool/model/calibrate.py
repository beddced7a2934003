"""Calibration: block by block, what the layers of a model read, and their calibrated encoding.

Two streams of hidden states walk through the model, one window of text at a time: that of the
original and that of the model as quantized so far. In every block the layers are met in the order
of their calls, those that read the same activation together: their second moments come from the
quantized stream, what they should have given from the original. Only the block at hand has weights
in memory.

Sums are float64, each window's product float32; windows are added in their order inside chunks of
windows, then the chunks. Threads take whole windows, each computed by one thread, and processes
whole chunks, so that the number of neither changes a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from unspool import native
from unspool.encode.blas import one_thread
from unspool.encode.encode import Share, alone, strip_count
from unspool.encode.ldlq import Calibration, encode_calibrated
from unspool.encode.moments import Moments
from unspool.errors import ModelError
from unspool.matmul.reference import decode
from unspool.model.blocks import Blocks
from unspool.model.importance import NOTHING, Importance, Kept, gradients
from unspool.model.processes import ALONE, Processes
from unspool.model.taps import Call, Each, Taps, first_call, in_float32, run_block, shared
from unspool.pack.matrix import CodedMatrix
from unspool.spec.format import Format

RESIDUAL = {"self_attn.o_proj": "", "mlp.down_proj": "post_attention_layernorm"}
"""Layers whose output is added to the residual stream, and the module inside the block that reads
the stream before ("": the block itself). Their outputs make good for what the stream has drifted:
KL .0544 to .0513 for t2-e2m1 on the bundled model."""

NOT_RESIDUAL = "pre_feedforward_layernorm"
"""Blocks with this module normalise outputs before they add them."""


CHUNKS = 8
"""Parts of the text that are summed apart: more processes than these share layers alone. A process
that sums several keeps each until all are summed, 16 bytes x k x k."""


@dataclass(kw_only=True)
class Streams:
    """Hidden states `[1, tokens, width]` per window, before the block at hand.

    original    those of the original model
    quantized   those of the model as quantized so far
    call        what every block is called with beside them
    count       windows of all processes; the lists hold those of this one
    processes   those that have the windows between them
    importance  of every token to every layer; without it all count alike
    """

    original: list[torch.Tensor]
    quantized: list[torch.Tensor]
    call: Call
    count: int
    processes: Processes = ALONE
    importance: Importance | None = None


def chunks(windows: int, processes: int) -> list[tuple[int, range]]:
    """Every chunk's process and windows, in order; the first process has the first window."""
    begins = [-(-chunk * windows // CHUNKS) for chunk in range(CHUNKS + 1)]
    owners = [chunk * min(processes, CHUNKS) // CHUNKS for chunk in range(CHUNKS)]
    return [(owners[chunk], range(*begins[chunk : chunk + 2])) for chunk in range(CHUNKS)]


@dataclass(kw_only=True)
class _Sums:
    """What is summed over windows for the layers that read one activation: x x^T,
    (x of the original - x) x^T, (residual of the original - residual) x^T; None where the original
    has no such token or there is no residual. And g x x^T, g the importance, where there is one."""

    inputs: np.ndarray | None = None
    moved: np.ndarray | None = None
    behind: np.ndarray | None = None
    weighed: np.ndarray | None = None
    tokens: int = 0

    def arrays(self) -> tuple[np.ndarray | None, ...]:
        return self.inputs, self.moved, self.behind, self.weighed

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray | None], tokens: int) -> _Sums:
        inputs, moved, behind, weighed = arrays
        return cls(inputs=inputs, moved=moved, behind=behind, weighed=weighed, tokens=tokens)

    def add(self, found: _Sums) -> None:
        sums = zip(self.arrays(), found.arrays(), strict=True)
        self.inputs, self.moved, self.behind, self.weighed = [_added(*each) for each in sums]
        self.tokens += found.tokens


def _added(total: np.ndarray | None, more: np.ndarray | None) -> np.ndarray | None:
    """Their sum, in the place of the total."""
    if total is None or more is None:
        return total if more is None else more.astype(np.float64, copy=False)
    total += more
    return total


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A layer's coded matrix and the tokens that it was calibrated on."""

    name: str
    matrix: CodedMatrix
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to quantize and how: formats by the layer's name inside the model; with `importance`
    tokens count by what the model's loss notices of them (`model.importance`)."""

    formats: Mapping[str, Format]
    how: Calibration = field(default_factory=Calibration)
    threads: int | None = None
    importance: bool = False


def both_streams(
    model: nn.Module, block: nn.Module, windows: torch.Tensor, processes: Processes = ALONE
) -> Streams:
    """Both streams before the first block, for windows of token ids `[count, tokens]`."""
    mine = _mine(len(windows), processes)
    hidden = [first_call(model, block, windows[place])[0].float() for place in mine]
    call = in_float32(first_call(model, block, windows[0])[1])
    return Streams(
        original=hidden, quantized=list(hidden), call=call, count=len(windows), processes=processes
    )


def _mine(windows: int, processes: Processes) -> list[int]:
    divided = chunks(windows, processes.count)
    return [place for owner, part in divided if owner == processes.rank for place in part]


def weigh(
    streams: Streams,
    model: nn.Module,
    blocks: Blocks,
    windows: torch.Tensor,
    threads: int | None,
    kept: Kept = NOTHING,
) -> None:
    """Lets the tokens of the streams count by their importance, found in the original model.

    `model` needs the weights outside the blocks; `windows` are those of all processes.
    """
    parts = [part for _, part in chunks(len(windows), streams.processes.count)]
    with workers(threads) as each:
        found = gradients(
            model, blocks, windows, parts, each, kept=kept, processes=streams.processes
        )
    streams.importance = Importance.of(found, _mine(len(windows), streams.processes))


def calibrate_block(
    block: nn.Module, prefix: str, streams: Streams, plan: Plan
) -> Iterator[Calibrated]:
    """Encodes a block's layers, each after those before it, and moves the streams on.

    `block` is the original in float32 and stays as it is. Raises ModelError for a layer that no
    token of the text reaches.
    """
    names = [name for name in _linears(block) if f"{prefix}.{name}" in plan.formats]
    changed, processes = deepcopy(block), streams.processes
    with workers(plan.threads) as each:
        for group in processes.told(lambda: _groups(block, names, streams)):
            sums = _sums(block, changed, group, streams, each, prefix)
            layers = {name: block.get_submodule(name) for name in group}
            matrices = processes.encoded(
                {
                    name: strip_count(tuple(layer.weight.shape), plan.formats[f"{prefix}.{name}"])
                    for name, layer in layers.items()
                },
                lambda name, share, sums=sums, layers=layers: _encoded(  # type: ignore[misc]
                    layers[name], f"{prefix}.{name}", sums, plan, share
                ),
            )
            for name, matrix in matrices.items():
                _decoded_into(changed.get_submodule(name), matrix)
                yield Calibrated(name=f"{prefix}.{name}", matrix=matrix, tokens=sums.tokens)
        _move_on(block, changed, streams, each)


def replay_block(
    block: nn.Module,
    prefix: str,
    streams: Streams,
    matrices: Mapping[str, CodedMatrix],
    threads: int | None,
) -> None:
    """Moves the streams past a block that was encoded before, by its matrices."""
    changed = deepcopy(block)
    for name, matrix in matrices.items():
        _decoded_into(changed.get_submodule(name.removeprefix(f"{prefix}.")), matrix)
    with workers(threads) as each:
        _move_on(block, changed, streams, each)


def pass_block(block: nn.Module, streams: Streams, threads: int | None) -> None:
    """The passes of calibrating a block, without the encoding: an estimate of time measures them.

    Moves both streams on by the block as it is.
    """
    with workers(threads) as each:
        for group in _groups(block, _linears(block), streams):
            _sums(block, block, group, streams, each)
        _move_on(block, block, streams, each)


def _decoded_into(layer: nn.Module, matrix: CodedMatrix) -> None:
    weight = torch.from_numpy(np.asarray(decode(matrix), np.float32))
    layer.weight = nn.Parameter(weight, requires_grad=False)


def _linears(block: nn.Module) -> list[str]:
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def _groups(block: nn.Module, names: Sequence[str], streams: Streams) -> list[list[str]]:
    """The named layers in the order of their calls, those that read the same tensor together.

    A layer that the first window does not reach (an expert) comes last, alone.
    """
    if not names:
        return []
    with Taps(block, names) as taps:
        groups = shared(taps.read(streams.original[0], streams.call))
    known = {name for group in groups for name in group}
    return groups + [[name] for name in names if name not in known]


def _sums(
    block: nn.Module,
    changed: nn.Module,
    group: Sequence[str],
    streams: Streams,
    each: Each,
    prefix: str = "",
) -> _Sums:
    """The moments of a group over all windows; `prefix` is the block's name in the model."""
    first, layers = group[0], [f"{prefix}.{name}" for name in group]
    beside = _residual(block, first) if len(group) == 1 else None
    names = [first] if not beside else [first, beside]

    def window(place: int) -> _Sums | None:
        before, now = streams.original[place], streams.quantized[place]
        new, old = taps.read(now, streams.call), originals.read(before, streams.call)
        if first not in new:
            return None
        x = _rows(new[first])
        found = _Sums(inputs=(x.T @ x).numpy(), tokens=len(x))
        if streams.importance is not None:
            weighed = x * torch.from_numpy(streams.importance.roots(place, layers, len(x)))
            found.weighed = (weighed.T @ weighed).numpy()
        if first not in old or old[first].numel() != x.numel():
            # Another choice of experts: no token for token.
            return found
        found.moved = ((_rows(old[first]) - x).T @ x).numpy()
        if beside is not None:
            then, here = (before, now) if not beside else (old[beside], new[beside])
            found.behind = (_rows(then - here).T @ x).numpy()
        return found

    def chunk(places: range) -> _Sums:
        total = _Sums()
        for found in each(window, places):
            if found is not None:
                total.add(found)
        return total

    with Taps(changed, names) as taps, Taps(block, names) as originals:
        return _over_chunks(chunk, streams)


def _over_chunks(chunk: Callable[[range], _Sums], streams: Streams) -> _Sums:
    """The sums of all chunks, added in their order, in every process."""
    processes = streams.processes
    divided = chunks(streams.count, processes.count)
    mine = [part for owner, part in divided if owner == processes.rank]
    first = mine[0].start if mine else 0  # the window that is this process's first
    if processes.count > 1:
        held = iter(processes.agreed(lambda: [chunk(_before(part, first)) for part in mine]))
    else:
        held = (chunk(part) for part in mine)
    total = _Sums()
    for owner, _ in divided:
        found = next(held) if owner == processes.rank else _Sums()
        arrays = (*found.arrays(), np.array(found.tokens))
        *sums, tokens = processes.from_one(owner, arrays)
        assert tokens is not None
        total.add(_Sums.of(sums, int(tokens)))
    return total


def _before(part: range, first: int) -> range:
    return range(part.start - first, part.stop - first)


def _residual(block: nn.Module, name: str) -> str | None:
    """The module that reads the residual stream which a layer adds to; None for other layers."""
    beside = RESIDUAL.get(name)
    if beside is None or hasattr(block, NOT_RESIDUAL):
        return None
    return beside if not beside or hasattr(block, beside) else None


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


@one_thread()
def _encoded(
    layer: nn.Module, name: str, sums: _Sums, plan: Plan, share: Share = alone
) -> CodedMatrix:
    if sums.inputs is None:
        raise ModelError(
            "no token of the calibration text reaches this layer",
            where=name,
            allowed="a longer text, or --exclude",
        )
    weight = layer.weight.detach().float().numpy()
    drift = None if sums.moved is None else weight.astype(np.float64) @ sums.moved
    if drift is not None and sums.behind is not None:
        drift += sums.behind
    return encode_calibrated(
        weight,
        plan.formats[name],
        Moments(inputs=sums.inputs, drift=drift, weighed=sums.weighed),
        how=plan.how,
        threads=plan.threads,
        where=name,
        share=share,
    )


def _move_on(
    block: nn.Module,
    changed: nn.Module,
    streams: Streams,
    each: Each,
) -> None:
    """Replaces the hidden states before the block by those after it."""

    def window(place: int) -> tuple[torch.Tensor, torch.Tensor]:
        after = run_block(block, streams.original[place], streams.call)
        return after, run_block(changed, streams.quantized[place], streams.call)

    for place, (original, quantized) in enumerate(each(window, range(len(streams.original)))):
        streams.original[place], streams.quantized[place] = original, quantized


@contextmanager
def workers(threads: int | None) -> Iterator[Each]:
    """Maps a function over windows, results in order; torch runs one thread in every worker."""
    before = torch.get_num_threads()
    count = native.threads(threads)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def each(function: Callable[[int], Any], windows: range) -> Iterator[Any]:
            # Some windows ahead and no more: every result holds k x k sums.
            for first in range(0, len(windows), 2 * count):
                yield from pool.map(function, windows[first : first + 2 * count])

        yield each
    torch.set_num_threads(before)
