"""The manifest: what `quantization_config` in a checkpoint's config.json says.

    quant_method     "unspool"
    format_version   1
    version          the release of unspool that wrote it
    formats          {name: the full declaration, with its content hash}
    layers           {module: {format: name, shape: [n, k]}}

The declarations are complete: a checkpoint explains itself without any catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import unspool
from unspool.errors import CheckpointError, DeclarationError
from unspool.model.load import QUANT_METHOD
from unspool.spec.format import Format

FORMAT_VERSION = 1

SIZE_LIMIT = 1 << 31
"""Rows or columns of a weight; far above any, far below an overflow of 64-bit sizes."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One quantized layer: its format and the size of its weight before padding."""

    format: Format
    #: (n, k)
    shape: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The quantized layers of a checkpoint, by module name."""

    layers: Mapping[str, Layer]
    #: the release that wrote it
    version: str = unspool.__version__

    @property
    def formats(self) -> dict[str, Format]:
        """Every format in use, by name, sorted."""
        found = {layer.format.name: layer.format for layer in self.layers.values()}
        return dict(sorted(found.items()))

    def to_json(self) -> dict[str, Any]:
        """The `quantization_config`; `parse` turns it back."""
        return {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            "version": self.version,
            "formats": {
                name: {**fmt.to_json(), "content_hash": fmt.content_hash}
                for name, fmt in self.formats.items()
            },
            "layers": {
                name: {"format": layer.format.name, "shape": list(layer.shape)}
                for name, layer in self.layers.items()
            },
        }


def parse(data: object, where: str = "quantization_config") -> Manifest:
    """The manifest that `to_json` wrote; raises CheckpointError on anything else."""
    if not isinstance(data, dict) or data.get("quant_method") != QUANT_METHOD:
        method = data.get("quant_method") if isinstance(data, dict) else None
        raise CheckpointError(
            "not quantized by unspool", where=where, found=f"quant_method {method}"
        )
    _check_version(data, where)
    formats, layers = data.get("formats"), data.get("layers")
    if not isinstance(formats, dict) or not isinstance(layers, dict) or not layers:
        raise CheckpointError("no formats or no layers", where=where)
    declared = {name: _format(name, entry, where) for name, entry in formats.items()}
    return Manifest(
        layers={name: _layer(name, entry, declared, where) for name, entry in layers.items()},
        version=str(data.get("version", "")),
    )


def of_model(model: Any) -> Manifest:
    """The manifest of a model in memory; raises CheckpointError if no layer is quantized."""
    from unspool.model.linear import QuantizedLinear

    layers = {
        name: Layer(format=module.format, shape=(module.out_features, module.in_features))
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    if not layers:
        raise CheckpointError("the model has no quantized layer", found=type(model).__name__)
    _check_names(layers)
    return Manifest(layers=layers)


def _check_version(data: Mapping[str, Any], where: str) -> None:
    found, writer = data.get("format_version"), data.get("version", "unknown")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise CheckpointError("no format_version", where=where, found=found, allowed=FORMAT_VERSION)
    if found > FORMAT_VERSION:
        raise CheckpointError(
            f"written in a newer format; unspool {writer} or later reads it "
            f"(this is {unspool.__version__})",
            where=where,
            found=f"format_version {found}",
            allowed=f"up to {FORMAT_VERSION}",
        )


def _format(name: str, entry: object, where: str) -> Format:
    inside = f"{where}, format {name}"
    if not isinstance(entry, dict):
        raise CheckpointError("not a declaration", where=inside)
    try:
        fmt = Format.from_json(entry)
    except (DeclarationError, ArithmeticError, LookupError, RecursionError) as error:
        raise CheckpointError("a format cannot exist", where=inside, found=str(error)) from error
    if fmt.name != name:
        raise CheckpointError("a format has two names", where=inside, found=fmt.name)
    if fmt.content_hash != entry.get("content_hash"):
        raise CheckpointError(
            "a declaration does not match its content hash",
            where=inside,
            found=entry.get("content_hash"),
            allowed=fmt.content_hash,
        )
    return fmt


def _layer(name: str, entry: object, formats: Mapping[str, Format], where: str) -> Layer:
    inside = f"{where}, layer {name}"
    if not isinstance(entry, dict):
        raise CheckpointError("not a layer", where=inside, found=entry)
    fmt, shape = entry.get("format"), entry.get("shape")
    if not isinstance(fmt, str) or fmt not in formats:
        raise CheckpointError("no such format", where=inside, found=fmt, allowed=formats)
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(s) is int for s in shape)
    if not isinstance(shape, list) or not whole or not all(0 < s < SIZE_LIMIT for s in shape):
        raise CheckpointError("not a shape", where=inside, found=shape, allowed="[n, k]")
    return Layer(format=formats[fmt], shape=(shape[0], shape[1]))


def _check_names(layers: Mapping[str, Layer]) -> None:
    """One name stands for one declaration within a checkpoint."""
    hashes: dict[str, str] = {}
    for layer in layers.values():
        known = hashes.setdefault(layer.format.name, layer.format.content_hash)
        if known != layer.format.content_hash:
            raise CheckpointError("two formats share a name", found=layer.format.name)
