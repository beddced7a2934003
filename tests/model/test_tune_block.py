"""Tuning of blocks: codes stay, scales move together, and a block gives more nearly what it did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.model.test_tune import divergence, tiny, windows
from torch import nn

from unspool.model.blocks import blocks_of
from unspool.model.calibrate import Plan, both_streams, calibrate_block
from unspool.model.linear import QuantizedLinear
from unspool.model.selection import plan
from unspool.model.sums import Streams
from unspool.model.swap import quantize
from unspool.pack.matrix import CodedMatrix
from unspool.spec.catalog import parse

PREFIX = "model.layers.0"


def block_of(
    name: str, steps: int, threads: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, CodedMatrix], float]:
    """The matrices of the first block, and how far its outputs are off, over their square."""
    model = tiny()
    formats = plan(model, parse(name))
    streams = both_streams(model, model.model.layers[0], windows(), dtype=dtype)
    steps_ = Plan(formats=formats, threads=threads, tune=steps, dtype=dtype)
    found = {
        each.name: each.matrix
        for each in calibrate_block(blocks_of(model).read(0), PREFIX, streams, steps_)
    }
    return found, off(streams)


def off(streams: Streams) -> float:
    now, wanted = torch.cat(streams.quantized), torch.cat(streams.original)
    return float((now - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("name", ["t2-e2m1:h32", "int4:b32-fp16", "t1-e2m1:h32"])
def test_a_tuned_block_is_nearer_and_has_the_same_codes(name: str) -> None:
    before, far = block_of(name, 0)
    after, near = block_of(name, 24)
    assert near < 0.99 * far
    first = f"{PREFIX}.self_attn.q_proj"  # later ones are encoded before the tuning as well
    for layer, matrix in before.items():
        assert np.array_equal(matrix.codes, after[layer].codes), layer
    assert not np.array_equal(before[first].scale, after[first].scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_a_byte_of_a_tuned_block(dtype: torch.dtype) -> None:
    one, two = (block_of("t2-e2m1:h32", 6, threads, dtype)[0] for threads in (1, 2))
    for name, matrix in one.items():
        for part, array in matrix.arrays.items():
            assert np.array_equal(array, two[name].arrays[part]), name


def test_a_model_of_tuned_blocks_diverges_less() -> None:
    found = []
    for steps in (0, 24):
        model = tiny()
        quantize(model, "t2-e2m1:h32", calibration=windows(), tune_blocks=steps)
        assert any(isinstance(module, QuantizedLinear) for module in model.modules())
        found.append(divergence(model, tiny()))
    assert found[1] < found[0]


def test_a_block_whose_layers_stay_dense_moves_both_streams_on() -> None:
    model = tiny()
    streams = both_streams(model, model.model.layers[0], windows())
    before = [x.clone() for x in streams.original]
    block: nn.Module = blocks_of(model).read(0)
    assert not list(calibrate_block(block, PREFIX, streams, Plan(formats={}, tune=3)))
    for now, same, old in zip(streams.quantized, streams.original, before, strict=True):
        assert torch.equal(now, same)
        assert not torch.equal(now, old)
