"""Mixtures of experts by the GPU's grouped kernels, on a CPU that plays the GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unspool.errors import ModelError
from unspool.matmul.cuda import launch, simulate
from unspool.model.gpu import upload
from unspool.model.gpu_experts import GpuExperts
from unspool.model.processors import SimulatedProcessor
from unspool.pack.random import random_matrix
from unspool.spec.catalog import FORMATS
from unspool.spec.rotation import Rotation

N, K, EXPERTS = 300, 520, 3
TURNED = FORMATS["s3-e4m3"].vary(rotation=Rotation.parse("h64-both"))
MATRICES = [random_matrix(FORMATS["s3-e4m3"], N, K, seed) for seed in range(EXPERTS)]


@pytest.fixture(autouse=True)
def compiler() -> None:
    reason = simulate.why_not()
    if reason:
        pytest.skip(reason)


def rows(m: int) -> torch.Tensor:
    return torch.randn(m, K, generator=torch.Generator().manual_seed(m))


@pytest.mark.parametrize(
    ("machine", "fmt", "activations"),
    [
        ("sm80", FORMATS["s3-e4m3"], "int8"),
        ("sm90", FORMATS["lut3-row"], "fp8"),
        ("sm90", TURNED, "auto"),
        ("sm100", FORMATS["nvfp4"], "fp4"),
    ],
    ids=["int8", "tables of rows", "rotated outputs", "scales in tensor memory"],
)
def test_a_token_has_the_bits_that_its_experts_give_it_alone(machine, fmt, activations):
    processor = SimulatedProcessor(machine)
    matrices = [random_matrix(fmt, N, K, seed) for seed in range(EXPERTS)]
    every = GpuExperts(matrices, processor, activations=activations)
    x = rows(12)
    choices = torch.from_numpy(np.random.default_rng(0).integers(-1, EXPERTS, (12, 2)))
    choices[:, 1].masked_fill_(choices[:, 1] == 1, 2)
    y = every.multiply(x, choices)
    alone = [upload(one, processor, activations=activations).multiply(x) for one in matrices]
    want = torch.stack([*alone, torch.zeros(12, N)])[choices, torch.arange(12)[:, None]]
    assert torch.equal(y, want)  # -1: the last, zeros


def test_many_tokens_of_an_expert_stand_in_wider_tiles_with_the_same_bits():
    every = GpuExperts(MATRICES, SimulatedProcessor("sm90"))
    x, choices = rows(40), torch.from_numpy(np.arange(40)[:, None] % 2)
    assert torch.equal(every.multiply(x, choices)[30:], every.multiply(x[30:], choices[30:]))
    assert [launches.planned.tokens for launches in every._launches.values()] == [16, 8]


def test_tiles_take_turns_where_their_sums_would_need_more_memory(monkeypatch):
    every = GpuExperts(MATRICES, SimulatedProcessor("sm90"))
    x, choices = rows(40), torch.from_numpy(np.arange(80).reshape(40, 2) % 3)
    whole, grids = every.multiply(x, choices), []
    run = every.processor.run

    def seen(kernel, grid, *given) -> None:
        grids.append((kernel.name, grid[1]))
        run(kernel, grid, *given)

    (planned,) = [each.planned for each in every._launches.values()]
    monkeypatch.setattr(launch, "MOST_PARTIAL_BYTES", planned.partial_bytes // planned.tiles * 2)
    monkeypatch.setattr(every.processor, "run", seen)
    assert torch.equal(every.multiply(x, choices), whole)
    tiles = [count for name, count in grids if name == "unspool_multiply"]
    assert sum(tiles) == planned.tiles
    assert max(tiles) == 2 < len(tiles)


def test_warming_up_compiles_all_that_a_product_runs(monkeypatch):
    every = GpuExperts(MATRICES, SimulatedProcessor("sm90"))
    ready, ran = [], []
    monkeypatch.setattr(every.processor, "ready", ready.extend)
    monkeypatch.setattr(every.processor, "run", lambda kernel, *_: ran.append(kernel))
    every.warm_up([1, 40], 2, torch.float32)
    every.multiply(rows(40), torch.zeros(40, 2, dtype=torch.int32))
    assert [kernel.name for kernel in ran] == ["unspool_prepare", "unspool_multiply"]
    assert set(ran) < set(ready)


def test_no_tokens_give_no_results():
    every = GpuExperts(MATRICES, SimulatedProcessor("sm90"))
    none = torch.zeros(0, 2, dtype=torch.int64)
    assert every.multiply(rows(4)[:0], none).shape == (0, 2, N)


def test_what_does_not_fit_is_refused():
    other = random_matrix(FORMATS["s3-e4m3"], N + 1, K)
    with pytest.raises(ModelError, match=r"one format and one shape.*301"):
        GpuExperts([*MATRICES, other], SimulatedProcessor("sm90"))
    every = GpuExperts(MATRICES, SimulatedProcessor("sm90"))
    with pytest.raises(ModelError, match=r"choices of experts do not fit.*\[3, 2\]"):
        every.multiply(rows(4), torch.zeros(3, 2, dtype=torch.int64))
