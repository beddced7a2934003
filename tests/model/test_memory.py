"""Quantized layers stay coded: what they hold in memory, counted and measured."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest
import torch
from torch import nn

from unspool.model.linear import QuantizedLinear
from unspool.model.load import load_model
from unspool.model.swap import quantize
from unspool.spec.catalog import parse

DEMO = str(resources.files("unspool") / "data" / "demo-model")
LIMIT = 1.15
"""Resident bytes per stored byte."""


def some_layer(name: str, n: int, k: int) -> QuantizedLinear:
    """A layer of ones in bits, except for a tensor scale of 1.0."""
    layer = QuantizedLinear(parse(name), k, n)
    for buffer, tensor in layer.named_buffers():
        tensor.fill_(0x3F800000 if buffer == "weight_tensor_scale" else 1)
    return layer


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all buffers of quantized layers and of all arrays that their kernels keep."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    buffers = [tensor.numpy() for layer in layers for tensor in layer.buffers()]
    owned = {id(memory(array)): memory(array) for array in buffers}
    for layer in layers:
        assert layer._kernel is not None
        for array in reachable_arrays(layer._kernel[1], set()):
            owned[id(memory(array))] = memory(array)
    distinct: dict[int, int] = {}
    for array in owned.values():
        address = array.__array_interface__["data"][0]
        distinct[address] = max(distinct.get(address, 0), array.nbytes)
    return sum(distinct.values())


def memory(array: np.ndarray) -> np.ndarray:
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def reachable_arrays(thing: object, seen: set[int]) -> list[np.ndarray]:
    """Every array an object holds on to, however deep."""
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return [thing]
    names = [n for kind in type(thing).__mro__ for n in getattr(kind, "__slots__", ())]
    parts = [getattr(thing, name, None) for name in names]
    parts += list(getattr(thing, "__dict__", {}).values())
    if isinstance(thing, dict):
        parts += list(thing.values())
    if isinstance(thing, list | tuple | set):
        parts += list(thing)
    return [array for part in parts for array in reachable_arrays(part, seen)]


@pytest.mark.parametrize("name", ["t1-e2m1", "t2-e2m1", "t3-e2m3", "nvfp4", "lut-b", "int8"])
def test_a_layer_keeps_its_stored_bytes_and_little_else(name):
    layer = some_layer(name, 1024, 1024)
    layer(torch.ones(1, 1024))
    layer(torch.ones(9, 1024))
    assert layer.nbytes == layer.matrix().nbytes
    assert resident_bytes(layer) <= LIMIT * layer.nbytes


def test_a_whole_model_keeps_its_stored_bytes_and_little_else():
    model = load_model(DEMO)
    report = quantize(model, "t2-e2m1")
    with torch.inference_mode():
        model(torch.arange(9)[None])
    assert resident_bytes(model) <= LIMIT * report.bytes


# In a process of its own: after one small layer has paid for libraries, threads and shared tables,
# a large one may add its stored bytes and little else, neither for good nor for a moment.
MEMORY_PROBE = """
import gc, json, sys
import torch
from unspool.model.linear import QuantizedLinear
from unspool.spec.catalog import parse

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def run(n, k, rows):
    layer = QuantizedLinear(parse(sys.argv[1]), k, n)
    for name, tensor in layer.named_buffers():
        tensor.fill_(0x3F800000 if name == "weight_tensor_scale" else 1)
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
    assert grown <= LIMIT * stored + (2 << 20)
    assert peak <= LIMIT * stored + (8 << 20)
