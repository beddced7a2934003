"""Read a checkpoint: everything is checked before anything is allocated, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unspool.checkpoint.manifest import Layer, Manifest, parse
from unspool.errors import CheckpointError
from unspool.model.layout import BUFFERS, STORED_DTYPE, as_arrays, stored_shapes
from unspool.model.shards import CONFIG, StoredTensor, read_folder, read_json
from unspool.pack.matrix import CodedMatrix, coded_matrix

ROWS = 64
"""Rows of tiles whose states are checked at a time."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's manifest and headers; the arrays stay in the files."""

    folder: Path
    config: Mapping[str, Any]
    manifest: Manifest
    tensors: Mapping[str, StoredTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def layer_tensors(self, name: str) -> dict[str, StoredTensor]:
        """The stored tensors of a quantized layer, by buffer name."""
        layer = self.manifest.layers[name]
        return {b: self.tensors[f"{name}.{b}"] for b in stored_shapes(layer.format, *layer.shape)}

    def layer_nbytes(self, name: str) -> int:
        """Stored bytes of a quantized layer's weight."""
        return sum(tensor.nbytes for tensor in self.layer_tensors(name).values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over all quantized layers, padding and overheads included."""
        layers = self.manifest.layers
        weights = sum(layer.shape[0] * layer.shape[1] for layer in layers.values())
        return 8 * sum(self.layer_nbytes(name) for name in layers) / weights


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Reads manifest and headers and compares them; no tensor is read.

    Raises CheckpointError where files are missing, truncated or contradict the manifest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError("no such folder", where=str(folder))
    if not (folder / CONFIG).is_file():
        raise CheckpointError("not a checkpoint", where=str(folder), found=f"no {CONFIG}")
    config = read_json(folder / CONFIG)
    manifest = parse(config.get("quantization_config"), str(folder / CONFIG))
    tensors = read_folder(folder)
    for name, layer in manifest.layers.items():
        _check_layer(name, layer, tensors)
    _check_undeclared(manifest, tensors)
    return Checkpoint(folder=folder, config=config, manifest=manifest, tensors=tensors)


def matrices(checkpoint: Checkpoint) -> Iterator[tuple[str, CodedMatrix]]:
    """Every quantized layer's matrix, mapped from the files, its numbers checked."""
    for name, layer in checkpoint.manifest.layers.items():
        stored = {b: tensor.array() for b, tensor in checkpoint.layer_tensors(name).items()}
        arrays = as_arrays(layer.format, *layer.shape, stored)
        yield name, coded_matrix(layer.format, layer.shape, arrays, name)


def verify(folder: str | Path) -> Checkpoint:
    """`open_checkpoint`, and every scale, table and code checked to be a finite number."""
    checkpoint = open_checkpoint(folder)
    for _ in matrices(checkpoint):
        pass  # each is checked as it is read
    return checkpoint


def _check_layer(name: str, layer: Layer, tensors: Mapping[str, StoredTensor]) -> None:
    """The layer's tensors are there, and are what its format says."""
    for buffer, (dtype, shape) in stored_shapes(layer.format, *layer.shape).items():
        found = tensors.get(f"{name}.{buffer}")
        if found is None:
            raise CheckpointError("a tensor is missing", where=name, found=f"no {name}.{buffer}")
        if (found.dtype, found.shape) != (STORED_DTYPE[dtype], shape):
            raise CheckpointError(
                f"a tensor does not match the format {layer.format.name}",
                where=f"{found.file.name}, {name}.{buffer}",
                found=f"{found.dtype} {list(found.shape)}",
                allowed=f"{STORED_DTYPE[dtype]} {list(shape)}",
            )


def _check_undeclared(manifest: Manifest, tensors: Mapping[str, StoredTensor]) -> None:
    """No coded tensor without a declaration, no dense weight beside a coded one."""
    buffers = set(BUFFERS.values())
    for full in tensors:
        name, _, part = full.rpartition(".")
        layer = manifest.layers.get(name)
        known = layer is not None and part in stored_shapes(layer.format, *layer.shape)
        if (part in buffers and not known) or (layer is not None and part == "weight"):
            raise CheckpointError(
                "a tensor is not declared", where=tensors[full].file.name, found=full
            )
