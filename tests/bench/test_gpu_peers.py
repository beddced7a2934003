"""Other people's products in the GPU run: absent with a reason, asked as they document it.

On a fake GPU and on torch's CPU: compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch


@pytest.fixture
def on_cpu(board_of):
    def board(capability=(9, 0)):
        return board_of(capability, torch=torch)

    return board


def test_torch_bf16_multiplies(measured, on_cpu):
    from gpu.entrants import PEERS

    found = measured(PEERS[0], board=on_cpu())
    assert found.wrong == []
    assert {row["format"] for row in found.rows} == {"torch bf16"}
    assert {row["bits_per_weight"] for row in found.rows} == {16}


def test_peers_that_are_not_here_say_why(measured, on_cpu):
    from gpu.entrants import PEERS

    found = measured(*PEERS, board=on_cpu())
    absent = found.facts["absent"]
    assert absent["marlin int4"].startswith("marlin: No module named 'marlin'")
    assert absent["humming int2 fp8"].startswith("humming-kernels: No module named 'humming'")
    assert "_convert_weight_to_int4pack" in absent["torch int4"]
    assert found.wrong == []


@pytest.mark.parametrize(
    ("capability", "size", "reason"),
    [
        ((8, 0), (32, 128), "FP8 matrix units begin with 8.9"),
        ((9, 0), (40, 128), "sizes are multiples of 16"),
    ],
)
def test_fp8_refuses_with_the_reason(on_cpu, capability, size, reason):
    from gpu.peers import pytorch
    from gpu.stage import AbsentError

    with pytest.raises(AbsentError, match=reason):
        pytorch.fp8(on_cpu(capability), *size, 1)


def test_fp8_rounds_rows_to_their_largest(on_cpu):
    from gpu.peers import pytorch

    codes, scales = pytorch._rows(torch, torch.randn(5, 64) * 100)
    back = codes.float() * scales
    assert codes.float().abs().amax(1).tolist() == [448] * 5
    assert back.shape == (5, 64)


def test_int4_codes_are_of_their_groups():
    from gpu.peers import pytorch

    weight = torch.randn(8, 256)
    codes, scale, low = pytorch._groups(torch, weight)
    back = codes.reshape(8, 2, 128) * scale[..., None] + low[..., None]
    assert (codes.min(), codes.max()) == (0, 15)
    assert (back - weight.reshape(8, 2, 128)).abs().max() <= scale.max() / 2 + 1e-6


def test_humming_is_asked_as_its_documentation_has_it(measured, on_cpu, monkeypatch):
    from gpu.peers import humming
    from gpu.product import Entrant

    asked = []

    class HummingLayer(torch.nn.Module):
        def __init__(self, **named) -> None:
            super().__init__()
            asked.append(named)

        def load_from_unquantized(self, weight) -> None:
            self.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)

        def transform(self) -> None:
            self.ready = True

        def forward(self, inputs):
            return inputs @ self.weight.t()

    layer = types.SimpleNamespace(HummingLayer=HummingLayer)
    monkeypatch.setitem(sys.modules, "humming", types.ModuleType("humming"))
    monkeypatch.setitem(sys.modules, "humming.layer", layer)
    peer = Entrant(name="h", make=humming.maker(2, "fp8"), bits=2, peer=True)
    found = measured(peer, board=on_cpu())
    assert (found.wrong, found.facts.get("absent", {})) == ([], {})
    assert {row["activations"] for row in found.rows} == {"fp8"}
    assert asked[0] == {
        "shape_n": 32, "shape_k": 128, "weight_config": {"dtype": "int2"},
        "input_config": {"dtype": "float8e4m3"}, "torch_dtype": torch.bfloat16,
    }  # fmt: skip
    assert len(asked) == 3  # once a size: the other copies are copied


def test_humming_that_does_not_start_says_why(on_cpu, monkeypatch):
    from gpu.peers import humming
    from gpu.stage import AbsentError

    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("no nvcc")

    monkeypatch.setitem(sys.modules, "humming", types.ModuleType("humming"))
    monkeypatch.setitem(sys.modules, "humming.layer", Broken("humming.layer"))
    with pytest.raises(AbsentError, match="humming-kernels does not start: no nvcc"):
        humming.maker(2, "bfloat16")(on_cpu(), 32, 128, 1)
