"""Tuning: codes stay, scales and norms move, and the outputs come nearer to the original's."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unspool.errors import ModelError
from unspool.model.linear import QuantizedLinear
from unspool.model.swap import quantize
from unspool.model.tune import Effort, tune


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=128, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def windows(count: int = 8, tokens: int = 32) -> torch.Tensor:
    return torch.randint(0, 128, (count, tokens), generator=torch.Generator().manual_seed(1))


def divergence(model: torch.nn.Module, original: torch.nn.Module) -> float:
    with torch.no_grad():
        p, q = (each(windows()).logits.log_softmax(-1) for each in (original, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", ["t2-e2m1:h32", "nvfp4", "int4:b32-fp16", "lut-b"])
def test_tuning_lowers_the_divergence_and_keeps_the_codes(name: str) -> None:
    original, model = tiny(), tiny()
    quantize(model, name)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    codes = {n: layer.weight_codes.clone() for n, layer in layers.items()}
    before = divergence(model, original)
    found = tune(model, original, windows(), effort=Effort(steps=24, rate=5e-3))
    assert found.after < found.before
    assert divergence(model, original) < 0.97 * before
    for n, layer in layers.items():
        assert model.get_submodule(n) is layer
        assert torch.equal(layer.weight_codes, codes[n]), n


def test_a_model_without_quantized_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no quantized layer to tune"):
        tune(tiny(), tiny(), windows())


def test_all_that_takes_part_is_moved_to_the_device(monkeypatch) -> None:
    """What computes there cannot be shown without one."""
    original, model, moved = tiny(), tiny(), []
    quantize(model, "nvfp4")

    def to(each, device):
        moved.append((type(each), device))
        return each

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(LlamaForCausalLM, "to", to)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr("unspool.model.tune._descend", lambda *given: [0.0])
    tune(model, original, windows(), device="cuda")
    assert sorted(moved, key=str) == sorted(
        [(LlamaForCausalLM, "cuda"), (LlamaForCausalLM, "cuda"), (torch.Tensor, "cuda")], key=str
    )
