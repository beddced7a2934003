"""Products of tensors by the GPU's kernels, on a CPU that plays the GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unspool.errors import DeclarationError, ModelError
from unspool.matmul.cuda import simulate
from unspool.matmul.reference import decode
from unspool.model import linear
from unspool.model.gpu import GpuMatrix, upload
from unspool.model.processors import SimulatedProcessor
from unspool.pack.random import random_matrix
from unspool.spec.catalog import FORMATS
from unspool.spec.rotation import Rotation

N, K = 300, 520


@pytest.fixture(autouse=True)
def compiler() -> None:
    reason = simulate.why_not()
    if reason:
        pytest.skip(reason)


def uploaded(name: str, machine: str, **given) -> tuple[GpuMatrix, torch.Tensor]:
    matrix = random_matrix(FORMATS[name], N, K)
    found = upload(matrix, SimulatedProcessor(machine), **given)
    return found, torch.from_numpy(decode(matrix))


def rows(m: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(m, K, generator=torch.Generator().manual_seed(m)).to(dtype)


def relative_error(y: torch.Tensor, want: torch.Tensor) -> float:
    return float((y.double() - want).norm() / want.norm())


@pytest.mark.parametrize("machine", ["sm80", "sm90"])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 0.004), (torch.bfloat16, 0.006), (torch.float16, 0.004)]
)
def test_products_of_every_floating_type(machine, dtype, bound):
    found, weight = uploaded("s3-e4m3", machine)
    x = rows(5, dtype)
    y = found.multiply(x.reshape(5, 1, K))
    assert y.shape == (5, 1, N)
    assert y.dtype == dtype
    assert relative_error(y.reshape(5, N), x.double() @ weight.double().T) < bound


def test_every_captured_product_has_counters_of_its_own(monkeypatch):
    found, _ = uploaded("s3-e4m3", "sm80")
    fused, kept = found._fused, []  # kept: memory given back would be given out again

    def seen(x, output, launches):
        kept.append(launches.arrivals)
        return fused(x, output, launches)

    monkeypatch.setattr(found, "_fused", seen)
    want = found.multiply(rows(3))
    found.warm_up([1, 3], torch.float32)
    ahead = {each.data_ptr() for spare in found._spare.values() for each in spare}
    monkeypatch.setattr(SimulatedProcessor, "capturing", True)
    for m in (3, 1, 3):
        assert torch.equal(found.multiply(rows(3)[:m]), want[:m])
    eager, first, second, third = (each.data_ptr() for each in kept)
    assert {first, second} == ahead  # made before the capture
    assert len({eager, first, second, third}) == 4
    monkeypatch.setattr(SimulatedProcessor, "capturing", False)
    found.multiply(rows(3))
    assert kept[-1].data_ptr() == eager


@pytest.mark.parametrize("machine", ["sm80", "sm90"])
def test_many_rows_go_through_a_library_with_the_same_result(machine):
    fused, weight = uploaded("s3-e4m3", machine, library_rows=None)
    library, _ = uploaded("s3-e4m3", machine, library_rows=4)
    x = rows(6)
    want = x.double() @ weight.double().T
    assert relative_error(library.multiply(x), want) < 0.001
    assert relative_error(fused.multiply(x), want) < 0.004


def test_int8_has_the_same_bits_from_a_library_for_its_sums_are_exact():
    fused, _ = uploaded("int8", "sm80", activations="int8", library_rows=None)
    library, weight = uploaded("int8", "sm80", activations="int8", library_rows=1)
    x = rows(4)
    x[1] = 0
    y = library.multiply(x)
    assert torch.equal(y, fused.multiply(x))
    assert relative_error(y, x.double() @ weight.double().T) < 0.01
    x[2, 3] = torch.nan
    assert torch.equal(library.multiply(x).isfinite().all(dim=1), torch.tensor([1, 1, 0, 1]).bool())


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "lut-b"])
def test_scales_in_registers_and_sums_and_tables_with_many_rows(name):
    library, weight = uploaded(name, "sm90", library_rows=1)
    x = rows(3)
    assert relative_error(library.multiply(x), x.double() @ weight.double().T) < 0.004


def test_rotated_outputs_are_turned_back():
    fmt = FORMATS["s3-e4m3"].vary(rotation=Rotation.parse("h64-both"))
    matrix = random_matrix(fmt, N, K)
    x = rows(2)
    want = x.double() @ torch.from_numpy(decode(matrix)).double().T
    for library_rows in (None, 1):
        found = upload(matrix, SimulatedProcessor("sm90"), library_rows=library_rows)
        assert relative_error(found.multiply(x), want) < 0.004


def test_the_same_matrix_serves_every_batch_and_no_rows():
    found, _ = uploaded("s3-e4m3", "sm90")
    x = rows(20)
    whole = found.multiply(x)
    assert torch.equal(found.multiply(x[:1]), whole[:1])
    assert found.multiply(x[:0]).shape == (0, N)


def test_warming_up_compiles_all_that_a_product_runs(monkeypatch):
    found, _ = uploaded("s3-e4m3", "sm90")
    ready, ran = [], []
    processor = found.processor
    monkeypatch.setattr(processor, "ready", ready.extend)
    monkeypatch.setattr(processor, "run", lambda kernel, *_: ran.append(kernel))
    found.warm_up([1, 9], torch.float32)
    found.multiply(rows(9))
    assert [kernel.name for kernel in ran] == ["unspool_prepare", "unspool_multiply"]
    assert set(ran) < set(ready)


def test_what_does_not_fit_is_refused():
    found, _ = uploaded("s3-e4m3", "sm90")
    with pytest.raises(ModelError, match=r"does not fit.*\[2, 7\].*520"):
        found.multiply(torch.zeros(2, 7))
    with pytest.raises(ModelError, match="float64"):
        found.multiply(torch.zeros(2, K, dtype=torch.float64))


def test_memory_is_that_of_the_codes():
    found, _ = uploaded("s3-e4m3", "sm90")
    stored = 512 * 768 * 3 / 8  # padded to row blocks and stages
    assert stored < found.nbytes < 1.02 * stored + 4 * 512 + 4096
    assert np.isfinite(found.row_scales.view(torch.float32).numpy()).all()


def test_a_layer_multiplies_with_the_activations_that_it_is_told(monkeypatch):
    monkeypatch.setattr(linear, "processor", lambda ordinal: SimulatedProcessor("sm90"))
    layer = linear.QuantizedLinear.from_matrix(random_matrix(FORMATS["s3-e4m3"], N, K))
    weight, x, errors = torch.from_numpy(decode(layer.matrix())).double(), rows(3), {}
    for name in ("auto", "fp8", "fp8x3"):
        layer.gpu_activations = name
        assert layer.on_gpu() is layer.on_gpu()
        assert layer.on_gpu().made.activations == ("fp8x2" if name == "auto" else name)
        errors[name] = relative_error(layer.on_gpu().multiply(x), x.double() @ weight.T)
    assert errors["fp8x3"] < errors["auto"] / 3 < errors["fp8"] / 9


def test_activations_that_no_gpu_or_not_this_one_has_are_refused(monkeypatch):
    monkeypatch.setattr(linear, "processor", lambda ordinal: SimulatedProcessor("sm80"))
    layer = linear.QuantizedLinear.from_matrix(random_matrix(FORMATS["s3-e4m3"], N, K))
    with pytest.raises(DeclarationError, match=r"no such activations on a GPU; found fp7"):
        layer.gpu_activations = "fp7"
    layer.gpu_activations = "fp8"
    with pytest.raises(DeclarationError, match=r"no product of s3-e4m3 on sm80.*float16"):
        layer.on_gpu()
