"""A quantized linear layer: nn.Linear's manners, no dense weight."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from unspool.errors import ModelError
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
    y = QuantizedLinear.from_matrix(matrix, bias)(x)
    expected = matmul(x.numpy(), matrix) + bias.numpy()
    # Float32 sums of k products: k roundings of at most 2^-24 of the sum of magnitudes, and a
    # rotation on either side adds log2 of its size.
    magnitude = np.abs(x.numpy()) @ np.abs(decode(matrix)).T + np.abs(bias.numpy())
    reach = np.linalg.norm(x.numpy(), axis=1)[:, None] * np.linalg.norm(decode(matrix), axis=1)
    assert np.all(np.abs(y.numpy() - expected) <= (72 + 32) * 2.0**-24 * (magnitude + reach))


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
    with pytest.raises(ModelError, match=r"found 2, 33; allowed: \[..., 32\]"):
        layer(some_input(2, 33))
    with pytest.raises(ModelError, match="CPU only"):
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


@pytest.mark.parametrize("name", FORMATS)
def test_what_stays_in_memory_is_hardly_more_than_what_is_stored(name):
    layer = QuantizedLinear.from_matrix(some_matrix(name, 512, 512))
    other = QuantizedLinear.from_matrix(some_matrix(name, 512, 512, 1))
    layer(some_input(1, 512))
    other(some_input(1, 512))
    shared = {id(array) for array in reachable_arrays(other._kernel[1])}
    buffers = [t.numpy() for t in layer.buffers()]
    cached = [
        array
        for array in reachable_arrays(layer._kernel[1])
        if id(array) not in shared and not any(np.shares_memory(array, b) for b in buffers)
    ]
    resident = sum(b.nbytes for b in buffers) + sum(array.nbytes for array in cached)
    assert resident <= 1.15 * layer.matrix().nbytes


def reachable_arrays(thing: object, seen: set[int] | None = None) -> list[np.ndarray]:
    """Every array an object holds on to, however deep."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return [thing]
    parts = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    if isinstance(thing, dict):
        parts += list(thing.values())
    if isinstance(thing, list | tuple):
        parts += list(thing)
    return [array for part in parts for array in reachable_arrays(part, seen)]


# In a process of its own: after one small layer has paid for libraries, threads and shared tables,
# a large one may add its stored bytes and little else, neither for good nor for a moment.
MEMORY_PROBE = """
import gc, json, sys
import numpy as np, torch
from unspool.model.linear import QuantizedLinear
from unspool.spec.catalog import parse

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def run(n, k, rows):
    layer = QuantizedLinear(parse(sys.argv[1]), k, n)
    for name, tensor in layer.named_buffers():
        tensor.fill_(1 if name != "weight_tensor_scale" else 0x3F800000)
    with torch.inference_mode():
        layer(torch.ones(rows, k))
    gc.collect()
    return layer

small = run(256, 256, 8)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
large = run(8192, 8192, 8)
print(json.dumps([status("VmRSS") - before, status("VmHWM") - before, large.nbytes]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_a_large_layer_costs_its_stored_bytes_and_no_dense_copy():
    child = [sys.executable, "-c", MEMORY_PROBE, "t2-e2m1"]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    grown, peak, stored = json.loads(done.stdout)
    # 16.8 MB stored, 268 MB dense. 2 MB: activations, allocator slack, thread stacks.
    assert grown <= 1.15 * stored + (2 << 20)
    assert peak <= 1.15 * stored + (8 << 20)
