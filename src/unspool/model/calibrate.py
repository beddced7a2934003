"""Calibration: block by block, what the layers of a model read, and their calibrated encoding.

Two streams of hidden states walk through the model, one window of text at a time: that of the
original and that of the model as quantized so far. In every block the layers are met in the order
of their calls, those that read the same activation together: their second moments come from the
quantized stream, what they should have given from the original. Only the block at hand has weights
in memory.

The numbers of threads and of processes change no byte (`model.sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from unspool import native
from unspool.encode.blas import in_threads, one_thread, slices
from unspool.encode.encode import Share, alone, strip_count
from unspool.encode.encode import encode as plainly
from unspool.encode.ldlq import Calibration, encode_calibrated
from unspool.encode.moments import Moments, needed, shrinkage
from unspool.errors import ModelError
from unspool.matmul.reference import decode
from unspool.model.blocks import Blocks, block_names
from unspool.model.expert_names import projection_of
from unspool.model.experts import is_expert
from unspool.model.importance import NOTHING, Importance, Kept, gradients
from unspool.model.processes import ALONE, Processes
from unspool.model.sums import BLOCK, Streams, Sums, chunks, gather, own, sums_bytes
from unspool.model.taps import Each, Parts, Taps, block_calls, first_call, run_block, shared
from unspool.model.tune_block import tune_block
from unspool.pack.matrix import CodedMatrix
from unspool.spec.format import Format

ERROR, PLAIN = "error", "plain"
UNREACHED = (ERROR, PLAIN)

SUMS_BYTES = 4 << 30
"""Of sums that are made in one pass: layers of experts beyond have a pass of their own."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A layer's coded matrix and the tokens that it was calibrated on."""

    name: str
    matrix: CodedMatrix
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to quantize and how: formats by the layer's name inside the model; with `importance`
    tokens count by what the model's loss notices of them (`model.importance`). `dtype`, float32 or
    bfloat16, is what linear layers and attention multiply in while the text walks through blocks:
    all else, sums and encoding too, is in float32 or float64. `tune`: steps that then train the
    scales of each block together (`model.tune_block`). `unreached`: what becomes of layers that no
    token of the text reaches, ERROR or PLAIN rounding."""

    formats: Mapping[str, Format]
    how: Calibration = field(default_factory=Calibration)
    threads: int | None = None
    importance: bool = False
    dtype: torch.dtype = torch.float32
    tune: int = 0
    unreached: str = ERROR

    def __post_init__(self) -> None:
        """Raises ModelError for another word."""
        if self.unreached not in UNREACHED:
            raise ModelError(
                "no such fate of layers that no token reaches",
                found=self.unreached,
                allowed=UNREACHED,
            )


def both_streams(
    model: nn.Module,
    block: nn.Module,
    windows: torch.Tensor,
    processes: Processes = ALONE,
    dtype: torch.dtype = torch.float32,
) -> Streams:
    """Both streams before the first block, for windows of token ids `[count, tokens]`."""
    mine = own(len(windows), processes)
    hidden = [first_call(model, block, windows[place])[0].float() for place in mine]
    calls = block_calls(model, block_names(model), windows[0])
    return Streams(
        original=hidden, quantized=list(hidden), count=len(windows), processes=processes,
        calls=[replace(call, dtype=dtype) for call in calls],
    )  # fmt: skip


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
    streams.importance = Importance.of(found, own(len(windows), streams.processes))


def calibrate_block(
    block: nn.Module, prefix: str, streams: Streams, plan: Plan
) -> Iterator[Calibrated]:
    """Encodes a block's layers, each after those before it, and moves the streams on.

    `block` is the original in float32 and stays as it is. Raises ModelError for a layer that no
    token of the text reaches.
    """
    names = [name for name in _linears(block) if f"{prefix}.{name}" in plan.formats]
    processes, dtype = streams.processes, streams.call.dtype
    before, changed = _in_dtype(block, dtype), _in_dtype(deepcopy(block), dtype)
    found: dict[str, CodedMatrix] = {}
    tokens: dict[str, int] = {}
    with workers(plan.threads) as each:
        with Parts(before) as originals, Parts(changed) as parts:
            passes = processes.told(lambda: _passes(before, names, streams))
            for place, groups in enumerate(passes):
                for side in originals, parts:
                    side.settle([n for later in passes[place:] for group in later for n in group])
                native.trim()
                last = place == len(passes) - 1
                sums = gather(originals, parts, groups, streams, each, prefix=prefix, last=last)
                if last:
                    originals.forget()
                native.trim()
                matrices = _encoded_groups(block, prefix, groups, sums, plan, processes)
                for group, of_group in zip(groups, sums, strict=True):
                    tokens |= dict.fromkeys(group, of_group.tokens)
                del sums  # k x k and more, before decoded weights
                _decode_all(changed, matrices, dtype)
                found |= matrices
            if not plan.tune:
                _move_on(None if passes else before, parts, streams, each)
        if plan.tune:
            if passes:
                found |= tune_block(changed, found, streams, each, plan.tune).matrices
                _decode_all(changed, found, dtype)
            _move_on(None if passes else before, Parts(changed), streams, each)
    for name, matrix in found.items():
        yield Calibrated(name=f"{prefix}.{name}", matrix=matrix, tokens=tokens[name])


def _encoded_groups(
    block: nn.Module,
    prefix: str,
    groups: Sequence[Sequence[str]],
    sums: Sequence[Sums],
    plan: Plan,
    processes: Processes,
) -> dict[str, CodedMatrix]:
    """The matrices of the layers of some groups, by whichever process has them."""
    of_layer = {n: found for group, found in zip(groups, sums, strict=True) for n in group}
    if plan.unreached == ERROR:
        _check_reached(prefix, of_layer)
    strips = {
        name: strip_count(
            tuple(block.get_submodule(name).weight.shape), plan.formats[f"{prefix}.{name}"]
        )
        for name in of_layer
    }

    def encode(name: str, share: Share) -> CodedMatrix:
        return _encoded(block.get_submodule(name), f"{prefix}.{name}", of_layer[name], plan, share)

    return processes.encoded(strips, encode)


def _check_reached(prefix: str, of_layer: Mapping[str, Sums]) -> None:
    missed = [name for name, sums in of_layer.items() if sums.inputs is None]
    if missed:
        more = f" and {len(missed) - 4} more" if len(missed) > 4 else ""
        raise ModelError(
            "no token of the calibration text reaches some layers",
            where=prefix,
            found=", ".join(missed[:4]) + more,
            allowed="a longer text, --unreached plain to round them without it, or --exclude",
        )


def replay_block(
    block: nn.Module,
    prefix: str,
    streams: Streams,
    matrices: Mapping[str, CodedMatrix],
    threads: int | None,
) -> None:
    """Moves the streams past a block that was encoded before, by its matrices."""
    dtype = streams.call.dtype
    before, changed = _in_dtype(block, dtype), _in_dtype(deepcopy(block), dtype)
    inside = {name.removeprefix(f"{prefix}."): matrix for name, matrix in matrices.items()}
    _decode_all(changed, inside, dtype)
    with workers(threads) as each:
        _move_on(before, Parts(changed), streams, each)


def pass_block(block: nn.Module, streams: Streams, threads: int | None) -> None:
    """The passes of calibrating a block, without the encoding: an estimate of time measures them.

    Moves both streams on by the block as it is.
    """
    before = _in_dtype(block, streams.call.dtype)
    parts = Parts(before)
    with workers(threads) as each:
        passes = _passes(before, _linears(block), streams)
        for place, groups in enumerate(passes):
            gather(parts, parts, groups, streams, each, last=place == len(passes) - 1)
        _move_on(None if passes else before, parts, streams, each)


def _in_dtype(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The block itself, or a copy whose linear layers are in another type."""
    if dtype == torch.float32:
        return block
    rounded = deepcopy(block)
    for name in _linears(rounded):
        layer = rounded.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight.to(dtype), requires_grad=False)
    return rounded


