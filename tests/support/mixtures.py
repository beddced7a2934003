"""Tiny mixtures of experts of several makes, their inputs, and folders of them."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "vocab_size": 128, "max_position_embeddings": 64, "num_experts_per_tok": 2,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
MIXTURES = {
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, intermediate_size=96, moe_intermediate_size=32, num_experts=4
    ),
    "mixtral": MixtralConfig(**SIZES, intermediate_size=32, num_local_experts=4),
    # a buffer of biases that routes, and shared experts
    "deepseek_v3": DeepseekV3Config(
        **{**SIZES, "head_dim": 16}, intermediate_size=96, moe_intermediate_size=32,
        n_routed_experts=4, n_shared_experts=1, n_group=2, topk_group=2, first_k_dense_replace=0,
        q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=32,
    ),
    # [experts, k, n], gate and up by turns, biases
    "gpt_oss": GptOssConfig(
        **SIZES, intermediate_size=32, num_local_experts=4, sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
    ),
}  # fmt: skip
FORMAT = "t2-e2m1:h32"
LAYER = "model.layers.0.mlp.experts"


def mixture(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(MIXTURES[family]), dtype=torch.float32)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("_bias", "gate.weight", "router.weight")):
                tensor.normal_(0, 0.3)  # zeros in new models
    return model.eval()


def windows(count: int = 6, tokens: int = 48) -> torch.Tensor:
    return torch.randint(0, 128, (count, tokens), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(windows(2) if ids is None else ids).logits


def routed(tokens: int = 12, top: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, choices and weights of choices; the last expert is nobody's."""
    dice = torch.Generator().manual_seed(3)
    x = torch.randn(tokens, 64, generator=dice)
    choices = torch.rand(tokens, 3, generator=dice).argsort(1)[:, :top]
    return x, choices, torch.rand(tokens, top, generator=dice)
