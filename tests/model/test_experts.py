"""Fused experts as layers like any other: the same products, checkpoints, calibration."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    Llama4TextConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

import unspool
from unspool.checkpoint.journal import Journal
from unspool.checkpoint.read import verify
from unspool.checkpoint.stream import quantize_folder
from unspool.encode.ldlq import Calibration
from unspool.errors import ModelError
from unspool.integrations.transformers import UnspoolConfig
from unspool.matmul.cuda import simulate
from unspool.model import calibrate, ops, sums
from unspool.model.calibrate import PLAIN, Plan, both_streams, calibrate_block, workers
from unspool.model.coverage import Coverage, Reach, coverage
from unspool.model.experts import Expert, Experts, settle_experts, split_experts, why_not
from unspool.model.importance import TOKENS, Importance
from unspool.model.linear import QuantizedLinear
from unspool.model.load import empty_model
from unspool.model.processors import SimulatedProcessor
from unspool.model.selection import fused_experts, linear_names, plan
from unspool.model.sums import gather
from unspool.model.swap import LeftOutWarning
from unspool.model.taps import Parts

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "vocab_size": 128, "max_position_embeddings": 64, "num_experts_per_tok": 2,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
MIXTURES = {
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, intermediate_size=96, moe_intermediate_size=32, num_experts=4
    ),
    "mixtral": MixtralConfig(**SIZES, intermediate_size=32, num_local_experts=4),
    # a buffer of biases that routes, and shared experts
    "deepseek_v3": DeepseekV3Config(
        **{**SIZES, "head_dim": 16}, intermediate_size=96, moe_intermediate_size=32,
        n_routed_experts=4, n_shared_experts=1, n_group=2, topk_group=2, first_k_dense_replace=0,
        q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=32,
    ),
    # [experts, k, n], gate and up by turns, biases
    "gpt_oss": GptOssConfig(
        **SIZES, intermediate_size=32, num_local_experts=4, sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
    ),
}  # fmt: skip
FAMILIES = pytest.mark.parametrize("family", list(MIXTURES))
FORMAT = "t2-e2m1:h32"
LAYER = "model.layers.0.mlp.experts"


def mixture(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(MIXTURES[family]), dtype=torch.float32)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("_bias", "gate.weight", "router.weight")):
                tensor.normal_(0, 0.3)  # zeros in new models
    return model.eval()


def windows(count: int = 6, tokens: int = 48) -> torch.Tensor:
    return torch.randint(0, 128, (count, tokens), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(windows(2)).logits


def moe(model: PreTrainedModel) -> Experts:
    found = model.get_submodule(LAYER)
    assert isinstance(found, Experts)
    return found


def routed(tokens: int = 12, top: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, choices and weights of choices; the last expert is nobody's."""
    dice = torch.Generator().manual_seed(3)
    x = torch.randn(tokens, 64, generator=dice)
    choices = torch.rand(tokens, 3, generator=dice).argsort(1)[:, :top]
    return x, choices, torch.rand(tokens, top, generator=dice)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the models, in bfloat16, as transformers stores them."""
    base = tmp_path_factory.mktemp("mixtures")
    for name in MIXTURES:
        mixture(name).to(torch.bfloat16).save_pretrained(base / name)
    return {name: base / name for name in MIXTURES}


@FAMILIES
def test_split_experts_give_what_the_model_gives_from_the_same_memory(family: str) -> None:
    model = mixture(family)
    want, fused = logits(model), model.get_submodule(LAYER).gate_up_proj
    originals = split_experts(model)
    assert len(originals) == 2
    layer = model.get_submodule(f"{LAYER}.3.gate_up_proj")
    assert layer.weight.shape == (64, 64)
    assert layer.weight.data_ptr() == fused[3].data_ptr()
    torch.testing.assert_close(logits(model), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(copy.deepcopy(model)), want, rtol=1e-5, atol=1e-5)
    again = moe(model).fused()
    assert type(again) is type(originals[LAYER])
    for name, parameter in originals[LAYER].named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    settle_experts(model, originals, ())
    assert model.get_submodule(LAYER) is originals[LAYER]


def test_a_choice_that_is_no_expert_gives_nothing() -> None:
    model = mixture("gpt_oss")
    split_experts(model)
    x, choices, weights = routed()
    want = moe(model)(x, choices, weights)
    more = torch.cat([choices, torch.tensor([[4], [-1]] * 6)], 1), torch.ones(12, 1)
    assert torch.equal(moe(model)(x, more[0], torch.cat([weights, more[1]], 1)), want)
    assert moe(model)(x[:0], choices[:0], weights[:0]).shape == (0, 64)


def test_experts_without_a_gate_and_what_cannot_be_split() -> None:
    class Plain(nn.Module):
        has_gate, has_bias, has_post_expert_norm, is_transposed = False, False, False, False
        _apply_gate = None

        def __init__(self) -> None:
            super().__init__()
            self.up_proj = nn.Parameter(torch.randn(3, 32, 64))
            self.down_proj = nn.Parameter(torch.randn(3, 64, 32))
            self.act_fn = nn.ReLU()

    fused, (x, choices, weights) = Plain(), routed(top=1)
    assert why_not(fused) is None
    up = torch.einsum("mk,mnk->mn", x, fused.up_proj[choices[:, 0]]).relu()
    want = torch.einsum("mk,mnk->mn", up, fused.down_proj[choices[:, 0]]) * weights
    torch.testing.assert_close(Experts(fused)(x, choices, weights), want, rtol=1e-4, atol=1e-3)
    fused.has_post_expert_norm = True
    assert why_not(fused) == "it normalises what its experts give"
    fused.has_post_expert_norm, fused.scale = False, nn.Parameter(torch.ones(1))
    assert why_not(fused) == "it has other parameters"


def test_experts_of_another_layout_stay_and_are_named_with_the_reason() -> None:
    sizes = {name: size for name, size in SIZES.items() if name != "num_experts_per_tok"}
    config = Llama4TextConfig(
        **sizes, intermediate_size=32, intermediate_size_mlp=32, num_local_experts=4
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with pytest.warns(LeftOutWarning, match="cannot be split into layers, its layout is not decl"):
        report = unspool.quantize(model, "int8")
    assert len(report.left_out) == 4
    assert report.left_out == fused_experts(model)
    with pytest.raises(ModelError, match="its layout is not declared"):
        unspool.quantize(copy.deepcopy(model), "int8", strict=True)


@FAMILIES
@pytest.mark.parametrize("fmt", ["int8", FORMAT])
def test_coded_experts_multiply_with_their_decoded_weights(family: str, fmt: str) -> None:
    model = mixture(family)
    report = unspool.quantize(model, fmt, include=["*.experts.*"])
    assert {layer.name for layer in report.layers} == {
        f"model.layers.{block}.mlp.experts.{e}.{name}"
        for block in range(2) for e in range(4) for name in ("gate_up_proj", "down_proj")
    }  # fmt: skip
    assert report.left_out == ()
    coded, dense = moe(model), copy.deepcopy(moe(model))
    for expert in dense.children():
        for name, layer in list(expert.named_children()):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight = nn.Parameter(layer.decode(), requires_grad=False)
            expert.add_module(name, plain)
            coded.get_submodule(expert_place(dense, expert)).get_submodule(
                name
            ).activations = "float32"
    x, choices, weights = routed(40)
    with torch.no_grad():
        want = dense.fused()(x, choices, weights)  # the model's own module
        torch.testing.assert_close(coded(x, choices, weights), want, rtol=1e-4, atol=1e-5)


@FAMILIES
def test_one_token_alone_has_the_bits_that_it_has_among_others(family: str) -> None:
    model = mixture(family)
    unspool.quantize(model, FORMAT, include=["*.experts.*"])
    x, choices, weights = routed()
    every = moe(model)(x, choices, weights)
    for place in range(3):
        one = slice(place, place + 1)
        assert torch.equal(moe(model)(x[one], choices[one], weights[one]), every[one])


def expert_place(experts: nn.Module, one: nn.Module) -> str:
    return next(name for name, child in experts.named_children() if child is one)


@FAMILIES
def test_a_checkpoint_comes_back_by_every_way(family: str, tmp_path: Path) -> None:
    model = mixture(family)
    unspool.quantize(model, FORMAT)
    want, out = logits(model), unspool.save(model, tmp_path / "out")
    found = verify(out)
    assert found.manifest.layers[f"{LAYER}.2.down_proj"].shape == (64, 32)
    assert f"{LAYER}.2.down_proj.weight_codes" in found.tensors
    assert not any(name.endswith(("experts.down_proj", "w2.weight")) for name in found.tensors)
    assert torch.equal(logits(unspool.load(out)), want)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), want)
    config = UnspoolConfig(dequantize=True)
    with pytest.warns(UserWarning, match="quantization_config"):
        dense = AutoModelForCausalLM.from_pretrained(out, quantization_config=config)
    assert type(dense.get_submodule(LAYER)) is type(mixture(family).get_submodule(LAYER))
    coded = unspool.load(out, activations="float32")
    torch.testing.assert_close(logits(dense), logits(coded), rtol=1e-3, atol=1e-4)
    again = unspool.save(coded, tmp_path / "again", source=out)
    name = "model.safetensors"
    assert (again / name).read_bytes() == (out / name).read_bytes()


@FAMILIES
def test_a_projection_that_is_left_out_stays_as_it_was(family: str, tmp_path: Path) -> None:
    model, before = mixture(family), mixture(family)
    unspool.quantize(model, FORMAT, exclude=["*.down_proj"])
    down = f"{LAYER}.down_proj"
    assert torch.equal(model.get_parameter(down), before.get_parameter(down))
    assert isinstance(model.get_submodule(f"{LAYER}.0.gate_up_proj"), QuantizedLinear)
    out = unspool.save(model, tmp_path / "out")
    back = unspool.load(out)
    assert torch.equal(logits(back), logits(model))
    assert torch.equal(back.get_parameter(down), before.get_parameter(down))


def test_the_experts_of_a_projection_are_quantized_all_or_none() -> None:
    model = mixture("qwen3_moe")
    kept = model.get_submodule(LAYER)
    with pytest.raises(ModelError, match=r"experts\.\*\.down_proj: the experts.*3 of 4 chosen"):
        unspool.quantize(model, "int8", exclude=["*.experts.3.down_proj"])
    assert model.get_submodule(LAYER) is kept
    unspool.quantize(model, "int8", exclude=["*.experts.*"])
    assert model.get_submodule(LAYER) is kept


def steps(folder: Path, **more: object) -> Plan:
    formats = plan(empty_model(folder), FORMAT, exclude=more.pop("exclude", ()))
    return Plan(formats=formats, how=Calibration(), threads=1, **more)


@FAMILIES
@pytest.mark.parametrize("exclude", [(), ("*.down_proj",)], ids=["all", "some"])
def test_a_block_at_a_time_gives_the_tensors_of_a_whole_model(
    stored: dict[str, Path], family: str, exclude: tuple[str, ...], tmp_path: Path
) -> None:
    source = stored[family]
    quantize_folder(source, tmp_path / "a", steps(source, exclude=exclude), windows=windows())
    model = unspool.load(source)
    unspool.quantize(model, FORMAT, exclude=exclude, calibration=windows(), threads=1)
    unspool.save(model, tmp_path / "b", source=source)
    verify(tmp_path / "a")
    tensors, whole = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert tensors.keys() == whole.keys()
    for name, tensor in tensors.items():  # biases that route are widened where a model is loaded
        assert torch.equal(tensor.to(whole[name].dtype), whole[name])
    assert torch.equal(logits(unspool.load(tmp_path / "a")), logits(model))


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    stored: dict[str, Path], tmp_path: Path
) -> None:
    source, work = stored["mixtral"], tmp_path / "work"
    how = steps(source, importance=True, tune=2)
    for name, resume in (("a", False), ("b", True)):
        journal = Journal(work, {}, resume=resume)
        quantize_folder(source, tmp_path / name, how, windows=windows(), journal=journal)
        (work / "block-00001.safetensors").unlink()  # as if the run had ended before
        journal._hold.release()
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    told = [line["experts"] for line in lines if "experts" in line]
    assert [each["experts"] for each in told] == [4, 4, 4]
    assert 0 < told[0]["least"] <= told[0]["median"] <= 6 * 48


def test_the_size_of_a_pass_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for limit in (calibrate.SUMS_BYTES, 1):
        monkeypatch.setattr(calibrate, "SUMS_BYTES", limit)
        model = mixture("qwen3_moe")
        unspool.quantize(model, FORMAT, calibration=windows(), threads=2)
        found.append(model.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


@FAMILIES
def test_calibration_brings_the_outputs_nearer(family: str) -> None:
    ids, original = windows(24), mixture(family)
    errors = []
    for given in (None, ids):
        model = mixture(family)
        report = unspool.quantize(
            model, FORMAT, include=["*.experts.*"], calibration=given, threads=2
        )
        with torch.no_grad():
            errors.append(float((model(ids).logits - original(ids).logits).square().mean()))
    assert errors[1] < 0.8 * errors[0]
    assert report.coverage.experts == 8
    per_block = sum(layer.tokens for layer in report.layers if layer.name.startswith(LAYER)) / 2
    assert per_block == 2 * ids.numel()  # two experts of every token


def test_few_tokens_do_little_harm() -> None:
    # Of random tokens little is to be learnt; with the usual damping alone this made it worse.
    held, original = windows(12), mixture("qwen3_moe")
    errors = []
    for given in (None, windows(2, 16)):
        model = mixture("qwen3_moe")
        unspool.quantize(
            model, FORMAT, include=["*.experts.*"], calibration=given, threads=2, unreached=PLAIN
        )
        with torch.no_grad():
            errors.append(float((model(held).logits - original(held).logits).square().mean()))
    assert errors[1] < 1.1 * errors[0]


def blind(family: str = "qwen3_moe") -> PreTrainedModel:
    """A model whose routers like all experts alike, so that all tokens have the same two."""
    model = mixture(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate.weight"):
                parameter.zero_()
    return model


def test_experts_that_no_token_reaches_are_an_error_or_rounded_plainly() -> None:
    with pytest.raises(ModelError, match=r"no token of the calibration.*experts\.\d.*and|found"):
        unspool.quantize(blind(), FORMAT, calibration=windows())
    model, plainly = blind(), blind()
    report = unspool.quantize(
        model, FORMAT, calibration=windows(), unreached=PLAIN, importance=True, tune_blocks=1
    )
    assert report.coverage.unreached == 4
    assert report.coverage.least == 0
    unspool.quantize(plainly, FORMAT)
    for layer in report.layers:
        if ".experts." in layer.name:
            codes = [m.get_submodule(layer.name).matrix().codes for m in (model, plainly)]
            assert np.array_equal(*codes) == (layer.tokens == 0)


def test_coverage_is_of_experts_alone() -> None:
    def reach(name: str, columns: int, tokens: int) -> Reach:
        return Reach(name=name, columns=columns, tokens=tokens)

    assert coverage([reach("layers.0.self_attn.q_proj", 8, 3)]) is None
    found = coverage(
        reach(f"mlp.experts.{e}.{name}", columns, tokens)
        for e, tokens in enumerate((0, 5, 8, 40))
        for name, columns in (("gate_up_proj", 8), ("down_proj", 4))
    )
    assert found == Coverage(experts=4, least=0, median=6.5, thin=1, unreached=1)
    assert "1 on fewer tokens than columns, 1 on none" in str(found)


def test_how_inputs_moved_is_told_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture("qwen3_moe")
    split_experts(model)
    block = copy.deepcopy(model.model.layers[0])
    streams = both_streams(model, model.model.layers[0], windows(2))
    dice = torch.Generator().manual_seed(2)
    streams.quantized = [x + torch.randn(x.shape, generator=dice) for x in streams.original]
    seen: list[dict[int, torch.Tensor]] = []

    def keep(expert: Expert, args: tuple[str, torch.Tensor, torch.Tensor]) -> None:
        if args[0] == "gate_up_proj":
            seen.append(dict(zip(args[2].tolist(), args[1], strict=True)))

    handle = block.mlp.experts.get_submodule("1").register_forward_pre_hook(keep)
    want, inputs = torch.zeros(64, 64), torch.zeros(64, 64)
    for place in range(2):
        seen.clear()
        with torch.no_grad():
            for side in (streams.quantized, streams.original):
                block(side[place], *streams.call.args, **streams.call.kwargs)
        new, old = seen
        assert new.keys() != old.keys()
        for token, x in new.items():
            inputs += torch.outer(x, x)
            want += torch.outer(old[token] - x, x) if token in old else 0
    handle.remove()
    names = [["mlp.experts.0.gate_up_proj"], ["mlp.experts.1.gate_up_proj"]]
    with workers(1) as each:
        _, found = gather(Parts(block), Parts(block), names, streams, each)
        assert found.drift is None  # too few for that
        monkeypatch.setattr(sums, "DRIFT_TOKENS", 0)
        _, found = gather(Parts(block), Parts(block), names, streams, each)
    weight = block.get_submodule(names[1][0]).weight
    torch.testing.assert_close(torch.from_numpy(found.inputs), inputs, rtol=1e-4, atol=1e-3)
    drift = torch.from_numpy(found.drift)
    torch.testing.assert_close(drift, weight.detach() @ want, rtol=1e-3, atol=1e-2)


def test_tokens_of_experts_have_the_importance_that_the_original_gave_them() -> None:
    window = {
        "experts.1.down_proj": np.array([1.0, 3.0], np.float32),
        "experts.1" + TOKENS: np.array([2, 5], np.int32),
    }
    importance = Importance.of([window], [0])
    assert importance.means == {"experts.1.down_proj": 2.0}
    found = importance.roots(0, ["experts.1.down_proj"], 3, np.array([2, 4, 5]))
    np.testing.assert_allclose(found[:, 0] ** 2, [0.5, 1, 1.5], rtol=1e-6)


def test_importance_reaches_every_expert_of_a_model() -> None:
    model = mixture("qwen3_moe")
    split_experts(model)
    blocks = calibrate_blocks(model)
    assert blocks[f"{LAYER}.1.down_proj"].shape == blocks[f"{LAYER}.1{TOKENS}"].shape
    assert (np.diff(blocks[f"{LAYER}.1{TOKENS}"]) > 0).all()
    assert (blocks[f"{LAYER}.1.gate_up_proj"] > 0).all()


def calibrate_blocks(model: nn.Module) -> dict[str, np.ndarray]:
    """The norms of the first window."""
    from unspool.model.blocks import blocks_of

    blocks = blocks_of(model)
    streams = both_streams(model, model.get_submodule(blocks.names[0]), windows(2))
    calibrate.weigh(streams, model, blocks, windows(2), 1)
    how = Plan(formats=plan(model, FORMAT), threads=1, importance=True)
    assert len(list(calibrate_block(blocks.read(0), blocks.names[0], streams, how))) == 12
    return dict(streams.importance.windows[0])


@pytest.mark.parametrize(("family", "machine"), [("qwen3_moe", "sm90"), ("gpt_oss", "sm80")])
def test_grouped_kernels_of_a_gpu_give_nearly_the_same(family: str, machine: str) -> None:
    reason = simulate.why_not()
    if reason:
        pytest.skip(reason)
    model = mixture(family)
    unspool.quantize(model, "s3-e4m3:h32", include=["*.experts.*"])
    experts, processor = moe(model), SimulatedProcessor(machine)
    assert experts.alike()
    for projection in experts.projections:
        experts.on_gpu(projection, processor)
    x, choices, _ = routed()
    choices[3, 1] = -1
    with torch.no_grad():
        found, want = experts.launched(x, choices), experts._one_by_one(x, choices)
    assert float((found - want).norm() / want.norm()) < 0.02
    assert torch.equal(found[3, 1], torch.zeros(64))
    assert experts.on_gpu("down_proj") is experts._uploaded["down_proj"][1]
    experts.to(torch.float32)
    assert not experts._uploaded


def test_the_operator_keeps_the_promises_of_an_operator() -> None:
    model = mixture("qwen3_moe")
    unspool.quantize(model, "int8", include=["*.experts.*"])
    experts, given = moe(model), routed()
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(ops.experts, (*given, experts._number), test_utils=tests)
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(*given), experts(*given))
    assert copy.deepcopy(experts)._number != experts._number
    given[0].requires_grad_()
    with pytest.raises(ModelError, match="no gradient"):
        experts(*given).sum().backward()


def test_every_expert_is_a_layer_of_an_empty_model(stored: dict[str, Path]) -> None:
    names = linear_names(empty_model(stored["mixtral"]))
    assert sum(".experts." in name for name in names) == 2 * 4 * 2
