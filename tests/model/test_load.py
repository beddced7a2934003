"""Models that cannot be loaded say why."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch

import unspool
from unspool.errors import ModelError
from unspool.model.load import load_model, load_tokenizer

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
