"""Which layers are quantized, what is reported, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from unspool.errors import DeclarationError, ModelError, WeightError
from unspool.model import selection, swap
from unspool.model.linear import QuantizedLinear
from unspool.spec.catalog import parse


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(64, 64), nn.Linear(64, 32, bias=False)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.up_proj, self.down_proj = nn.Linear(64, 96), nn.Linear(96, 64)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.layers = nn.ModuleList([nn.ModuleList([Attention(), Mlp()]) for _ in range(2)])
        self.norm = nn.LayerNorm(64)
        self.lm_head = nn.Linear(64, 50, bias=False)
        self.lm_head.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.lm_head


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_all_linear_layers_but_head_and_routers(model):
    chosen = selection.plan(model, "int8")
    assert list(chosen) == [
        f"layers.{layer}.{part}"
        for layer in range(2)
        for part in ("0.q_proj", "0.k_proj", "1.up_proj", "1.down_proj")
    ]


def test_include_and_exclude_take_file_name_patterns_and_expressions(model):
    assert list(selection.plan(model, "int8", include=["*.q_proj"])) == [
        "layers.0.0.q_proj",
        "layers.1.0.q_proj",
    ]
    second = selection.plan(model, "int8", include=[r"re:^layers\.1\."], exclude=["*.0.*_proj"])
    assert list(second) == ["layers.1.1.up_proj", "layers.1.1.down_proj"]


@pytest.mark.parametrize("pattern", ["*.qq_proj", "re:nothing", "re:("])
def test_a_pattern_that_cannot_match_is_an_error(model, pattern):
    with pytest.raises(ModelError, match=r"matches no linear layer|not a regular expression"):
        selection.plan(model, "int8", exclude=[pattern])


def test_nothing_left_to_quantize_is_an_error(model):
    with pytest.raises(ModelError, match="none of them selected"):
        selection.plan(model, "int8", exclude=["*"])
    with pytest.raises(ModelError, match=r"without any nn\.Linear"):
        selection.plan(nn.Embedding(4, 4), "int8")


def test_an_unknown_format_names_near_ones(model):
    with pytest.raises(DeclarationError, match="nvfp4"):
        swap.quantize(model, "nvfp5")


def test_layers_are_swapped_and_reported(model):
    before = {
        n: m.weight.detach().clone() for n, m in model.named_modules() if type(m) is nn.Linear
    }
    embedding = model.embed.weight.detach().clone()
    calls = []
    report = swap.quantize(model, "int8", progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(done, 8) for done in range(9)]
    for row in report.layers:
        layer = model.get_submodule(row.name)
        assert isinstance(layer, QuantizedLinear)
        assert row.bytes == layer.nbytes
        assert row.bits_per_weight == 8 * row.bytes / row.weights
        error = (before[row.name] - layer.decode()).double().pow(2).sum()
        assert row.relative_error == pytest.approx(
            float(error / before[row.name].double().pow(2).sum()), rel=1e-9
        )
        assert row.relative_error < 1e-4
    assert report.bytes == sum(row.bytes for row in report.layers)
    assert torch.equal(model.embed.weight, embedding)
    assert model.lm_head.weight is model.embed.weight


def test_layers_that_read_one_activation_share_its_rotation(model):
    rotated = parse("int8:h32")
    rows = {row.name: row.rotation for row in swap.quantize(model, rotated).layers}
    assert rows["layers.0.0.q_proj"] == rows["layers.0.0.k_proj"] == "h32/64"
    assert rows["layers.0.1.down_proj"] == "h32/96"


def test_the_head_is_quantized_apart_from_the_embedding(model):
    embedding = model.embed.weight.detach().clone()
    report = swap.quantize(model, "int4", head="int8")
    assert report.layers[-1].name == "lm_head"
    assert report.layers[-1].format == "int8"
    assert isinstance(model.lm_head, QuantizedLinear)
    assert torch.equal(model.embed.weight, embedding)


def test_a_model_without_a_head_says_so():
    with pytest.raises(ModelError, match="no output head"):
        swap.quantize(nn.Sequential(nn.Linear(8, 8)), "int8", head="int8")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_before_anything_changes(model, bad):
    with torch.no_grad():
        model.layers[1][1].down_proj.weight[3, 7] = bad
    with pytest.raises(
        WeightError, match=r"layers.1.1.down_proj row 3, column 7.*found -?(nan|inf)"
    ):
        swap.quantize(model, "int8")
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())


def test_zero_rows_decode_to_exact_zeros(model):
    with torch.no_grad():
        model.layers[0][0].q_proj.weight[5:9] = 0
    swap.quantize(model, "int8", include=["layers.0.0.q_proj"])
    decoded = model.layers[0][0].q_proj.decode().numpy()
    assert np.all(decoded[5:9] == 0)
    assert np.any(decoded[4] != 0)


def test_a_quantized_model_is_not_quantized_again(model):
    swap.quantize(model, "int8")
    with pytest.raises(ModelError, match="quantized already"):
        swap.quantize(model, "int8")


def test_fused_experts_are_named_with_their_bytes():
    model = nn.ModuleDict({"q": nn.Linear(8, 8), "experts": nn.Module()})
    model["experts"].up_proj = nn.Parameter(torch.zeros(4, 8, 16))
    with pytest.warns(swap.LeftOutWarning, match=r"experts.up_proj.*stay as they are"):
        report = swap.quantize(model, "int8")
    assert report.left_out == (
        selection.LeftOut(
            name="experts.up_proj", shape=(4, 8, 16), bytes=4 * 8 * 16 * 4,
            why="its layout is not declared",
        ),
    )  # fmt: skip
    fresh = nn.ModuleDict({"q": nn.Linear(8, 8), "experts": model["experts"]})
    with pytest.raises(ModelError, match="2,048 bytes"):
        swap.quantize(fresh, "int8", strict=True)


def test_a_rotation_far_larger_than_a_layer_is_refused_with_sizes_that_fit(model):
    with pytest.raises(WeightError) as refused:
        selection.plan(model, "t2-e2m1:h4096")
    assert "layers.0.0.q_proj" in str(refused.value)
    assert "64 x 64 weights, padded to 64 x 4096" in str(refused.value)
    assert "k a multiple of 4096; or a smaller rotation, e.g. t2-e2m1:h64" in str(refused.value)
    assert selection.plan(model, "t2-e2m1:h64")


@pytest.mark.parametrize(
    ("name", "shape", "fits"),
    [
        ("t2-e2m1:h128", (64, 96), True),  # a third more
        ("t2-e2m1:h128", (64, 64), True),  # twice as much, just
        ("t2-e2m1:h128", (64, 40), False),
        ("t2-e2m1:h128", (64, 129), True),  # above the unit: at most twice
        ("t2-e2m1:h128-out", (8, 1024), False),
        ("t2-e2m1:raw", (1, 1), True),  # whole tiles are always allowed
        ("int8:h2", (1, 2), True),
    ],
)
def test_padding_up_to_twice_the_weight_is_allowed(name, shape, fits):
    if fits:
        selection.check_fit(parse(name), shape, "q")
    else:
        with pytest.raises(WeightError, match=r"q: .*does not fit.*e\.g\. .*:h8"):
            selection.check_fit(parse(name), shape, "q")
