"""Which tokens stand in which tile of a mixture's product, found where the choices are.

`matmul.cuda.routing.route` is the definition; these are the same arrays by operations whose shapes
depend on shapes alone and of which none waits for a value: they run on a GPU, inside a CUDA graph,
and under torch.compile in one graph.

    choices --sort--> by expert --search--> first and number of each --sum--> first tile of each
    tile --search--> its expert        slot of a tile --> place among the sorted --> choice
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from unspool.matmul.cuda.routing import most_tiles


class Tiles(NamedTuple):
    """As `matmul.cuda.routing.Routing`, int32."""

    sources: torch.Tensor
    targets: torch.Tensor
    experts: torch.Tensor


def route(choices: torch.Tensor, experts: int, tokens: int) -> Tiles:
    """Tiles of so many tokens for choices `[m, top]` of any integer type; others are dropped."""
    device, flat = choices.device, choices.reshape(-1)
    legal = (flat >= 0) & (flat < experts)
    chosen, order = torch.sort(torch.where(legal, flat.long(), experts), stable=True)
    first = torch.searchsorted(chosen, torch.arange(experts + 1, device=device))
    counts = first[1:] - first[:-1]
    filled = (counts + tokens - 1) // tokens
    last_tile = filled.cumsum(0)
    tile = torch.arange(most_tiles(flat.numel(), experts, tokens), device=device)
    owner = torch.searchsorted(last_tile, tile, right=True)  # `experts`: nobody's
    known = owner.clamp(max=experts - 1)
    within = (tile - (last_tile - filled)[known])[:, None] * tokens
    rank = within + torch.arange(tokens, device=device)
    taken = (owner < experts)[:, None] & (rank < counts[known][:, None])
    place = (first[known][:, None] + rank).clamp(max=flat.numel() - 1)
    targets = torch.where(taken, order[place], -1).reshape(-1)
    sources = targets.div(choices.shape[1], rounding_mode="floor")  # of -1: -1
    owners = torch.where(owner < experts, owner, -1)
    return Tiles(sources.int(), targets.int(), owners.int())
