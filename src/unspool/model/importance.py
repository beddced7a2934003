"""Importance: how much the model's loss notices an error in a layer's output, token by token.

The squared norm of the loss's gradient at the output weighs a token's part in the second moments,
H = sum of g x x^T: a Fisher matrix, diagonal in tokens and alike for all outputs (GuidedQuant, Kim
et al. 2025, with one group). The loss is the original model's next-token cross-entropy. Its
gradients are exact with one block's weights in memory at a time: the hidden states before every
block are kept for a chunk of windows, and the backward sweep runs each block again from them.

Every window is computed by one thread and every chunk by one process, from the token ids on, so
that the number of neither changes a byte, and a finished chunk can be kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from unspool.errors import ModelError
from unspool.model.blocks import Blocks
from unspool.model.experts import Expert
from unspool.model.processes import ALONE, Processes
from unspool.model.taps import Call, Each, block_calls, first_call, run_block

if TYPE_CHECKING:
    from jaxtyping import Float32, Int32

Norms = Mapping[str, "Float32[np.ndarray, 'rows'] | Int32[np.ndarray, 'rows']"]
"""Of one window: squared norms by the layer's name, one for every row that the layer reads; and by
an expert's name, with TOKENS, whose rows they are, ascending."""

TOKENS = ".tokens"


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Squared norms of gradients.

    windows  those of this process's windows
    means    over the windows of all processes, by layer
    """

    windows: Sequence[Norms]
    means: Mapping[str, float]

    @classmethod
    def of(cls, found: Sequence[Norms], mine: Sequence[int]) -> Importance:
        """From the norms of all windows, for a process that has some of them.

        Raises ModelError for a gradient that is not finite.
        """
        of_layer: dict[str, list[np.ndarray]] = {}
        for window in found:
            for name, norms in window.items():
                if not name.endswith(TOKENS):
                    of_layer.setdefault(name, []).append(norms)
        means = {n: float(np.concatenate(all_).mean(dtype=float)) for n, all_ in of_layer.items()}
        broken = [name for name, mean in means.items() if not np.isfinite(mean)]
        if broken:
            raise ModelError("gradients on the calibration text are not finite", where=broken[0])
        return cls(windows=[found[place] for place in mine], means=means)

    def roots(
        self,
        place: int,
        layers: Sequence[str],
        rows: int,
        tokens: Int32[np.ndarray, "rows"] | None = None,
    ) -> Float32[np.ndarray, "rows 1"]:
        """What the rows that layers read together in a window are multiplied with.

        The square root of the layers' sum, which has mean 1 over all windows; 1 where the loss
        notices none at all, and for rows that the original has not (another choice of experts).
        `tokens`: whose rows an expert's are.
        """
        window, mean = self.windows[place], sum(self.means.get(name, 0.0) for name in layers)
        at = _rows_of(window, layers[0], rows, tokens)
        known = at >= 0
        if mean == 0 or not known.any() or any(name not in window for name in layers):
            return np.ones((rows, 1), np.float32)
        total = np.stack([window[name] for name in layers]).sum(axis=0, dtype=np.float64)
        found = np.where(known, total[at] / mean, 1)
        return np.sqrt(found).astype(np.float32)[:, None]


def _rows_of(
    window: Norms, layer: str, rows: int, tokens: np.ndarray | None
) -> Int32[np.ndarray, "rows"]:
    """Which of the original's rows every row is; -1 for none."""
    none, every = np.full(rows, -1), np.arange(rows)
    if tokens is None:
        return every if len(window.get(layer, ())) == rows else none
    known = window.get(layer.rpartition(".")[0] + TOKENS)
    if known is None:
        return none
    at = np.minimum(np.searchsorted(known, tokens), len(known) - 1)
    return np.where(known[at] == tokens, at, -1)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Finished chunks of an earlier run by their place; `put` stores one, of those windows."""

    get: Callable[[int], list[Norms] | None] = lambda chunk: None
    put: Callable[[int, range, list[Norms]], None] = lambda chunk, part, found: None


NOTHING = Kept()


def gradients(
    model: nn.Module,
    blocks: Blocks,
    windows: torch.Tensor,
    parts: Sequence[range],
    each: Each,
    *,
    kept: Kept = NOTHING,
    processes: Processes = ALONE,
) -> list[Norms]:
    """The squared norms at every linear layer of the blocks, for every window, everywhere.

    `model` needs the weights outside the blocks; `windows` are token ids `[count, tokens]`, `parts`
    the places of every chunk's, in order. Of several processes the first alone keeps chunks.
    """
    chunks = [chunk for chunk, part in enumerate(parts) if len(part)]
    done = processes.told(lambda: {chunk: kept.get(chunk) for chunk in chunks})
    missing = [chunk for chunk in chunks if done[chunk] is None]
    for first in range(0, len(missing), processes.count):
        together = missing[first : first + processes.count]

        def work(turn: int, together: list[int] = together) -> list[Norms]:
            return _of_chunk(model, blocks, windows[list(parts[together[turn]])], each)

        for chunk, found in zip(together, processes.share(work, len(together)), strict=True):
            done[chunk] = found
            processes.told(partial(kept.put, chunk, parts[chunk], found))
    return [norms for chunk in chunks for norms in done[chunk] or ()]


def _of_chunk(model: nn.Module, blocks: Blocks, windows: torch.Tensor, each: Each) -> list[Norms]:
    """Forward through all blocks, hidden states kept; then backward through them."""
    first, places = model.get_submodule(blocks.names[0]), range(len(windows))
    hidden = [first_call(model, first, ids)[0].float() for ids in windows]
    calls = block_calls(model, blocks.names, windows[0])
    before = []
    for place in range(len(blocks.names)):
        before.append(hidden)
        hidden = forward(blocks.read(place), hidden, calls[place], each)
    with Tail(model, blocks.names) as tail:
        later = list(each(lambda i: tail.gradient(hidden[i], windows[i]), places))
    found: list[dict[str, np.ndarray]] = [{} for _ in places]
    for place, prefix in reversed(list(enumerate(blocks.names))):
        norms = backward(blocks.read(place), before.pop(), calls[place], later, each)
        for window, of_layers in zip(found, norms, strict=True):
            window |= {f"{prefix}.{name}": of_layer for name, of_layer in of_layers.items()}
    return list(found)


def forward(
    block: nn.Module, hidden: Sequence[torch.Tensor], call: Call, each: Each
) -> list[torch.Tensor]:
    """The hidden states of some windows after a block."""
    return list(each(lambda i: run_block(block, hidden[i], call), range(len(hidden))))


def backward(
    block: nn.Module,
    hidden: Sequence[torch.Tensor],
    call: Call,
    later: list[torch.Tensor],
    each: Each,
) -> list[Norms]:
    """The squared norms at a block's layers for some windows, by their names inside the block.

    `hidden` are the states before the block; `later`, the gradients after it, become those before.
    """
    found = []
    with Outputs(block) as outputs:
        back = each(lambda i: outputs.back(hidden[i], call, later[i]), range(len(hidden)))
        for i, (gradient, norms) in enumerate(back):
            later[i] = gradient
            found.append(norms)
    return found


class Outputs:
    """Hooks on a block's linear layers that keep what they give, while the context lasts."""

    def __init__(self, block: nn.Module) -> None:
        """The block is the caller's own; its parameters need no gradients from now on."""
        self._block, self._of_thread = block.requires_grad_(False), threading.local()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Outputs:
        """Puts the hooks in place."""
        for name, module in self._block.named_modules():
            if isinstance(module, nn.Linear):
                self._handles.append(module.register_forward_hook(partial(self._keep, name)))
            elif isinstance(module, Expert):
                self._handles.append(module.register_forward_pre_hook(partial(self._hear, name)))
        return self

    def __exit__(self, *exception: object) -> None:
        """Removes them."""
        for handle in self._handles:
            handle.remove()

    def back(
        self, hidden: torch.Tensor, call: Call, later: torch.Tensor
    ) -> tuple[torch.Tensor, Norms]:
        """The gradient at the block's input, from the one at its output, and the squared norms at
        the outputs of the layers that the window reaches."""
        found: dict[str, torch.Tensor] = {}
        tokens: dict[str, np.ndarray] = {}
        self._of_thread.found, self._of_thread.tokens = found, tokens
        with torch.enable_grad():
            start = hidden.detach().requires_grad_()
            out = self._block(start, *call.args, **call.kwargs)
        self._of_thread.found = None
        out = out[0] if isinstance(out, tuple) else out
        first, *others = torch.autograd.grad(
            out, [start, *found.values()], later, allow_unused=True, materialize_grads=True
        )
        norms = {
            name: gradient.reshape(-1, gradient.shape[-1]).square().sum(-1).numpy()
            for name, gradient in zip(found, others, strict=True)
        }
        return first, norms | tokens

    def _hear(self, name: str, expert: nn.Module, args: tuple[Any, ...]) -> None:
        if getattr(self._of_thread, "found", None) is not None:
            self._of_thread.tokens[name + TOKENS] = args[2].numpy().astype(np.int32)

    def _keep(self, name: str, layer: nn.Module, args: object, out: torch.Tensor) -> None:
        found = getattr(self._of_thread, "found", None)
        if found is not None:
            found[name] = out


