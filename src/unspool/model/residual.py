"""Layers whose outputs are added to the residual stream as they are, found by looking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from unspool.model.taps import Call, run_block

BETWEEN = "post_attention_layernorm"
"""The module of a block that reads the stream between attention and MLP."""

RESIDUAL = {"self_attn.o_proj": "", "mlp.down_proj": BETWEEN}
"""Layers that may be, and the module inside the block that reads the stream before ("": the block
itself). What such a layer gives can make good for what the stream has drifted: KL .0544 to .0513
for t2-e2m1 on the bundled model."""

NEAR = 1e-2
"""Of the layer's own outputs: far above what bfloat16 rounds, far below what a norm or a factor
between layer and stream changes."""


def read_before(
    block: nn.Module, name: str, hidden: Sequence[torch.Tensor], call: Call
) -> str | None:
    """The module that reads the residual stream which a layer adds to, "" for the block; None for a
    layer that adds to none, or by way of a norm or a factor.

    Seen in the first of some hidden states: the stream behind the layer is that before it and what
    the layer gives; of a block without BETWEEN, twice its output moves the block's by as much.
    Without any hidden states the answer is None.
    """
    beside = RESIDUAL.get(name)
    if beside is None or (beside and not hasattr(block, beside)) or not hidden:
        return None
    given, between, after = _run(block, name, hidden[0], call, 1)
    if between is None:
        moved = _run(block, name, hidden[0], call, 2)[2] - after
    else:
        moved = after - between if beside else between - hidden[0]
    return beside if bool((moved - given).norm() <= NEAR * given.norm()) else None


def _run(
    block: nn.Module, name: str, hidden: torch.Tensor, call: Call, times: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """What the layer gives, and the stream between attention and MLP and behind the block where it
    gives that several times."""
    found: dict[str, torch.Tensor] = {}

    def give(layer: nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        found["given"] = out.float()
        return times * out

    def read(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found["between"] = args[0].float()

    handles = [block.get_submodule(name).register_forward_hook(give)]
    if hasattr(block, BETWEEN):
        handles.append(block.get_submodule(BETWEEN).register_forward_pre_hook(read))
    try:
        after = run_block(block, hidden, call)
    finally:
        for handle in handles:
            handle.remove()
    return found["given"], found.get("between"), after