def _decode_all(
    changed: nn.Module, matrices: Mapping[str, CodedMatrix], dtype: torch.dtype
) -> None:
    """Puts decoded weights into a block's layers, by their names in it."""
    for name, matrix in matrices.items():
        weight = torch.from_numpy(np.asarray(decode(matrix), np.float32)).to(dtype)
        changed.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)


def _linears(block: nn.Module) -> list[str]:
    return [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def _passes(block: nn.Module, names: Sequence[str], streams: Streams) -> list[list[Sequence[str]]]:
    """The groups of layers that every pass of the text is for, in the order of their calls.

    A group reads the same tensor. A pass is for one group, or for one layer of every expert, none
    of which reads what another gives. Layers that the first window does not reach come last.
    """
    if not names:
        return []
    with Taps(Parts(block), names) as taps:
        groups = shared(taps.read(streams.original[0], streams.call))
    known = {name for group in groups for name in group}
    passes: dict[str, list[Sequence[str]]] = {}
    for group in [*groups, *([name] for name in names if name not in known)]:
        projection = projection_of(group[0]) if is_expert(block, group[0]) else None
        passes.setdefault(projection or group[0], []).append(group)
    weighed = streams.importance is not None
    return [part for groups in passes.values() for part in _parts(block, groups, weighed)]


def _parts(
    block: nn.Module, groups: Sequence[Sequence[str]], weighed: bool
) -> list[list[Sequence[str]]]:
    """Groups of one shape in parts whose sums, held twice, are within SUMS_BYTES."""
    layer = block.get_submodule(groups[0][0])
    some = max(1, SUMS_BYTES // (2 * sums_bytes(tuple(layer.weight.shape), weighed)))
    return [list(groups[first : first + some]) for first in range(0, len(groups), some)]


@one_thread()
def _encoded(
    layer: nn.Module, name: str, sums: Sums, plan: Plan, share: Share = alone
) -> CodedMatrix:
    weight = np.ascontiguousarray(layer.weight.detach().float().numpy())
    if sums.inputs is None:  # PLAIN
        return plainly(
            weight,
            plan.formats[name],
            passes=plan.how.passes,
            threads=plan.threads,
            where=name,
            share=share,
        )
    drift = sums.drift
    if sums.moved is not None:
        moved, rows = sums.moved, slices(len(weight), BLOCK)
        drift = np.concatenate(
            in_threads(lambda here: weight[here].astype(np.float64) @ moved, rows, plan.threads)
        )
    few = shrinkage if drift is None else needed
    damping = max(plan.how.damping, few(sums.inputs, sums.tokens))
    return encode_calibrated(
        weight,
        plan.formats[name],
        Moments(inputs=sums.inputs, drift=drift, weighed=sums.weighed),
        how=replace(plan.how, damping=damping),
        threads=plan.threads,
        where=name,
        share=share,
    )


def _move_on(
    block: nn.Module | None,
    changed: Parts,
    streams: Streams,
    each: Each,
) -> None:
    """Replaces the hidden states before the block by those after it, the original's as well unless
    they were (no block); the next block is at hand then."""

    def window(place: int) -> None:
        if block is not None:
            streams.original[place] = run_block(block, streams.original[place], streams.call)
        with changed.window(place):
            now = streams.quantized[place]
            streams.quantized[place] = run_block(changed.block, now, streams.call)

    for _ in each(window, range(len(streams.original))):
        pass
    streams.place += 1


@contextmanager
def workers(threads: int | None) -> Iterator[Each]:
    """Maps a function over windows, results in order; torch runs one thread in every worker."""
    before = torch.get_num_threads()
    count = native.threads(threads)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def each(function: Callable[[int], Any], windows: range) -> Iterator[Any]:
            # Some windows ahead and no more: results hold activations.
            for first in range(0, len(windows), 2 * count):
                yield from pool.map(function, windows[first : first + 2 * count])

        yield each
    torch.set_num_threads(before)
