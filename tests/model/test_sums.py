"""What is summed over a text: moments of the inputs, drift, in one order whoever does it."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from unspool.model import sums
from unspool.model.blocks import blocks_of
from unspool.model.calibrate import both_streams, workers
from unspool.model.sums import Streams, Sums, chunks, gather
from unspool.model.taps import Parts, Taps, run_block


def tiny(**sizes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    given = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1} | sizes
    config = LlamaConfig(
        **given, num_attention_heads=2, num_key_value_heads=1, vocab_size=128,
        max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def windows(count: int = 6, tokens: int = 48) -> torch.Tensor:
    return torch.randint(0, 128, (count, tokens), generator=torch.Generator().manual_seed(1))


def drifted(count: int = 6, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Streams]:
    """A block and its streams, the quantized one some way off."""
    model = tiny()
    block = blocks_of(model).read(0)
    streams = both_streams(model, model.model.layers[0], windows(count), dtype=dtype)
    dice = torch.Generator().manual_seed(2)
    streams.quantized = [x + 0.1 * torch.randn(x.shape, generator=dice) for x in streams.original]
    return block, streams


def gathered(names: list[str], threads: int = 2, **more: bool) -> tuple[Sums, nn.Module, Streams]:
    block, streams = drifted()
    with workers(threads) as each:
        (found,) = gather(Parts(block), Parts(block), [names], streams, each, **more)
        return found, block, streams


def read(block: nn.Module, name: str, hidden: torch.Tensor, streams: Streams) -> torch.Tensor:
    """What a layer reads, in float64."""
    found = []
    layer = block.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    run_block(block, hidden, streams.call)
    handle.remove()
    return found[0].reshape(-1, found[0].shape[-1]).double()


def inputs(block: nn.Module, name: str, streams: Streams) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer reads in the quantized and in the original stream, over all windows."""
    sides = streams.quantized, streams.original
    new, old = (torch.cat([read(block, name, x, streams) for x in side]) for side in sides)
    return new, old


def close(found: np.ndarray, wanted: torch.Tensor) -> None:
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-4, atol=1e-3)


def test_layers_that_share_an_activation_get_its_moments_and_how_it_moved() -> None:
    found, block, streams = gathered(["self_attn.q_proj", "self_attn.k_proj"])
    new, old = inputs(block, "self_attn.q_proj", streams)
    close(found.inputs, new.T @ new)
    close(found.moved, (old - new).T @ new)
    assert found.drift is None
    assert found.tokens == len(new)


@pytest.mark.parametrize("name", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_layer_that_adds_to_the_stream_is_asked_for_what_the_stream_lacks(name: str) -> None:
    found, block, streams = gathered([name])
    new, old = inputs(block, name, streams)
    weight = block.get_submodule(name).weight.double()
    beside = {"self_attn.o_proj": "input_layernorm", "mlp.down_proj": "post_attention_layernorm"}
    lacks = []
    for before, now in zip(streams.original, streams.quantized, strict=True):
        then, here = (read(block, beside[name], x, streams) for x in (before, now))
        lacks.append((then - here).reshape(-1, 64).double())
    close(found.drift, ((old - new) @ weight.T + torch.cat(lacks)).T @ new)
    assert found.moved is None


def test_one_layer_is_asked_for_drift_unless_it_is_taller_than_wide() -> None:
    for name, direct in (("self_attn.k_proj", True), ("mlp.up_proj", False)):
        found, block, streams = gathered([name])
        new, old = inputs(block, name, streams)
        assert (found.drift is not None) == direct == (found.moved is None)
        weight = block.get_submodule(name).weight.double()
        made = found.drift if direct else weight.detach().numpy() @ found.moved
        close(made, weight @ (old - new).T @ new)


@pytest.mark.parametrize("together", [48, 100, 4096])
def test_neither_threads_nor_blocks_below_the_diagonal_show(monkeypatch, together: int) -> None:
    monkeypatch.setattr(sums, "BLOCK", 20)
    monkeypatch.setattr(sums, "TOGETHER", together)
    one, two = (gathered(["mlp.down_proj"], threads=t)[0] for t in (1, 2))
    for array, same in zip(one.arrays(), two.arrays(), strict=True):
        assert (array is None and same is None) or np.array_equal(array, same)
    np.testing.assert_array_equal(np.tril(one.inputs, -20), np.triu(one.inputs, 20).T)


def test_the_last_pass_of_a_block_moves_the_original_on() -> None:
    found, block, streams = gathered(["mlp.down_proj"], last=True)
    same, _, before = gathered(["mlp.down_proj"])
    for after, hidden in zip(streams.original, before.original, strict=True):
        assert torch.equal(after, run_block(block, hidden, streams.call))
    assert np.array_equal(found.drift, same.drift)


def test_a_settled_part_runs_once_per_window_and_gives_the_same() -> None:
    block, streams = drifted(3)
    runs = []
    block.self_attn.q_proj.register_forward_pre_hook(lambda *_: runs.append(1))
    names = ["mlp.gate_proj", "mlp.down_proj"]
    found = []
    with Parts(block) as parts:
        for settled in (["self_attn.q_proj"], names):  # first nothing is, then attention
            parts.settle([*settled, *names])
            for name in names:
                with Taps(parts, [name]) as taps:
                    read = [taps.read(x, streams.call, i) for i, x in enumerate(streams.original)]
                found.append([each[name].x for each in read])
    assert len(runs) == 3 + 3 + 3
    for once, again in ((found[0], found[2]), (found[1], found[3])):
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_part_that_still_changes_or_runs_to_the_end_is_not_kept() -> None:
    block, streams = drifted(1)
    hidden = streams.original[0]
    with Parts(block) as parts:
        parts.settle([])
        with Taps(parts, ["mlp.down_proj"], through=True) as taps:
            before = taps.read(hidden, streams.call)
        block.mlp.down_proj.weight.data.zero_()
        block.self_attn.o_proj.weight.data.zero_()
        with parts.window(0):
            after = run_block(block, hidden, streams.call)
    assert torch.equal(after, hidden)
    assert not torch.equal(before["<hidden states after the block>"].x, hidden)
    assert "forward" not in vars(block.mlp)


def test_passes_in_bfloat16_find_nearly_the_same() -> None:
    exact, rounded = drifted(), drifted(dtype=torch.bfloat16)
    found = []
    for block, streams in (exact, rounded):
        halved = deepcopy(block).to(streams.call.dtype) if streams is rounded[1] else block
        with workers(1) as each:
            found += gather(Parts(halved), Parts(halved), [["mlp.down_proj"]], streams, each)
    assert found[1].inputs.dtype == np.float32
    for name in ("inputs", "drift"):
        wanted, near = (getattr(each, name) for each in found)
        off = np.linalg.norm(near - wanted) / np.linalg.norm(wanted)
        assert 0 < off < 0.02, name


@pytest.mark.parametrize("processes", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 129])
def test_chunks_do_not_depend_on_the_processes_and_the_first_has_the_first_window(
    count: int, processes: int
) -> None:
    found = chunks(count, processes)
    assert [places for _, places in found] == [places for _, places in chunks(count, 1)]
    assert [place for _, places in found for place in places] == list(range(count))
    owners = [owner for owner, _ in found]
    assert owners == sorted(owners)  # so a process's windows are one stretch
    assert (owners[0], found[0][1].start) == (0, 0)
    assert set(owners) == set(range(min(processes, 8)))
    assert len(found[0][1]) > 0
