"""A quantized linear layer: nn.Linear's manners, no dense weight."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from unspool.errors import ModelError
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode, matmul
from unspool.model.linear import QuantizedLinear
from unspool.pack.matrix import CodedMatrix, array_specs, coded_matrix
from unspool.spec.catalog import parse

FORMATS = ("t2-e2m1", "t3-e2m3", "nvfp4", "mxfp4", "int4", "lut-b", "lut3-row")


def some_matrix(name: str, n: int, k: int, seed: int = 0) -> CodedMatrix:
    """Random codes, scales and tables; only patterns of finite positive scales."""
    rng, fmt, arrays = np.random.default_rng(seed), parse(name), {}
    for part, spec in array_specs(fmt, n, k).items():
        top = {"codes": 1 << 32, "scale": 120, "table": 120, "tensor_scale": 2}[part]
        arrays[part] = rng.integers(1, top, spec.shape, np.uint64).astype(spec.dtype)
    return coded_matrix(fmt, (n, k), arrays)


def some_input(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FORMATS)
def test_the_product_is_the_reference_product(name):
    matrix = some_matrix(name, 40, 72)
    x, bias = some_input(3, 72), some_input(40)
    layer = QuantizedLinear.from_matrix(matrix, bias)
    layer.activations = "float32"
    expected = matmul(x.numpy(), matrix) + bias.numpy()
    # Float32 sums of k products: k roundings of at most 2^-24 of the sum of magnitudes, and a
    # rotation on either side adds log2 of its size.
    magnitude = np.abs(x.numpy()) @ np.abs(decode(matrix)).T + np.abs(bias.numpy())
    reach = np.linalg.norm(x.numpy(), axis=1)[:, None] * np.linalg.norm(decode(matrix), axis=1)
    bound = (72 + 32) * 2.0**-24 * (magnitude + reach)
    assert np.all(np.abs(layer(x).numpy() - expected) <= bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORMATS)
def test_the_product_is_the_kernels_and_the_bias_rounded_once(name, dtype):
    matrix = some_matrix(name, 40, 72)
    x, bias = some_input(3, 72).to(dtype), some_input(40)
    y = QuantizedLinear.from_matrix(matrix, bias)(x)
    inside = Kernel(matrix)(x.to(torch.float32).numpy()) + bias.numpy()
    assert torch.equal(y, torch.from_numpy(inside).to(dtype))


@pytest.mark.parametrize("name", FORMATS)
def test_the_buffers_are_the_matrix_without_a_copy(name):
    matrix = some_matrix(name, 40, 72)
    layer = QuantizedLinear.from_matrix(matrix)
    for part, array in layer.matrix().arrays.items():
        assert np.array_equal(array, matrix.arrays[part])
        assert np.shares_memory(array, matrix.arrays[part])


def test_scales_survive_every_cast_of_the_model():
    layer = QuantizedLinear.from_matrix(some_matrix("nvfp4", 16, 32), some_input(16))
    before = copy.deepcopy(layer.matrix().arrays)
    for cast in (torch.bfloat16, torch.float16, torch.float64):
        layer = layer.to(cast)
    assert layer.bias.dtype == torch.float64
    for part, array in layer.matrix().arrays.items():
        assert np.array_equal(array, before[part])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_leading_shape_and_the_dtype_of_the_input(dtype):
    layer = QuantizedLinear.from_matrix(some_matrix("mxfp4", 24, 40))
    x = some_input(2, 3, 40).to(dtype)
    y = layer(x)
    assert (y.shape, y.dtype) == ((2, 3, 24), dtype)
    assert torch.equal(layer(x[1]), y[1])
    assert torch.equal(layer(x[1, 2]), y[1, 2])
    assert layer(x[:0]).shape == (0, 3, 24)
    strided = x.transpose(0, 1)
    assert torch.equal(layer(strided), y.transpose(0, 1))


def test_empty_layers_on_meta_take_a_state_dict():
    layer = QuantizedLinear.from_matrix(some_matrix("t2-e2m1", 16, 64), some_input(16))
    empty = QuantizedLinear(layer.format, 64, 16, bias=True, device="meta")
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(layer.state_dict(), assign=True)
    x = some_input(2, 64)
    assert torch.equal(empty(x), layer(x))


def test_a_state_dict_copied_in_place_is_seen():
    first, second = (QuantizedLinear.from_matrix(some_matrix("nvfp4", 16, 32, s)) for s in (0, 1))
    x = some_input(2, 32)
    first(x)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))


def test_a_replaced_buffer_is_seen():
    first, second = (QuantizedLinear.from_matrix(some_matrix("nvfp4", 16, 32, s)) for s in (0, 1))
    x = some_input(2, 32)
    first(x)
    for name, tensor in second.named_buffers():
        setattr(first, name, tensor.clone())
    assert torch.equal(first(x), second(x))


def test_copies_are_independent():
    layer = QuantizedLinear.from_matrix(some_matrix("nvfp4", 16, 32))
    x = some_input(2, 32)
    y, twin = layer(x), copy.deepcopy(layer)
    layer.weight_codes.zero_()
    assert torch.equal(twin(x), y)


def test_a_wrong_width_and_a_wrong_device_are_errors():
    layer = QuantizedLinear.from_matrix(some_matrix("nvfp4", 16, 32))
    with pytest.raises(ModelError, match=r"found \[2, 33\] of torch.float32; allowed: \[..., 32\]"):
        layer(some_input(2, 33))
    with pytest.raises(ModelError, match="on different devices"):
        layer(torch.empty(2, 32, device="meta"))
    with pytest.raises(ModelError, match="weight on meta"):
        QuantizedLinear(layer.format, 32, 16, device="meta")(some_input(2, 32))


def test_gradients_are_refused_only_when_asked_for():
    layer = QuantizedLinear.from_matrix(some_matrix("nvfp4", 16, 32))
    x = some_input(2, 32)
    with torch.inference_mode():
        quiet = layer(x)
    y = layer(x.clone().requires_grad_())
    assert torch.equal(y, quiet)
    with pytest.raises(ModelError, match="no gradient"):
        y.sum().backward()


def test_it_says_what_it_is():
    layer = QuantizedLinear.from_matrix(some_matrix("int4", 128, 128))
    assert "format=int4, bits_per_weight=4.127, bytes=8452" in repr(layer)


def test_a_buffer_edited_in_place_is_seen():
    layer, x = QuantizedLinear.from_matrix(some_matrix("nvfp4", 16, 32)), some_input(2, 32)
    y = layer(x)
    layer.weight_tensor_scale.copy_((2 * layer.weight_tensor_scale.view(torch.float32)).view(
        layer.weight_tensor_scale.dtype
    ))  # fmt: skip
    assert torch.equal(layer(x), 2 * y)


def test_a_layer_made_in_inference_mode_runs():
    with torch.inference_mode():
        layer = QuantizedLinear.from_matrix(some_matrix("nvfp4", 16, 32))
        empty = QuantizedLinear(layer.format, 32, 16)
        empty.load_state_dict(layer.state_dict())
        assert torch.equal(empty(some_input(2, 32)), layer(some_input(2, 32)))


def test_a_bias_set_or_taken_away_later_is_seen():
    layer, x = QuantizedLinear.from_matrix(some_matrix("t2-e2m1", 16, 64)), some_input(2, 64)
    bare, bias = layer(x), some_input(16)
    layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    assert torch.equal(layer(x), bare + bias)
    layer.bias = None
    assert torch.equal(layer(x), bare)


def test_what_is_written_into_a_state_dictionary_is_seen():
    layer, x = QuantizedLinear.from_matrix(some_matrix("t2-e2m1", 16, 64)), some_input(2, 64)
    before = layer(x)
    layer.state_dict()["weight_codes"].zero_()
    assert not torch.equal(layer(x), before)


def test_integers_are_refused():
    layer = QuantizedLinear.from_matrix(some_matrix("t2-e2m1", 16, 64))
    with pytest.raises(ModelError, match="floating-point"):
        layer(torch.ones(1, 64, dtype=torch.int32))


def test_threads_that_come_first_together_find_one_weight():
    x = some_input(1, 64)
    for seed in range(20):
        layer = QuantizedLinear.from_matrix(some_matrix("t2-e2m1", 16, 64, seed))
        expected = copy.deepcopy(layer)(x)
        start = threading.Barrier(4)

        def multiply(layer=layer, start=start):
            start.wait()
            return layer(x)

        with ThreadPoolExecutor(4) as pool:
            found = [future.result() for future in [pool.submit(multiply) for _ in range(4)]]
        assert all(torch.equal(y, expected) for y in found)
        assert not layer.weight_codes.is_meta


def test_a_traced_layer_is_the_layer():
    layer, x = QuantizedLinear.from_matrix(some_matrix("t2-e2m1", 16, 64)), some_input(2, 64)
    traced = make_fx(layer)(x)
    assert torch.equal(traced(2 * x), layer(2 * x))
