"""Names of the layers of experts, `model.layers.3.mlp.experts.7.down_proj`; needs no torch."""

from __future__ import annotations

import re

_EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.([^.]+)")


def expert_of(layer: str) -> str | None:
    """The expert that a layer belongs to, by their names; None for other layers."""
    found = _EXPERT.fullmatch(layer)
    return f"{found[1]}.{found[2]}" if found else None


def projection_of(layer: str) -> str | None:
    """The layers of one projection of all experts: `experts.*.down_proj`; None for other layers."""
    found = _EXPERT.fullmatch(layer)
    return f"{found[1]}.*.{found[3]}" if found else None


def fused_name(layer: str) -> str:
    """The parameter that an expert's layer is a part of; of other layers their weight."""
    found = _EXPERT.fullmatch(layer)
    return f"{found[1]}.{found[3]}" if found else f"{layer}.weight"
