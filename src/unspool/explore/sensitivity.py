"""What each group of layers adds to the loss in each format: KL measured on a calibration text.

A loss is measured in context: all other groups stand in the formats of a plan, one group changes.
So the errors of the others, which hide some of its own, are there. How that predicts next to
cheaper measures is in docs/log.md. Sums are float64, windows in their order, each computed by one
thread: the number of threads never changes a figure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from unspool.encode.encode import encode
from unspool.errors import CheckpointError, WeightError
from unspool.evaluate.divergence import kl_divergence
from unspool.evaluate.perplexity import logits_of
from unspool.explore.allocate import Group, Option
from unspool.explore.lines import read
from unspool.matmul.reference import decode
from unspool.model.calibrate import workers
from unspool.model.experts import split_experts
from unspool.model.selection import check_fit
from unspool.model.siblings import TOGETHER
from unspool.spec.catalog import parse
from unspool.spec.format import digest

Formats = Mapping[str, str]
"""The format of every group, by the groups' names."""


class Gauge:
    """A model whose groups of layers stand in formats, rounded plainly; its KL from the original.

    Encoding is cheap beside measuring, so that weights are encoded anew whenever a group changes;
    in memory are the original and one decoded copy of its linear layers, in float32, and the
    original's logits.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], windows: torch.Tensor, threads: int | None
    ) -> None:
        """`model` is changed; `windows` are token ids `[count, tokens]`."""
        self._model, self._windows, self._threads = model.float().eval(), windows, threads
        split_experts(self._model)
        self._groups = {group.name: group for group in groups}
        layers = [layer for group in groups for layer in group.layers]
        self._original = {name: model.get_submodule(name).weight.detach() for name in layers}
        self._now: dict[str, str] = {}
        with workers(threads) as each:
            self._reference = list(each(self._logits, range(len(windows))))

    def kl(self, formats: Formats) -> float:
        """KL from the original in nats per position, to six digits."""
        for name, fmt in formats.items():
            if self._now.get(name) != fmt:
                self._put(name, fmt)
        with workers(self._threads) as each:
            sums = [float(found) for found in each(self._divergence, range(len(self._windows)))]
        return float(f"{sum(sums) / (len(sums) * (self._windows.shape[1] - 1)):.6g}")

    def _put(self, name: str, fmt: str) -> None:
        for layer in self._groups[name].layers:
            weight = np.ascontiguousarray(self._original[layer].numpy())
            decoded = decode(encode(weight, parse(fmt), threads=self._threads, where=layer))
            put = nn.Parameter(torch.from_numpy(np.asarray(decoded, np.float32)), False)
            self._model.get_submodule(layer).weight = put
        self._now[name] = fmt

    def _logits(self, place: int) -> torch.Tensor:
        return logits_of(self._model, self._windows[place])[:-1].float()

    def _divergence(self, place: int) -> torch.Tensor:
        return kl_divergence(self._reference[place], self._logits(place)).sum()


class Measured:
    """Measured figures by context, group and format, kept in a file of lines.

    Lines of other settings stay and are not looked at; a line that a kill cut short is no line.
    """

    def __init__(self, file: Path | None, settings: object) -> None:
        """`settings`: all that a figure depends on beside the formats."""
        self._file, self._settings = file, digest(settings)
        self._known: dict[str, float] = {}
        for line in read(file) if file is not None and file.exists() else ():
            if line.get("settings") == self._settings:
                self._known[str(line["formats"])] = float(line["kl"])

    def kl(self, gauge: Gauge, formats: Formats) -> float:
        """The figure of these formats, measured now or before."""
        key = digest(dict(formats))
        if key not in self._known:
            self._known[key] = gauge.kl(formats)
            self._append({"settings": self._settings, "formats": key, "kl": self._known[key]})
        return self._known[key]

    def _append(self, line: Mapping[str, object]) -> None:
        if self._file is None:
            return
        try:
            with self._file.open("a", encoding="utf-8") as out:
                out.write("\n" + json.dumps(line))  # first the end of a line cut short
        except OSError as error:
            raise CheckpointError(
                "a measurement cannot be stored", where=str(self._file), found=error.strerror
            ) from error


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer and its size `[n, k]`."""

    name: str
    shape: tuple[int, int]


def grouped(layers: Iterable[Layer], formats: Sequence[str]) -> tuple[Group, ...]:
    """Layers that read one activation in one group, and the experts of a block; losses are 0.

    A format that fits not all layers of a group is none of its options. Raises WeightError for a
    group that none fits.
    """
    members: dict[str, list[Layer]] = {}
    for layer in layers:
        members.setdefault(_group_name(layer.name), []).append(layer)
    return tuple(_group(name, found, formats) for name, found in members.items())


def _group(name: str, layers: Sequence[Layer], formats: Sequence[str]) -> Group:
    options, refused = [], None
    for each in formats:
        fmt = parse(each)
        try:
            for layer in layers:
                check_fit(fmt, layer.shape, layer.name)
        except WeightError as error:
            refused = error
            continue
        size = sum(fmt.stored_bits(*layer.shape) // 8 for layer in layers)
        options.append(Option(format=each, bytes=size, loss=0.0))
    if refused is not None and not options:
        raise refused
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
    return Group(
        name=name,
        layers=tuple(layer.name for layer in layers),
        weights=weights,
        shapes=tuple(layer.shape for layer in layers),
        options=tuple(sorted(options, key=lambda option: option.bytes)),
    )


def _group_name(layer: str) -> str:
    parent, _, last = re.sub(r"\bexperts\.\d+", "experts.*", layer).rpartition(".")
    return f"{parent}.{next(('+'.join(names) for names in TOGETHER if last in names), last)}"
