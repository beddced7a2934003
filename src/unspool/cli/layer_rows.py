"""Layers as tables show them: what a projection has of every expert, in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unspool.model.expert_names import projection_of


def rows_of(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers by name, format, shape, weights, bytes (and relative error); experts of a projection
    in one format are a row of shape [experts, n, k], bytes summed and errors averaged."""
    rows: dict[tuple[str, str, tuple[int, ...]], list[Mapping[str, Any]]] = {}
    for layer in layers:
        name = projection_of(layer["name"]) or layer["name"]
        rows.setdefault((name, layer["format"], tuple(layer["shape"])), []).append(layer)
    return [_row(name, fmt, shape, found) for (name, fmt, shape), found in rows.items()]


def _row(
    name: str, fmt: str, shape: tuple[int, ...], layers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    many = name != layers[0]["name"]
    weights = sum(layer["weights"] for layer in layers)
    size = sum(layer["bytes"] for layer in layers)
    errors = [layer.get("relative_error") for layer in layers]
    known = [error for error in errors if error is not None]
    return {
        "name": name,
        "format": fmt,
        "shape": (len(layers), *shape) if many else shape,
        "bits_per_weight": 8 * size / weights,
        "bytes": size,
        "relative_error": sum(known) / len(known) if known else None,
    }
