"""Importance: tokens count by the loss's gradients; found in parts, whatever the threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from unspool.encode.ldlq import encode_calibrated
from unspool.encode.moments import Moments
from unspool.errors import ModelError, WeightError
from unspool.matmul.reference import decode
from unspool.model.blocks import blocks_of
from unspool.model.calibrate import (
    Plan,
    both_streams,
    calibrate_block,
    weigh,
    workers,
)
from unspool.model.importance import Importance, Norms
from unspool.model.selection import plan
from unspool.model.sums import gather
from unspool.model.taps import Parts
from unspool.spec.catalog import parse

FORMAT = "t2-e2m1:h32"


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=128, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def windows(count: int = 3, tokens: int = 48) -> torch.Tensor:
    return torch.randint(0, 128, (count, tokens), generator=torch.Generator().manual_seed(1))


def norms(threads: int = 2, model: LlamaForCausalLM | None = None) -> list[Norms]:
    """Those of every window, found block by block."""
    model = model or tiny()
    blocks, ids = blocks_of(model), windows()
    streams = both_streams(model, model.get_submodule(blocks.names[0]), ids)
    weigh(streams, model, blocks, ids, threads)
    assert streams.importance is not None
    return list(streams.importance.windows)


def first_block(importance: Importance | None, ids: torch.Tensor) -> list[np.ndarray]:
    """The codes of the first block's layers."""
    model = tiny()
    blocks = blocks_of(model)
    streams = both_streams(model, model.get_submodule(blocks.names[0]), ids)
    streams.importance = importance
    how = Plan(formats=plan(model, FORMAT), threads=1)
    found = calibrate_block(blocks.read(0), blocks.names[0], streams, how)
    return [layer.matrix.codes for layer in found]


def test_block_by_block_the_gradients_are_those_of_the_whole_model() -> None:
    model, kept = tiny(), {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(layer: nn.Module, args: object, out: torch.Tensor) -> None:
            out.retain_grad()
            kept[name] = out

        return keep

    for name in plan(model, FORMAT):
        model.get_submodule(name).register_forward_hook(keeper(name))
    for ids, found in zip(windows(), norms(), strict=True):
        logits = model(ids[None]).logits[0]
        nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum").backward()
        assert found.keys() == kept.keys()
        for name, out in kept.items():
            wanted = out.grad[0].square().sum(-1)
            # float32 sums of at most 128 terms, in another order
            np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=1e-6 * wanted.max())


def test_threads_do_not_change_a_byte_and_the_model_stays_as_it_was() -> None:
    model = tiny().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, two = norms(1, model), norms(2, model)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert torch.isfinite(model(windows()[:1]).logits).all()


def test_weighing_by_ones_changes_no_byte() -> None:
    ids = windows()
    ones = [{name: np.ones(48, np.float32) for name in plan(tiny(), FORMAT)} for _ in ids]
    alike, weighed = first_block(None, ids), first_block(Importance.of(ones, range(3)), ids)
    assert all(np.array_equal(a, b) for a, b in zip(alike, weighed, strict=True))
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(alike, first_block(Importance.of(norms(), range(3)), ids), strict=True)
    )


def test_an_error_at_a_token_of_no_weight_costs_nothing() -> None:
    # What the last window's tokens are: only drift, which is made good for all alike, heeds them.
    given = norms()
    nothing = {name: np.zeros_like(each) for name, each in given[2].items()}
    importance = Importance.of([*given[:2], nothing], range(3))
    found = []
    for other in (windows(), torch.cat([windows()[:2], windows()[2:].flip(1)])):
        model = tiny()
        block = blocks_of(model).read(0)
        streams = both_streams(model, model.model.layers[0], other)
        streams.importance = importance
        with workers(1) as each:
            found += gather(
                Parts(block),
                Parts(block),
                [["mlp.down_proj"]],
                streams,
                each,
                prefix="model.layers.0",
            )
    assert np.array_equal(found[0].weighed, found[1].weighed)
    assert not np.array_equal(found[0].inputs, found[1].inputs)


def test_layers_that_read_one_activation_count_by_their_sum_of_mean_one() -> None:
    names, found = ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"], norms()
    importance = Importance.of(found, range(3))
    weights = [importance.roots(place, names, 48)[:, 0] ** 2 for place in range(3)]
    total = np.stack([window[names[0]] + window[names[1]] for window in found])
    np.testing.assert_allclose(weights, total / total.mean(), rtol=1e-5)


def test_rows_that_the_original_has_not_count_alike() -> None:
    importance = Importance.of(norms(), range(3))
    assert (importance.roots(0, ["model.layers.1.mlp.up_proj"], 47) == 1).all()
    assert (importance.roots(0, ["elsewhere"], 47) == 1).all()


def test_gradients_that_are_not_finite_are_named() -> None:
    broken = [{"a": np.ones(2, np.float32), "b": np.array([1, np.inf], np.float32)}]
    with pytest.raises(ModelError, match="b: gradients on the calibration text are not finite"):
        Importance.of(broken, [0])


def test_errors_are_made_where_they_cost_least() -> None:
    dice = np.random.default_rng(0)
    x, g = dice.standard_normal((400, 64)), dice.exponential(size=400) ** 2
    x[:, :32] *= 1 + 3 * g[:, None]  # columns that matter at the tokens that matter
    weight = dice.standard_normal((16, 64), np.float32)
    alike, weighed = x.T @ x, (x.T * g) @ x
    cost = []
    for costs in (None, weighed):
        coded = encode_calibrated(
            weight, parse("int4"), Moments(inputs=alike, weighed=costs), threads=1
        )
        error = decode(coded).astype(np.float64) - weight
        cost.append(float(np.einsum("nk,kl,nl->", error, weighed, error)))
    assert cost[1] < cost[0]
    with pytest.raises(WeightError, match=r"moments \(weighed\) do not fit"):
        encode_calibrated(weight, parse("int4"), Moments(inputs=alike, weighed=alike[:32]))
