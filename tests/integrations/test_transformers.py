"""Checkpoints of real architectures: what was in memory comes back bit by bit, by every way in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.quantizers import auto
from transformers.utils import logging

import unspool
from unspool.errors import CheckpointError, DeclarationError, ModelError
from unspool.integrations.transformers import UnspoolConfig, register
from unspool.model.linear import QuantizedLinear

DEMO = Path(str(resources.files("unspool") / "data" / "demo-model"))
IDS = torch.arange(1, 25).reshape(2, 12)
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
CONFIGS = {
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=False, attention_bias=True),
    "mistral": MistralConfig(**SIZES),
    "gemma": GemmaConfig(**SIZES),
}
MOE = Qwen3MoeConfig(
    **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
)


def new_model(config) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def quantized_names(model) -> set[str]:
    return {n for n, module in model.named_modules() if isinstance(module, QuantizedLinear)}


@pytest.fixture(autouse=True)
def heard(caplog):
    """What transformers says, warnings and worse; nothing, unless a test expects it to."""
    expected: list[str] = []
    logging.enable_propagation()
    yield expected
    logging.disable_propagation()
    said = [r.getMessage() for r in caplog.get_records("call") if r.levelno >= 30]
    assert len(said) == len(expected)
    assert all(part in text for part, text in zip(expected, said, strict=True))


def test_the_bundled_model_comes_back_by_every_way(tmp_path):
    model = unspool.load(DEMO)
    report = unspool.quantize(model, "t2-e2m1", include=["re:layers.[01]."])
    expected = logits(model)
    out = unspool.save(model, tmp_path / "out", source=DEMO, max_shard_bytes=1_000_000)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    for loaded in (unspool.load(out), AutoModelForCausalLM.from_pretrained(out)):
        assert torch.equal(logits(loaded), expected)
        assert quantized_names(loaded) == {row.name for row in report.layers}
        assert loaded.dtype == torch.bfloat16
    text = "import os\n"
    assert (
        unspool.load_tokenizer(out)(text)["input_ids"]
        == unspool.load_tokenizer(DEMO)(text)["input_ids"]
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("head", [None, "int8"])
def test_every_architecture_comes_back_with_and_without_a_quantized_head(name, head, tmp_path):
    model = new_model(CONFIGS[name].__class__.from_dict(CONFIGS[name].to_dict()))
    embedding = model.get_input_embeddings().weight.detach().clone()
    unspool.quantize(model, "nvfp4", head=head)
    expected = logits(model)
    out = unspool.save(model, tmp_path / "out")
    for loaded in (unspool.load(out), AutoModelForCausalLM.from_pretrained(out)):
        assert torch.equal(logits(loaded), expected)
        assert ("lm_head" in quantized_names(loaded)) == (head is not None)
        assert torch.equal(loaded.get_input_embeddings().weight, embedding)
        tied = CONFIGS[name].tie_word_embeddings and head is None
        assert loaded.config.tie_word_embeddings == tied
    assert len(quantized_names(model)) == 14 + (head is not None)


def test_a_loaded_model_saves_itself_again(tmp_path):
    model = new_model(CONFIGS["mistral"])
    unspool.quantize(model, "lut-b")
    expected = logits(model)
    model.save_pretrained(tmp_path / "first", max_shard_size="20KB")
    loaded = unspool.load(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    again = unspool.load(tmp_path / "second")
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(logits(again), expected)
    unspool.save(again, tmp_path / "third")
    assert torch.equal(logits(unspool.load(tmp_path / "third")), expected)


def test_another_dtype_changes_no_scale(tmp_path):
    model = new_model(CONFIGS["llama-tied"])
    unspool.quantize(model, "nvfp4")
    out = unspool.save(model, tmp_path / "out")
    loaded = unspool.load(out, dtype="float32")
    assert loaded.dtype == torch.float32
    for name in quantized_names(model):
        stored = model.get_submodule(name).matrix().arrays
        for part, array in loaded.get_submodule(name).matrix().arrays.items():
            assert array.tobytes() == stored[part].tobytes()


def test_the_base_model_alone_loads(tmp_path, heard):
    heard.append("lm_head.weight")  # as with every checkpoint that has a head
    model = new_model(CONFIGS["mistral"])
    unspool.quantize(model, "int8")
    out = unspool.save(model, tmp_path / "out")
    base = AutoModel.from_pretrained(out)
    with torch.inference_mode():
        expected, found = model.model(IDS)[0], base(IDS)[0]
    assert torch.equal(found, expected)


def test_generation_goes_on_from_a_cache(tmp_path):
    model = new_model(CONFIGS["qwen3"])
    unspool.quantize(model, "int8", head="int8")
    cached = model.generate(IDS, max_new_tokens=5, do_sample=False)
    anew = model.generate(IDS, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(cached, anew)


def test_it_can_be_made_dense_again(tmp_path):
    model = new_model(CONFIGS["llama-tied"])
    unspool.quantize(model, "int8")
    decoded = model.model.layers[0].self_attn.q_proj.decode().to(torch.bfloat16)
    out = unspool.save(model, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers repeats what the argument asks for
        asked = AutoModelForCausalLM.from_pretrained(
            out, quantization_config=UnspoolConfig(dequantize=True)
        )
    for dense in (asked, unspool.load(out).dequantize()):
        assert quantized_names(dense) == set()
        assert torch.equal(dense.model.layers[0].self_attn.q_proj.weight, decoded)
        assert getattr(dense.config, "quantization_config", None) is None


def test_a_model_cannot_be_quantized_while_loading(tmp_path):
    with pytest.raises(ValueError, match="pre-quantized"):
        AutoModelForCausalLM.from_pretrained(DEMO, quantization_config=UnspoolConfig())


def test_fused_experts_come_back_coded_or_as_they_were(tmp_path):
    for excluded, name in ((), "3.gate_up_proj.weight_codes"), (("*.experts.*",), "gate_up_proj"):
        model = new_model(MOE)
        report = unspool.quantize(model, "int8", exclude=excluded)
        assert report.left_out == ()
        expected = logits(model)
        out = unspool.save(model, tmp_path / f"out-{len(excluded)}")
        assert torch.equal(logits(unspool.load(out)), expected)
        assert f"model.layers.0.mlp.experts.{name}" in unspool.load(out).state_dict()
        model.save_pretrained(tmp_path / f"twin-{len(excluded)}")
        twin = AutoModelForCausalLM.from_pretrained(tmp_path / f"twin-{len(excluded)}")
        assert torch.equal(logits(twin), expected)


def test_registering_twice_is_harmless():
    before = auto.LOADING_ATTRIBUTES_CONFIG_TYPES
    register()
    assert before == auto.LOADING_ATTRIBUTES_CONFIG_TYPES
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["unspool"] is UnspoolConfig


def test_load_needs_no_second_import(tmp_path):
    model = new_model(CONFIGS["mistral"])
    unspool.quantize(model, "int8")
    out = unspool.save(model, tmp_path / "out")
    code = f"import unspool; m = unspool.load({str(out)!r}); print(m.model.layers[1].mlp.up_proj)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "format=int8" in done.stdout


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_activations_on_a_gpu_are_told_to_every_layer_by_either_way(saved):
    config = UnspoolConfig(gpu_activations="fp8")
    for model in (
        unspool.load(saved, gpu_activations="fp8"),
        AutoModelForCausalLM.from_pretrained(saved, quantization_config=config),
    ):
        layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
        assert {layer.gpu_activations for layer in layers} == {"fp8"}
    with pytest.raises(DeclarationError, match="no such activations on a GPU; found bf16"):
        unspool.load(saved, gpu_activations="bf16")


def edit_config(out: Path, change) -> None:
    config = json.loads((out / "config.json").read_text())
    change(config)
    (out / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    model = new_model(CONFIGS["mistral"])
    unspool.quantize(model, "nvfp4")
    return unspool.save(model, tmp_path_factory.mktemp("saved") / "out")


@pytest.fixture
def broken(saved, tmp_path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(saved, tmp_path / "broken"))


def test_a_checkpoint_of_a_newer_version_names_the_version(broken):
    edit_config(broken, lambda c: c["quantization_config"].update(format_version=2, version="7.1"))
    with pytest.raises(CheckpointError, match=r"unspool 7.1 or later"):
        unspool.load(broken)
    with pytest.raises(CheckpointError, match=r"unspool 7.1 or later"):
        AutoModelForCausalLM.from_pretrained(broken)


def test_a_truncated_checkpoint(broken):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        unspool.load(broken)


def test_a_layer_the_model_does_not_have(broken):
    edit_config(broken, lambda c: c.update(num_hidden_layers=1))
    with pytest.raises(CheckpointError, match="no such linear layer"):
        unspool.load(broken)


def test_a_model_larger_than_its_checkpoint(broken, heard):
    heard.append("MISSING")
    edit_config(broken, lambda c: c.update(num_hidden_layers=3))
    with pytest.raises(CheckpointError, match="missing keys"):
        unspool.load(broken)


def test_code_beside_a_checkpoint_is_never_run(broken):
    edit_config(broken, lambda c: c.update(auto_map={"AutoModelForCausalLM": "evil.Model"}))
    with pytest.raises(ModelError, match="never run"):
        unspool.load(broken)


@pytest.fixture(scope="module")
def saved_fp8(tmp_path_factory) -> Path:
    model = new_model(CONFIGS["mistral"])
    unspool.quantize(model, "fp8-e4m3")
    return unspool.save(model, tmp_path_factory.mktemp("saved") / "out")


@pytest.mark.parametrize("load", [unspool.load, AutoModelForCausalLM.from_pretrained])
def test_a_code_that_is_no_number_is_refused_by_every_way(saved_fp8, tmp_path, load):
    broken = Path(shutil.copytree(saved_fp8, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_codes"][0, 0, 0] = 0x7F  # NaN in E4M3
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj tile \[0, 0\].*not finite"):
        load(broken)


def test_a_dense_tensor_of_another_shape(broken, heard):
    heard.append("MISMATCH")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(3, dtype=torch.bfloat16)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"mismatched keys; found model\.norm\.weight$"):
        unspool.load(broken)


@pytest.mark.parametrize("values", [{"model_type": "no-such-type"}, {"hidden_size": "x"}])
def test_a_configuration_that_makes_no_sense(broken, values):
    edit_config(broken, lambda c: c.update(values))
    with pytest.raises(CheckpointError, match="not a model that can be loaded"):
        unspool.load(broken)
