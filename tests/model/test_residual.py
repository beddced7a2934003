"""Which layers add to the residual stream as they are, in blocks of several makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    Olmo2Config,
)

from unspool.model.calibrate import both_streams
from unspool.model.residual import read_before

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 128, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "attention", "mlp"),
    [
        (LlamaConfig(**SIZES), "", "post_attention_layernorm"),
        (CohereConfig(**SIZES), "", None),  # attention and MLP side by side
        (GraniteConfig(**SIZES, residual_multiplier=0.5), None, None),
        (Gemma2Config(**SIZES), None, None),  # norms behind both
        (Olmo2Config(**SIZES), None, None),
    ],
    ids=["llama", "cohere", "granite", "gemma2", "olmo2"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_behind_a_norm_or_a_factor_are_none_of_the_streams(
    config, attention, mlp, dtype
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    block: nn.Module = model.model.layers[0]
    streams = both_streams(model, block, torch.randint(0, 128, (2, 16)), dtype=dtype)
    found = [
        read_before(block, name, streams.original, streams.call)
        for name in ("self_attn.o_proj", "mlp.down_proj", "mlp.up_proj")
    ]
    assert found == [attention, mlp, None]
    assert read_before(block, "self_attn.o_proj", [], streams.call) is None
