"""Mixtures of experts: which tokens stand in which tile of a grouped product.

    choices [m, top]          expert of every token's choices
    tiles                     tokens of one expert each, gathered; unused ones are skipped
    output row of a choice    token * top + choice

The definition; `model.routing` finds the same on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int32


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Tiles of a grouped product."""

    #: row of the input in every token slot of the tiles; -1: none
    sources: Int32[np.ndarray, " slots"]
    #: row of the output
    targets: Int32[np.ndarray, " slots"]
    #: whose weights a tile takes; -1: an empty tile
    experts: Int32[np.ndarray, " tiles"]


def most_tiles(choices: int, experts: int, tokens: int) -> int:
    """Tiles that always suffice: every expert may leave one unfilled."""
    return -(-choices // tokens) + min(experts, choices)


def route(choices: Int32[np.ndarray, "m top"], experts: int, tokens: int) -> Routing:
    """Choices sorted by expert, each expert's from a new tile on; what is no expert is dropped."""
    flat = choices.reshape(-1)
    tiles = most_tiles(flat.size, experts, tokens)
    order = np.argsort(flat, kind="stable")
    order = order[(flat[order] >= 0) & (flat[order] < experts)]
    counts = np.bincount(flat[order], minlength=experts)
    per_expert = -(-counts // tokens)
    first_tile = np.cumsum(per_expert) - per_expert
    rank = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    slot = first_tile[flat[order]] * tokens + rank
    sources = np.full(tiles * tokens, -1, np.int32)
    targets = np.full(tiles * tokens, -1, np.int32)
    sources[slot], targets[slot] = order // choices.shape[1], order
    owners = np.full(tiles, -1, np.int32)
    owners[: per_expert.sum()] = np.repeat(np.arange(experts), per_expert)
    return Routing(sources=sources, targets=targets, experts=owners)
