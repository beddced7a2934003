"""Calibration: block by block, what the layers of a model read, and their calibrated encoding.

Two streams of hidden states walk through the model, one window of text at a time: that of the
original and that of the model as quantized so far. In every block the layers are met in the order
of their calls, those that read the same activation together: their second moments come from the
quantized stream, what they should have given from the original. Only the block at hand has weights
in memory.

Sums are float64, each window's product float32, windows added in their order. Threads take whole
windows, each computed by one thread, so that their number never changes a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from unspool import native
from unspool.encode.ldlq import Calibration, encode_calibrated
from unspool.encode.moments import Moments
from unspool.errors import ModelError
from unspool.matmul.reference import decode
from unspool.model.taps import Call, Taps, first_call, run_block, shared
from unspool.pack.matrix import CodedMatrix
from unspool.spec.format import Format

RESIDUAL = {"self_attn.o_proj": "", "mlp.down_proj": "post_attention_layernorm"}
"""Layers whose output is added to the residual stream, and the module inside the block that reads
the stream before ("": the block itself). Their outputs make good for what the stream has drifted:
KL .0544 to .0513 for t2-e2m1 on the bundled model."""

NOT_RESIDUAL = "pre_feedforward_layernorm"
"""Blocks with this module normalise outputs before they add them."""


@dataclass(kw_only=True)
class Streams:
    """Hidden states `[1, tokens, width]` per window, before the block at hand.

    original    those of the original model
    quantized   those of the model as quantized so far
    call        what every block is called with beside them
    """

    original: list[torch.Tensor]
    quantized: list[torch.Tensor]
    call: Call


@dataclass(kw_only=True)
class _Sums:
    """What is summed over windows for the layers that read one activation."""

    inputs: Any = 0.0
    moved: Any = 0.0
    behind: Any = 0.0
    tokens: int = 0

    def add(self, found: _Found) -> None:
        self.inputs = self.inputs + found.inputs.astype(np.float64)
        if found.moved is not None:
            self.moved = self.moved + found.moved.astype(np.float64)
        if found.behind is not None:
            self.behind = self.behind + found.behind.astype(np.float64)
        self.tokens += found.tokens


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Of one window: x x^T, (x of the original - x) x^T, (residual of the original - residual) x^T;
    None where the original has no such token or there is no residual."""

    inputs: np.ndarray
    moved: np.ndarray | None
    behind: np.ndarray | None
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A layer's coded matrix and the tokens that it was calibrated on."""

    name: str
    matrix: CodedMatrix
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to quantize and how: formats by the layer's name inside the model."""

    formats: Mapping[str, Format]
    how: Calibration = field(default_factory=Calibration)
    threads: int | None = None


def both_streams(model: nn.Module, block: nn.Module, windows: torch.Tensor) -> Streams:
    """Both streams before the first block, for windows of token ids `[count, tokens]`."""
    calls = [first_call(model, block, ids) for ids in windows]
    hidden = [states.float() for states, _ in calls]
    return Streams(original=hidden, quantized=list(hidden), call=_in_float32(calls[0][1]))


def calibrate_block(
    block: nn.Module, prefix: str, streams: Streams, plan: Plan
) -> Iterator[Calibrated]:
    """Encodes a block's layers, each after those before it, and moves the streams on.

    `block` is the original in float32 and stays as it is. Raises ModelError for a layer that no
    token of the text reaches.
    """
    names = [name for name in _linears(block) if f"{prefix}.{name}" in plan.formats]
    changed = deepcopy(block)
    with workers(plan.threads) as each:
        for group in _groups(block, names, streams):
            sums = _sums(block, changed, group, streams, each)
            for name in group:
                layer = f"{prefix}.{name}"
                matrix = _encoded(block.get_submodule(name), layer, sums[name], plan)
                _decoded_into(changed.get_submodule(name), matrix)
                yield Calibrated(name=layer, matrix=matrix, tokens=sums[name].tokens)
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
    each: Callable[[Callable[[int], Any], int], Iterable[Any]],
) -> dict[str, _Sums]:
    """The moments of a group over all windows; where layers share an activation, one object."""
    first = group[0]
    beside = _residual(block, first) if len(group) == 1 else None
    names = [first] if not beside else [first, beside]

    def window(place: int) -> _Found | None:
        before, now = streams.original[place], streams.quantized[place]
        new, old = taps.read(now, streams.call), originals.read(before, streams.call)
        if first not in new:
            return None
        x = _rows(new[first])
        inputs = (x.T @ x).numpy()
        if first not in old or old[first].numel() != x.numel():
            # Another choice of experts: no token for token.
            return _Found(inputs=inputs, moved=None, behind=None, tokens=len(x))
        moved = ((_rows(old[first]) - x).T @ x).numpy()
        behind = None
        if beside is not None:
            then, here = (before, now) if not beside else (old[beside], new[beside])
            behind = (_rows(then - here).T @ x).numpy()
        return _Found(inputs=inputs, moved=moved, behind=behind, tokens=len(x))

    total = _Sums()
    with Taps(changed, names) as taps, Taps(block, names) as originals:
        for found in each(window, len(streams.original)):
            if found is not None:
                total.add(found)
    return dict.fromkeys(group, total)


def _residual(block: nn.Module, name: str) -> str | None:
    """The module that reads the residual stream which a layer adds to; None for other layers."""
    beside = RESIDUAL.get(name)
    if beside is None or hasattr(block, NOT_RESIDUAL):
        return None
    return beside if not beside or hasattr(block, beside) else None


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _encoded(layer: nn.Module, name: str, sums: _Sums, plan: Plan) -> CodedMatrix:
    if not sums.tokens:
        raise ModelError(
            "no token of the calibration text reaches this layer",
            where=name,
            allowed="a longer text, or --exclude",
        )
    weight = layer.weight.detach().float().numpy()
    drift = weight.astype(np.float64) @ sums.moved if np.ndim(sums.moved) else None
    if drift is not None and np.ndim(sums.behind):
        drift = drift + sums.behind
    return encode_calibrated(
        weight,
        plan.formats[name],
        Moments(inputs=sums.inputs, drift=drift),
        how=plan.how,
        threads=plan.threads,
        where=name,
    )


def _move_on(
    block: nn.Module,
    changed: nn.Module,
    streams: Streams,
    each: Callable[[Callable[[int], Any], int], Iterable[Any]],
) -> None:
    """Replaces the hidden states before the block by those after it."""

    def window(place: int) -> tuple[torch.Tensor, torch.Tensor]:
        after = run_block(block, streams.original[place], streams.call)
        return after, run_block(changed, streams.quantized[place], streams.call)

    for place, (original, quantized) in enumerate(each(window, len(streams.original))):
        streams.original[place], streams.quantized[place] = original, quantized


@contextmanager
def workers(
    threads: int | None,
) -> Iterator[Callable[[Callable[[int], Any], int], Iterable[Any]]]:
    """Maps a function over windows, results in order; torch runs one thread in every worker."""
    before = torch.get_num_threads()
    count = native.threads(threads)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def each(function: Callable[[int], Any], windows: int) -> Iterator[Any]:
            # Some windows ahead and no more: every result holds k x k sums.
            for first in range(0, windows, 2 * count):
                yield from pool.map(function, range(first, min(first + 2 * count, windows)))

        yield each
    torch.set_num_threads(before)


def _in_float32(call: Call) -> Call:
    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.float()
        return tuple(cast(each) for each in value) if isinstance(value, tuple) else value

    return Call(args=cast(call.args), kwargs={k: cast(v) for k, v in call.kwargs.items()})
