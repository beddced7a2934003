"""Layers whose outputs are added to the residual stream as they are, found by trying."""

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

    Tried with the first of some hidden states: twice the layer's output moves the stream by it.
    Without any the answer is None.
    """
    beside = RESIDUAL.get(name)
    if beside is None or (beside and not hasattr(block, beside)) or not hidden:
        return None
    behind = BETWEEN if not beside and hasattr(block, BETWEEN) else None
    stream, given = _run(block, name, behind, hidden[0], call, 1)
    moved = _run(block, name, behind, hidden[0], call, 2)[0] - stream
    return beside if bool((moved - given).norm() <= NEAR * given.norm()) else None


def _run(
    block: nn.Module,
    name: str,
    behind: str | None,
    hidden: torch.Tensor,
    call: Call,
    times: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream that a module behind the layer reads (None: behind the block), and what the layer
    gives, where it gives that several times."""
    found: dict[str, torch.Tensor] = {}

    def give(layer: nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
        found["given"] = out.float()
        return times * out

    def read(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        found["stream"] = args[0].float()

    handles = [block.get_submodule(name).register_forward_hook(give)]
    if behind is not None:
        handles.append(block.get_submodule(behind).register_forward_pre_hook(read))
    try:
        after = run_block(block, hidden, call)
    finally:
        for handle in handles:
            handle.remove()
    return found.get("stream", after), found["given"]
