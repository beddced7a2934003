"""Calibration of a model: its own texts, fixed sums, and less divergence for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from unspool.encode.ldlq import Calibration
from unspool.errors import ModelError
from unspool.model.blocks import block_names, blocks_of
from unspool.model.calibrate import Plan, both_streams, calibrate_block
from unspool.model.swap import quantize
from unspool.model.taps import Parts, Taps, shared
from unspool.spec.catalog import parse

HOW = Calibration(stretches=(1.0,))


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=128, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def windows(count: int = 6, tokens: int = 48) -> torch.Tensor:
    return torch.randint(0, 128, (count, tokens), generator=torch.Generator().manual_seed(1))


def test_layers_that_read_the_same_activation_are_found() -> None:
    model = tiny()
    block, name = model.model.layers[0], block_names(model)[0]
    streams = both_streams(model, block, windows(1))
    layers = [n for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    with Taps(Parts(block), layers) as taps:
        groups = shared(taps.read(streams.original[0], streams.call))
    assert name == "model.layers.0"
    assert [sorted(each.split(".")[1] for each in group) for group in groups] == [
        ["k_proj", "q_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"],
    ]  # fmt: skip


def test_threads_do_not_change_a_byte() -> None:
    found = []
    for threads in (1, 2):
        model = tiny()
        quantize(model, "t2-e2m1:h32", calibration=windows(), how=HOW, threads=threads)
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_blocks_stay_as_they_are_and_streams_move_on() -> None:
    model = tiny()
    blocks, plan = blocks_of(model), Plan(formats={}, how=HOW, threads=1)
    block = blocks.read(0)
    streams = both_streams(model, model.model.layers[0], windows(2))
    before = [hidden.clone() for hidden in streams.original]
    assert list(calibrate_block(block, blocks.names[0], streams, plan)) == []
    for hidden, quantized, old in zip(streams.original, streams.quantized, before, strict=True):
        assert torch.equal(hidden, quantized)
        assert not torch.equal(hidden, old)
    fmt = {"model.layers.0.mlp.up_proj": parse("int8")}
    streams = both_streams(model, model.model.layers[0], windows(2))
    (found,) = calibrate_block(block, blocks.names[0], streams, Plan(formats=fmt, how=HOW))
    assert found.tokens == 96
    assert torch.equal(block.mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(streams.original[0], streams.quantized[0])


def test_calibration_brings_the_outputs_nearer() -> None:
    ids, original = windows(12), tiny()
    errors = []
    for given in (None, ids):
        model = tiny()
        quantize(model, "t2-e2m1:h32", calibration=given, how=HOW, threads=1)
        with torch.no_grad():
            difference = model(ids).logits - original(ids).logits
        errors.append(float(difference.square().mean()))
    assert errors[1] < 0.7 * errors[0]


class Expert(nn.Module):
    """A block with an expert that no token reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor, **_: object) -> torch.Tensor:
        return hidden + self.used(hidden)


def test_a_layer_that_no_token_reaches_is_an_error() -> None:
    from unspool.model.sums import Streams
    from unspool.model.taps import Call

    hidden = [torch.randn(1, 32, 8)]
    streams = Streams(
        original=hidden, quantized=list(hidden), calls=[Call(args=(), kwargs={})], count=1
    )
    plan = Plan(formats={"b.used": parse("int8"), "b.idle": parse("int8")}, how=HOW, threads=1)
    with pytest.raises(ModelError, match=r"^b: no token.*found idle; allowed.*--unreached"):
        list(calibrate_block(Expert(), "b", streams, plan))
