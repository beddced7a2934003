"""Fused experts as layers like any other: the same products, checkpoints, kernels."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Llama4TextConfig,
    PreTrainedModel,
)

import unspool
from mixtures import FORMAT, LAYER, MIXTURES, SIZES, logits, mixture, routed
from unspool.checkpoint.read import verify
from unspool.errors import ModelError
from unspool.integrations.transformers import UnspoolConfig
from unspool.matmul.cuda import simulate
from unspool.model import ops
from unspool.model.experts import Experts, settle_experts, split_experts, why_not
from unspool.model.linear import QuantizedLinear
from unspool.model.load import empty_model
from unspool.model.processors import SimulatedProcessor
from unspool.model.selection import fused_experts, linear_names
from unspool.model.swap import LeftOutWarning

FAMILIES = pytest.mark.parametrize("family", list(MIXTURES))


def moe(model: PreTrainedModel) -> Experts:
    found = model.get_submodule(LAYER)
    assert isinstance(found, Experts)
    return found


@FAMILIES
def test_split_experts_give_what_the_model_gives_from_the_same_memory(family: str) -> None:
    model = mixture(family)
    want, fused = logits(model), model.get_submodule(LAYER).gate_up_proj
    originals = split_experts(model)
    assert len(originals) == 2
    layer = model.get_submodule(f"{LAYER}.3.gate_up_proj")
    assert layer.weight.shape == (64, 64)
    assert layer.weight.data_ptr() == fused[3].data_ptr()
    torch.testing.assert_close(logits(model), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(copy.deepcopy(model)), want, rtol=1e-5, atol=1e-5)
    again = moe(model).fused()
    assert type(again) is type(originals[LAYER])
    for name, parameter in originals[LAYER].named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    settle_experts(model, originals, ())
    assert model.get_submodule(LAYER) is originals[LAYER]


def test_a_choice_that_is_no_expert_gives_nothing() -> None:
    model = mixture("gpt_oss")
    split_experts(model)
    x, choices, weights = routed()
    want = moe(model)(x, choices, weights)
    more = torch.cat([choices, torch.tensor([[4], [-1]] * 6)], 1), torch.ones(12, 1)
    assert torch.equal(moe(model)(x, more[0], torch.cat([weights, more[1]], 1)), want)
    assert moe(model)(x[:0], choices[:0], weights[:0]).shape == (0, 64)


def test_experts_without_a_gate_and_what_cannot_be_split() -> None:
    class Plain(nn.Module):
        has_gate, has_bias, has_post_expert_norm, is_transposed = False, False, False, False
        _apply_gate = None

        def __init__(self) -> None:
            super().__init__()
            self.up_proj = nn.Parameter(torch.randn(3, 32, 64))
            self.down_proj = nn.Parameter(torch.randn(3, 64, 32))
            self.act_fn = nn.ReLU()

    fused, (x, choices, weights) = Plain(), routed(top=1)
    assert why_not(fused) is None
    up = torch.einsum("mk,mnk->mn", x, fused.up_proj[choices[:, 0]]).relu()
    want = torch.einsum("mk,mnk->mn", up, fused.down_proj[choices[:, 0]]) * weights
    torch.testing.assert_close(Experts(fused)(x, choices, weights), want, rtol=1e-4, atol=1e-3)
    fused.has_post_expert_norm = True
    assert why_not(fused) == "it normalises what its experts give"
    fused.has_post_expert_norm, fused.scale = False, nn.Parameter(torch.ones(1))
    assert why_not(fused) == "it has other parameters"


def test_experts_of_another_layout_stay_and_are_named_with_the_reason() -> None:
    sizes = {name: size for name, size in SIZES.items() if name != "num_experts_per_tok"}
    config = Llama4TextConfig(
        **sizes, intermediate_size=32, intermediate_size_mlp=32, num_local_experts=4
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with pytest.warns(LeftOutWarning, match="cannot be split into layers, its layout is not decl"):
        report = unspool.quantize(model, "int8")
    assert len(report.left_out) == 4
    assert report.left_out == fused_experts(model)
    with pytest.raises(ModelError, match="its layout is not declared"):
        unspool.quantize(copy.deepcopy(model), "int8", strict=True)


@FAMILIES
@pytest.mark.parametrize("fmt", ["int8", FORMAT])
def test_coded_experts_multiply_with_their_decoded_weights(family: str, fmt: str) -> None:
    model = mixture(family)
    report = unspool.quantize(model, fmt, include=["*.experts.*"])
    assert {layer.name for layer in report.layers} == {
        f"model.layers.{block}.mlp.experts.{e}.{name}"
        for block in range(2) for e in range(4) for name in ("gate_up_proj", "down_proj")
    }  # fmt: skip
    assert report.left_out == ()
    coded, dense = moe(model), copy.deepcopy(moe(model))
    for expert in dense.children():
        for name, layer in list(expert.named_children()):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight = nn.Parameter(layer.decode(), requires_grad=False)
            expert.add_module(name, plain)
            coded.get_submodule(expert_place(dense, expert)).get_submodule(
                name
            ).activations = "float32"
    x, choices, weights = routed(40)
    with torch.no_grad():
        want = dense.fused()(x, choices, weights)  # the model's own module
        torch.testing.assert_close(coded(x, choices, weights), want, rtol=1e-4, atol=1e-5)


@FAMILIES
def test_one_token_alone_has_the_bits_that_it_has_among_others(family: str) -> None:
    model = mixture(family)
    unspool.quantize(model, FORMAT, include=["*.experts.*"])
    x, choices, weights = routed()
    every = moe(model)(x, choices, weights)
    for place in range(3):
        one = slice(place, place + 1)
        assert torch.equal(moe(model)(x[one], choices[one], weights[one]), every[one])


def expert_place(experts: nn.Module, one: nn.Module) -> str:
    return next(name for name, child in experts.named_children() if child is one)


@FAMILIES
def test_a_checkpoint_comes_back_by_every_way(family: str, tmp_path: Path) -> None:
    model = mixture(family)
    unspool.quantize(model, FORMAT)
    want, out = logits(model), unspool.save(model, tmp_path / "out")
    found = verify(out)
    assert found.manifest.layers[f"{LAYER}.2.down_proj"].shape == (64, 32)
    assert f"{LAYER}.2.down_proj.weight_codes" in found.tensors
    assert not any(name.endswith(("experts.down_proj", "w2.weight")) for name in found.tensors)
    assert torch.equal(logits(unspool.load(out)), want)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), want)
    config = UnspoolConfig(dequantize=True)
    with pytest.warns(UserWarning, match="quantization_config"):
        dense = AutoModelForCausalLM.from_pretrained(out, quantization_config=config)
    assert type(dense.get_submodule(LAYER)) is type(mixture(family).get_submodule(LAYER))
    coded = unspool.load(out, activations="float32")
    torch.testing.assert_close(logits(dense), logits(coded), rtol=1e-3, atol=1e-4)
    again = unspool.save(coded, tmp_path / "again", source=out)
    name = "model.safetensors"
    assert (again / name).read_bytes() == (out / name).read_bytes()


@FAMILIES
def test_a_projection_that_is_left_out_stays_as_it_was(family: str, tmp_path: Path) -> None:
    model, before = mixture(family), mixture(family)
    unspool.quantize(model, FORMAT, exclude=["*.down_proj"])
    down = f"{LAYER}.down_proj"
    assert torch.equal(model.get_parameter(down), before.get_parameter(down))
    assert isinstance(model.get_submodule(f"{LAYER}.0.gate_up_proj"), QuantizedLinear)
    out = unspool.save(model, tmp_path / "out")
    back = unspool.load(out)
    assert torch.equal(logits(back), logits(model))
    assert torch.equal(back.get_parameter(down), before.get_parameter(down))


def test_the_experts_of_a_projection_are_quantized_all_or_none() -> None:
    model = mixture("qwen3_moe")
    kept = model.get_submodule(LAYER)
    with pytest.raises(ModelError, match=r"experts\.\*\.down_proj: the experts.*3 of 4 chosen"):
        unspool.quantize(model, "int8", exclude=["*.experts.3.down_proj"])
    assert model.get_submodule(LAYER) is kept
    unspool.quantize(model, "int8", exclude=["*.experts.*"])
    assert model.get_submodule(LAYER) is kept


@pytest.mark.parametrize(("family", "machine"), [("qwen3_moe", "sm90"), ("gpt_oss", "sm80")])
def test_grouped_kernels_of_a_gpu_give_nearly_the_same(family: str, machine: str) -> None:
    reason = simulate.why_not()
    if reason:
        pytest.skip(reason)
    model = mixture(family)
    unspool.quantize(model, "s3-e4m3:h32", include=["*.experts.*"])
    experts, processor = moe(model), SimulatedProcessor(machine)
    assert experts.alike()
    for projection in experts.projections:
        experts.on_gpu(projection, processor)
    x, choices, _ = routed()
    choices[3, 1] = -1
    with torch.no_grad():
        found, want = experts.launched(x, choices), experts._one_by_one(x, choices)
    assert float((found - want).norm() / want.norm()) < 0.02
    assert torch.equal(found[3, 1], torch.zeros(64))
    assert experts.on_gpu("down_proj") is experts._uploaded["down_proj"][1]
    experts.to(torch.float32)
    assert not experts._uploaded


def test_the_operator_keeps_the_promises_of_an_operator() -> None:
    model = mixture("qwen3_moe")
    unspool.quantize(model, "int8", include=["*.experts.*"])
    experts, given = moe(model), routed()
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(ops.experts, (*given, experts._number), test_utils=tests)
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(*given), experts(*given))
    assert copy.deepcopy(experts)._number != experts._number
    given[0].requires_grad_()
    with pytest.raises(ModelError, match="no gradient"):
        experts(*given).sum().backward()


def test_every_expert_is_a_layer_of_an_empty_model(stored: dict[str, Path]) -> None:
    names = linear_names(empty_model(stored["mixtral"]))
    assert sum(".experts." in name for name in names) == 2 * 4 * 2
