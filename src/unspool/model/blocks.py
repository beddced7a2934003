"""The blocks of a model: in memory as they are, or read from safetensors one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.model.experts import split_experts
from unspool.model.load import sources
from unspool.model.shards import read_folder


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The transformer blocks of a model.

    names   their names inside the model, in order
    read    a block by its place, on the CPU in float32, the caller's to change
    """

    names: tuple[str, ...]
    read: Callable[[int], nn.Module]


def blocks_of(model: nn.Module) -> Blocks:
    """The blocks of a model in memory, their experts as they are, split or not."""
    names = block_names(model)

    def read(place: int) -> nn.Module:
        return deepcopy(model.get_submodule(names[place])).float().eval()

    return Blocks(names=names, read=read)


def block_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the blocks: the longest list of modules of one kind that hold linear layers.

    Raises ModelError where there is none.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len({type(each) for each in module}) == 1
        and any(isinstance(part, nn.Linear) for part in module[0].modules())
    }
    outer = {n: m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)}
    if not outer:
        raise ModelError("no list of blocks to calibrate one by one", found=type(model).__name__)
    name = max(outer, key=lambda each: len(outer[each]))
    return tuple(f"{name}.{place}" for place in range(len(outer[name])))


class Stored:
    """A model's tensors in its folder, put into modules of the model when they are asked for."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        """`model` has its parameters on the meta device and its experts fused; both stays so."""
        self._model, self._tensors = model, read_folder(folder, ModelError)
        self._sources = sources(model, self._tensors)

    def blocks(self) -> Blocks:
        """The model's blocks, each read from the folder when its turn comes, its experts split."""
        names = block_names(self._model)

        def read(place: int) -> nn.Module:
            block = deepcopy(self._model.get_submodule(names[place]))
            self._put(block, f"{names[place]}.", required=True)
            block = block.float().eval()
            split_experts(block)
            return block

        return Blocks(names=names, read=read)

    def names_of(self, parameters: Collection[str]) -> set[str]:
        """The stored tensors that some parameters are made of.

        Raises ModelError for one that others are made of as well.
        """
        found: set[str] = set()
        for name in parameters:
            source = self._sources[name]
            others = set(source.parameters) - set(parameters)
            if others:
                raise ModelError(
                    "a stored tensor holds a layer's weight and others",
                    where=source.names[0],
                    found=sorted(others),
                    allowed="all of them quantized, or none",
                )
            found |= set(source.names)
        return found

    @contextmanager
    def without_blocks(self) -> Iterator[nn.Module]:
        """The model with all weights but those of its blocks."""
        inside = tuple(f"{block}." for block in block_names(self._model))
        outside = {n: p for n, p in self._model.named_parameters() if not n.startswith(inside)}
        try:
            self._put(self._model, "", required=False, skip=inside)
            self._tie()
            yield self._model
        finally:
            for name, parameter in outside.items():
                _set(self._model, name, parameter)

    def _tie(self) -> None:
        """Gives a head that is not stored the embedding's weight where the model ties the two."""
        head = self._model.get_output_embeddings()
        tied = self._model.config.get_text_config().tie_word_embeddings
        if tied and head is not None and head.weight.is_meta:
            head.weight = self._model.get_input_embeddings().weight

    def _put(
        self, module: nn.Module, prefix: str, *, required: bool, skip: tuple[str, ...] = ()
    ) -> None:
        """Reads a module's parameters, and its buffers that are stored; `prefix` is what their
        names begin with in the model."""
        parameters = [n for n, _ in module.named_parameters() if not n.startswith(skip)]
        buffers = {n for n, _ in module.named_buffers() if prefix + n in self._sources}
        missing = [*parameters, *(n for n in buffers if not n.startswith(skip))]
        while missing:
            name = missing[0]
            source = self._sources.get(prefix + name)
            if source is None and required:
                raise ModelError("a tensor is not stored", where=prefix + name)
            made = {} if source is None else source.make(partial(_read, self._tensors))
            for own, tensor in ((full.removeprefix(prefix), each) for full, each in made.items()):
                if own in missing:
                    kept = tensor if own in buffers else nn.Parameter(tensor, requires_grad=False)
                    _set(module, own, kept)
            missing = [n for n in missing if n != name and prefix + n not in made]


def _read(tensors: Mapping[str, object], name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(tensors[name].file, framework="pt") as shard:  # type: ignore[attr-defined]
        found: torch.Tensor = shard.get_tensor(name)
    return found


def _set(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, tensor)