class Tail:
    """What a model does after its blocks, in float32, while the context lasts."""

    def __init__(self, model: nn.Module, blocks: Sequence[str]) -> None:
        """`blocks` are the names of the model's blocks, which are not run.

        Raises ModelError where a weight outside them is not there.
        """
        self._model, self._of_thread = model, threading.local()
        self._blocks = [model.get_submodule(name) for name in blocks]
        inside = {id(p) for block in self._blocks for p in block.parameters()}
        outside = {n: p for n, p in model.named_parameters() if id(p) not in inside}
        empty = [name for name, parameter in outside.items() if parameter.is_meta]
        if empty:
            raise ModelError("a tensor that the loss needs is not stored", where=empty[0])
        self._outside = list(outside.values())
        self._stored: list[torch.Tensor] = []

    def __enter__(self) -> Tail:
        """Lets every block give the hidden states of the thread."""
        self._stored = [p.data for p in self._outside]
        for parameter in self._outside:
            parameter.data = parameter.data.float()
        for block in self._blocks:
            block.forward = lambda *args, **kwargs: self._of_thread.hidden
        return self

    def __exit__(self, *exception: object) -> None:
        """Puts weights and blocks back."""
        for parameter, data in zip(self._outside, self._stored, strict=True):
            parameter.data = data
        for block in self._blocks:
            del block.forward

    def gradient(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The gradient of the cross-entropy of a window's next tokens at its last hidden states,
        `[1, tokens, width]` both."""
        with torch.enable_grad():
            start = self._of_thread.hidden = hidden.detach().requires_grad_()
            logits = self._model(ids[None], use_cache=False).logits
            loss = nn.functional.cross_entropy(
                logits.reshape(len(ids), -1)[:-1].float(), ids[1:], reduction="sum"
            )
        self._of_thread.hidden = None
        (gradient,) = torch.autograd.grad(loss, start)
        return gradient
