"""Models that cannot be loaded say why."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unspool
from unspool.errors import ModelError
from unspool.model import shards
from unspool.model.load import QUANT_METHOD, empty_model, load_model, load_tokenizer

DEMO = Path(str(resources.files("unspool") / "data" / "demo-model"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the bundled model."""
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def set_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_the_stored_dtype_is_kept_unless_another_is_asked_for():
    assert load_model(DEMO).dtype == torch.bfloat16
    assert load_model(DEMO, dtype="float32").dtype == torch.float32
    assert not load_model(DEMO).training


def test_the_tokenizer_comes_along():
    text = "def main():\n    return 0\n"
    tokenizer = load_tokenizer(DEMO)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "path", ["nowhere", "no/such/folder", "./nowhere", "no/model-of-this-name"]
)
def test_a_missing_path(path):
    with pytest.raises(ModelError, match=r"no such folder|neither a folder nor a model on the hub"):
        unspool.load(path)


def test_a_file_is_no_folder(folder):
    with pytest.raises(ModelError, match="not a folder"):
        unspool.load(folder / "config.json")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"no config.json"):
        unspool.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no model_type"):
        unspool.load(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ModelError, match="not JSON"):
        unspool.load(tmp_path)


def test_code_from_a_model_is_never_run(folder):
    set_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelError, match="never run"):
        unspool.load(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        unspool.load(folder)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors weights"):
        unspool.load(folder)


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="truncated"):
        unspool.load(folder)


def test_an_unknown_architecture(folder):
    set_config(folder, model_type="no-such-type", architectures=["NoSuch"])
    with pytest.raises(ModelError, match="not a model that can be loaded"):
        unspool.load(folder)


def change_tensors(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_model_with_a_tensor_missing_is_not_filled_up_at_random(folder):
    change_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"missing keys; found model.layers.1.mlp.up_proj.weight"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_named(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(8, 8)}))
    with pytest.raises(ModelError, match=rf"mismatched keys; found {name}$"):
        load_model(folder)


@pytest.mark.parametrize("values", [{"hidden_size": "x"}, {"num_attention_heads": 0}])
def test_a_configuration_that_makes_no_sense(folder, values):
    set_config(folder, **values)
    for load in (load_model, empty_model):
        with pytest.raises(ModelError, match="not a model that can be loaded"):
            load(folder)


def test_a_checkpoint_is_no_dense_model(folder):
    set_config(folder, quantization_config={"quant_method": QUANT_METHOD})
    for load in (load_model, empty_model):
        with pytest.raises(ModelError, match="quantized already"):
            load(folder)


def test_a_path_too_long_is_an_error_of_ours():
    with pytest.raises(ModelError, match=r"cannot be read|no such folder"):
        unspool.load("x" * 5000)


def test_a_shard_that_cannot_be_read(folder, monkeypatch):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shards, "_header_text", refused)
    with pytest.raises(ModelError, match=r"model.safetensors: cannot be read; found Permission"):
        load_model(folder)
