"""`unspool inspect`: what a checkpoint holds, and whether it is what it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspool.cli.bundled import ModelPath, resolve
from unspool.cli.layer_rows import rows_of
from unspool.cli.terminal import AsJson, byte_count, print_json, print_table

if TYPE_CHECKING:
    from unspool.checkpoint.read import Checkpoint

CHECKS = (
    "the manifest parses; its declarations match their content hashes",
    "tensors cover their files without gap or overlap; no file is truncated",
    "every declared tensor is there in its declared type and shape; none is undeclared",
    "all scales and tables are finite",
    "no code stands for NaN or infinity",
)
"""What `checkpoint.read.verify` has checked when it returns."""

LAYER_COLUMNS = ("layer", "format", "n x k", "bits/weight", "bytes")
TYPE_COLUMNS = ("type", "tensors", "bytes")


def inspect(path: ModelPath, json: AsJson = False) -> None:
    """Show what a checkpoint holds: formats, layers, bytes, versions; verify all of it."""
    from unspool.model.load import check_folder, is_checkpoint, locate

    folder = locate(resolve(path))
    config = check_folder(folder)
    found = _checkpoint(folder) if is_checkpoint(config) else _model(folder, config)
    found = {"path": path, "model_type": config["model_type"], **found}
    if json:
        print_json(found)
    else:
        _show(found)


def _checkpoint(folder: Path) -> dict[str, Any]:
    """Everything about a checkpoint; raises CheckpointError where a check fails."""
    from unspool.checkpoint.read import verify

    checkpoint = verify(folder)
    manifest = checkpoint.manifest
    layers = [_layer(checkpoint, name) for name in manifest.layers]
    return {
        "quantized": True,
        "format_version": checkpoint.config["quantization_config"]["format_version"],
        "version": manifest.version,
        "formats": {
            name: {
                "content_hash": fmt.content_hash,
                "operand": fmt.code.operand.name,
                "layers": sum(layer["format"] == name for layer in layers),
            }
            for name, fmt in manifest.formats.items()
        },
        "layers": layers,
        "weights": sum(layer["weights"] for layer in layers),
        "bytes": sum(layer["bytes"] for layer in layers),
        "bits_per_weight": checkpoint.bits_per_weight,
        "model_bytes": checkpoint.nbytes,
        "types": _types((t.dtype, t.nbytes) for t in checkpoint.tensors.values()),
        "verified": list(CHECKS),
    }


def _layer(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    layer, stored = checkpoint.manifest.layers[name], checkpoint.layer_nbytes(name)
    weights = layer.shape[0] * layer.shape[1]
    return {
        "name": name,
        "format": layer.format.name,
        "shape": layer.shape,
        "weights": weights,
        "bits_per_weight": 8 * stored / weights,
        "bytes": stored,
    }


def _model(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What can be said of a model that is no checkpoint of ours."""
    from unspool.errors import ModelError
    from unspool.model.shards import read_folder

    tensors = read_folder(folder, ModelError).values()
    declared = config.get("quantization_config") or {}
    return {
        "quantized": False,
        "quant_method": declared.get("quant_method"),
        "model_bytes": sum(tensor.nbytes for tensor in tensors),
        "types": _types((tensor.dtype, tensor.nbytes) for tensor in tensors),
        "verified": [CHECKS[1]],
    }


def _types(tensors: Any) -> dict[str, dict[str, int]]:
    counts, sizes = Counter[str](), Counter[str]()
    for kind, size in tensors:
        counts[kind] += 1
        sizes[kind] += size
    return {kind: {"tensors": counts[kind], "bytes": sizes[kind]} for kind in sorted(counts)}


def _show(found: dict[str, Any]) -> None:
    if found["quantized"]:
        rows = [_cells(layer) for layer in rows_of(found["layers"])]
        print_table(f"{found['path']}: quantized layers", LAYER_COLUMNS, rows, left=3)
    types = [(kind, str(t["tensors"]), f"{t['bytes']:,}") for kind, t in found["types"].items()]
    print_table("Tensors", TYPE_COLUMNS, types)
    print(f"{found['model_type']} model, {byte_count(found['model_bytes'])} of tensors")
    if found["quantized"]:
        print(
            f"quantized by unspool {found['version']} (format version {found['format_version']}): "
            f"{len(found['layers'])} layers, {found['bits_per_weight']:.4f} bits per weight, "
            f"{byte_count(found['bytes'])}"
        )
        for name, fmt in found["formats"].items():
            print(f"  {name}: {fmt['layers']} layers, {fmt['operand']}, hash {fmt['content_hash']}")
    else:
        print("not quantized by unspool")
    for check in found["verified"]:
        print(f"verified: {check}")


def _cells(layer: dict[str, Any]) -> tuple[str, ...]:
    shape = " x ".join(str(size) for size in layer["shape"])
    bits = f"{layer['bits_per_weight']:.4f}"
    return layer["name"], layer["format"], shape, bits, f"{layer['bytes']:,}"
