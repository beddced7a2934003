"""The blocks of a model: in memory as they are, or read from safetensors one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unspool.errors import ModelError
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
    """The blocks of a model in memory."""
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
        """`model` has its parameters on the meta device, and keeps them there."""
        self._model, self._tensors = model, read_folder(folder, ModelError)

    def blocks(self) -> Blocks:
        """The model's blocks, each read from the folder when its turn comes."""
        names = block_names(self._model)

        def read(place: int) -> nn.Module:
            block = deepcopy(self._model.get_submodule(names[place]))
            self._fill(block, names[place])
            return block.float().eval()

        return Blocks(names=names, read=read)

    @contextmanager
    def without_blocks(self) -> Iterator[nn.Module]:
        """The model with all weights but those of its blocks."""
        names = block_names(self._model)
        outside = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if not name.startswith(tuple(f"{block}." for block in names))
        }
        try:
            for name in outside:
                self._put(self._model, name, name, required=False)
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

    def _fill(self, block: nn.Module, prefix: str) -> None:
        for name, _ in list(block.named_parameters()):
            self._put(block, name, f"{prefix}.{name}", required=True)

    def _put(self, module: nn.Module, name: str, stored: str, *, required: bool) -> None:
        if stored in self._tensors:
            _set(module, name, nn.Parameter(_read(self._tensors, stored), requires_grad=False))
        elif required:
            raise ModelError(
                "a tensor is not stored under its own name; such a model cannot be calibrated yet",
                where=stored,
                allowed="models whose experts are not fused",
            )


def _read(tensors: Mapping[str, object], name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(tensors[name].file, framework="pt") as shard:  # type: ignore[attr-defined]
        found: torch.Tensor = shard.get_tensor(name)
    return found


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, parameter)
