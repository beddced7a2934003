"""Layers that read one activation multiply together, and nobody can tell but by the clock."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unspool.matmul import kernel
from unspool.model import product
from unspool.model.siblings import MISSES, join_siblings
from unspool.model.swap import quantize


class Attention(nn.Module):
    """Three projections of one activation, and one of another."""

    def __init__(self, formats: tuple[str, str, str] = ("t2-e2m1", "t2-e2m1", "t2-e2m1")):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(96, 64, bias=True), nn.Linear(96, 24, bias=False)
        self.v_proj, self.o_proj = nn.Linear(96, 24, bias=False), nn.Linear(64, 96)
        for name, fmt in zip(("q_proj", "k_proj", "v_proj"), formats, strict=True):
            quantize(self, fmt, include=(name,))
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            layer.siblings = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many layers every call of the library multiplied."""
    counted: list[int] = []

    def counting(kernels, *rest):
        counted.append(len(kernels))
        kernel.multiply(kernels, *rest)

    monkeypatch.setattr(product, "multiply", counting)
    return counted


@pytest.mark.parametrize(
    "formats", [("t2-e2m1",) * 3, ("t2-e2m1", "t1.5-e2m1", "nvfp4"), ("t3-e2m3", "m2-e2m1", "int4")]
)
def test_together_they_give_the_bits_of_each_alone(formats, calls):
    model = Attention(formats)
    x = torch.randn(5, 96)
    alone = model(x)
    assert join_siblings(model) == 1
    assert torch.equal(model(x), alone)
    assert calls == [1, 1, 1, 3]


def test_another_activation_is_not_taken_for_the_same(calls):
    model = Attention()
    join_siblings(model)
    x, other = torch.randn(1, 96), torch.randn(1, 96)
    model.q_proj(x)
    assert torch.equal(model.k_proj(other), model.k_proj.multiply(other))
    model.q_proj(x)
    assert torch.equal(model.v_proj(x), model.v_proj.multiply(x))


def test_products_nobody_comes_for_end_it_after_a_few_times(calls):
    model = Attention()
    join_siblings(model)
    for _ in range(MISSES + 2):
        model.q_proj(torch.randn(1, 96))
    assert not model.q_proj.siblings.together
    assert calls == [3] * (MISSES + 1) + [1]


def test_a_write_between_the_calls_is_seen():
    model = Attention()
    join_siblings(model)
    x = torch.randn(1, 96)
    model.q_proj(x)
    x.mul_(2)
    assert torch.equal(model.k_proj(x), model.k_proj.multiply(x))


def test_tensors_that_count_no_writes_are_multiplied_one_by_one(calls):
    model = Attention()
    join_siblings(model)
    with torch.inference_mode():
        x = torch.randn(1, 96)
        model(x)
    assert calls == [1, 1, 1]


def test_a_layer_that_changed_between_the_calls_is_seen():
    model, other = Attention(), Attention()
    join_siblings(model)
    x = torch.randn(1, 96)
    model.q_proj(x)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.k_proj(x), other.k_proj(x))


def test_projections_of_other_activations_are_not_joined():
    model = Attention()
    model.k_proj = nn.Linear(64, 24)
    quantize(model, "int8", include=("k_proj",))
    assert join_siblings(model) == 0
    assert model.q_proj(torch.randn(1, 96)).shape == (1, 64)
