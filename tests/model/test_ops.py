"""The operator: what torch.compile, autograd and opcheck see of a quantized layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unspool.errors import ModelError
from unspool.model import ops
from unspool.model.linear import QuantizedLinear
from unspool.model.swap import quantize


def some_layer(name: str = "t2-e2m1", n: int = 40, k: int = 72) -> QuantizedLinear:
    model = nn.Sequential(nn.Linear(k, n))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(model[0].weight)
    quantize(model, name)
    return model[0]


@pytest.mark.parametrize("name", ["t2-e2m1", "fp8-e4m3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_the_promises_of_an_operator(name, dtype):
    layer, x = some_layer(name), torch.randn(2, 3, 72, dtype=dtype)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(ops.linear, (x, layer._number, 40), test_utils=tests)


def test_the_operator_is_the_layer():
    layer, x = some_layer(), torch.randn(5, 72)
    assert torch.equal(ops.linear(x, layer._number, 40), layer(x))


def test_a_copy_has_a_number_of_its_own():
    layer = some_layer()
    twin = copy.deepcopy(layer)
    assert twin._number != layer._number
    assert torch.equal(twin(torch.ones(1, 72)), layer(torch.ones(1, 72)))


def test_a_compiled_model_gives_the_same_bits_in_one_graph():
    model = nn.Sequential(some_layer("t2-e2m1", 64, 72), nn.ReLU(), some_layer("mxfp4", 24, 64))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        for m in (1, 3):
            x = torch.randn(m, 72)
            assert torch.equal(compiled(x), model(x))


def test_a_gradient_is_refused_through_the_operator():
    layer = some_layer()
    y = ops.linear(torch.ones(1, 72, requires_grad=True), layer._number, 40)
    with pytest.raises(ModelError, match="no gradient"):
        y.sum().backward()
