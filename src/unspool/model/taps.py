"""Taps: the activations that the linear layers of a block read, window by window.

Several threads may run the same block at once, each with a window of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.model.experts import Expert

THROUGH = "<hidden states after the block>"
"""No layer's name."""

Each = Callable[[Callable[[int], Any], range], Iterable[Any]]
"""Maps a function over windows, results in their order."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a block is called with beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    #: what linear layers and attention multiply in; hidden states and norms stay in float32
    dtype: torch.dtype = torch.float32

    @property
    def precision(self) -> torch.autocast:
        """The context that says so to torch."""
        rounded = self.dtype != torch.float32
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded, cache_enabled=False)


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a layer reads, `[..., k]`; of an expert the tokens whose rows they are, ascending."""

    x: torch.Tensor
    tokens: torch.Tensor | None = None


class _ReachedError(Exception):
    """All that was wanted of a run is known."""


class Parts:
    """A block whose parts give again what they gave for a window, once nothing in them changes.

    A part is a child of the block that has linear layers: attention of a Llama, which then runs
    once per window, not with every layer behind it. While the context lasts.
    """

    def __init__(self, block: nn.Module) -> None:
        """Nothing is settled yet."""
        self.block = block
        self._parts = {
            name: [n for n, m in part.named_modules(prefix=name) if isinstance(m, nn.Linear)]
            for name, part in block.named_children()
            if not isinstance(part, nn.Linear)
        }
        self._settled: set[str] = set()
        self._kept: dict[tuple[int, str], Any] = {}
        self._now = threading.local()

    def __enter__(self) -> Parts:
        """Puts this between the block and its parts."""
        for name, layers in self._parts.items():
            part = self.block.get_submodule(name)
            if layers:
                part.forward = partial(self._forward, name, part.forward)
        return self

    def __exit__(self, *exception: object) -> None:
        """Gives the parts their own functions back, and forgets."""
        for name, layers in self._parts.items():
            if layers:
                del self.block.get_submodule(name).forward
        self.forget()

    def forget(self) -> None:
        """Frees what was kept."""
        self._kept.clear()

    def settle(self, changing: Sequence[str]) -> None:
        """Parts without these layers will give the same in all later passes."""
        self._settled = {name for name, of in self._parts.items() if not set(of) & set(changing)}

    @contextmanager
    def window(self, place: int) -> Iterator[None]:
        """This thread runs the block for that window."""
        self._now.place, self._now.given = place, {}
        try:
            yield
        finally:
            self._now.place = None

    def keep(self) -> None:
        """Keeps what settled parts gave in this run: nothing that changes was called before."""
        place = self._now.place
        self._kept |= {(place, name): given for name, given in self._now.given.items()}

    def _forward(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        place = getattr(self._now, "place", None)
        if place is None or name not in self._settled:
            return forward(*args, **kwargs)
        if (place, name) not in self._kept:
            if name in self._now.given:  # called twice in a run: not to be told apart
                self._settled.discard(name)
            self._now.given[name] = forward(*args, **kwargs)
            return self._now.given[name]
        return self._kept[place, name]


class Taps:
    """Hooks on some linear layers of a block that keep what they read, while the context lasts."""

    def __init__(self, parts: Parts, names: Sequence[str], *, through: bool = False) -> None:
        """`names` are the layers' names inside the block; `through`: runs go on to its end."""
        self._parts, self._block = parts, parts.block
        self._names, self._through = tuple(names), through
        self._of_thread = threading.local()
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        """Puts the hooks in place."""
        for name in self._names:
            layer = self._block.get_submodule(name)
            owner = self._block.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, Expert):
                self._handles.append(owner.register_forward_pre_hook(self._hear))
            keep = partial(self._keep, name, isinstance(owner, Expert))
            self._handles.append(layer.register_forward_pre_hook(keep))
        return self

    def __exit__(self, *exception: object) -> None:
        """Removes them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self, hidden: torch.Tensor, call: Call, place: int = 0) -> dict[str, Read]:
        """What each layer reads in the window at a place; ends at the last of them.

        Layers not reached are left out.

        A run `through` the block has its hidden states too, under that name.
        """
        found: dict[str, Read] = {}
        self._of_thread.found = found
        with self._parts.window(place):
            try:
                after = run_block(self._block, hidden, call)
                if self._through:
                    found[THROUGH] = Read(x=after)
            except _ReachedError:
                pass
        self._of_thread.found = None
        return found

    def _hear(self, expert: nn.Module, args: tuple[Any, ...]) -> None:
        self._of_thread.tokens = args[2]

    def _keep(
        self, name: str, of_expert: bool, layer: nn.Module, args: tuple[torch.Tensor, ...]
    ) -> None:
        found = getattr(self._of_thread, "found", None)
        if found is None:
            return
        if not found and not self._through:
            self._parts.keep()  # what is behind may read what this layer gives
        found[name] = Read(x=args[0], tokens=self._of_thread.tokens if of_expert else None)
        if len(found) == len(self._names) and not self._through:
            raise _ReachedError


def shared(read: Mapping[str, Read]) -> list[list[str]]:
    """Layers in the order of their calls, those that read the same tensor together."""
    groups: list[list[str]] = []
    for name, found in read.items():
        same = next((group for group in groups if read[group[0]].x is found.x), None)
        if same is None:
            groups.append([name])
        else:
            same.append(name)
    return groups


def run_block(block: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """The hidden states after a block."""
    with torch.no_grad():
        return block_output(block, hidden, call)


def block_output(block: nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """The same, with gradients where they are enabled."""
    with call.precision:
        out = block(hidden, *call.args, **call.kwargs)
    return (out[0] if isinstance(out, tuple) else out).float()


def without_bias(layer: nn.Module, x: torch.Tensor, call: Call) -> torch.Tensor:
    """What a linear layer makes of a difference of inputs, in the precision of the call."""
    with torch.no_grad(), call.precision:
        return nn.functional.linear(x, layer.weight).float()


def first_call(model: nn.Module, block: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, Call]:
    """The hidden states `[1, tokens, width]` and the other arguments that reach a model's block.

    Nothing behind the block's call is run. Raises ModelError where the block is never called.
    """
    found: list[tuple[torch.Tensor, Call]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        found.append((hidden, Call(args=args[1:], kwargs={**kwargs, "use_cache": False})))
        raise _ReachedError

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad(), suppress(_ReachedError):
            model(ids[None], use_cache=False)
    finally:
        handle.remove()
    if not found:
        raise ModelError("the model never calls its first block", found=type(block).__name__)
    return found[0]


def block_calls(model: nn.Module, names: Sequence[str], ids: torch.Tensor) -> list[Call]:
    """What every block of a model is called with beside the hidden states, in float32.

    Blocks differ in it where some see all tokens and others a window of them, or turn by other
    rotary frequencies (gpt-oss, Gemma 3). None is run: each gives the states before the first.
    """
    blocks, found = [model.get_submodule(name) for name in names], dict[int, Call]()
    before: list[torch.Tensor] = []

    def pass_by(place: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        before.append(args[0] if args else kwargs.pop("hidden_states"))
        found[place] = in_float32(Call(args=args[1:], kwargs={**kwargs, "use_cache": False}))
        if len(found) == len(blocks):
            raise _ReachedError
        return before[0]

    for place, block in enumerate(blocks):
        block.forward = partial(pass_by, place)
    try:
        with torch.no_grad(), suppress(_ReachedError):
            model(ids[None], use_cache=False)
    finally:
        for block in blocks:
            del block.forward
    missed = [name for place, name in enumerate(names) if place not in found]
    if missed:
        raise ModelError("the model never calls a block of its own", where=missed[0])
    return [found[place] for place in range(len(blocks))]


def in_float32(call: Call) -> Call:
    """The call with its floating-point tensors in float32."""

    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.float()
        return tuple(cast(each) for each in value) if isinstance(value, tuple) else value

    kwargs = {k: cast(v) for k, v in call.kwargs.items()}
    return replace(call, args=cast(call.args), kwargs=kwargs)
