"""The training script makes a loadable model and keeps the split, on a text of a few pages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = Path(__file__).parents[2] / "examples" / "train_demo_model.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_demo_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def text_folders(tmp_path_factory) -> tuple[Path, Path]:
    docs, stdlib = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("lib")
    for page in range(28):
        body = f"Page number {page}\n{'=' * 20}\n\n" + "A page says little, at length.\n" * 20
        (docs / f"page{page:02d}.rst").write_text(body)
    (docs / "changelog.rst").write_text("never read\n")
    (stdlib / "module.py").write_text("def twice(x):\n    return x + x\n" * 40)
    (stdlib / "test").mkdir()
    (stdlib / "test" / "test_module.py").write_text("never read\n")
    return docs, stdlib


@pytest.fixture(scope="module")
def trained(script, text_folders, tmp_path_factory) -> Path:
    docs, stdlib = text_folders
    out = tmp_path_factory.mktemp("made") / "model"
    sizes = ["--steps", "3", "--batch", "2", "--window", "32", "--device", "cpu"]
    script.main(["--docs", str(docs), "--stdlib", str(stdlib), "--out", str(out), *sizes])
    return out


def test_every_twentieth_page_from_the_eighth_is_held_out(script, text_folders):
    texts = script.read_texts(*text_folders)
    assert [text.splitlines()[0] for text in texts.heldout] == ["Page number 7", "Page number 27"]
    assert len(texts.docs) == 26
    assert len(texts.stdlib) == 1
    assert not any("never read" in text for text in texts.docs + texts.stdlib)


def test_the_model_loads_back_and_speaks_in_the_vocabulary(trained):
    model = AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == 5_770_496
    text = "A page says little — at length.\n"
    tokens = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(tokens[0]) == text
    assert model(tokens).logits.shape == (1, tokens.shape[1], 4096)


def test_the_texts_are_written_beside_the_model(trained):
    heldout = (trained / "heldout.txt").read_text()
    assert heldout.startswith("Page number 7\n")
    assert "\n\nPage number 27\n" in heldout
    pages = (trained / "calibration.txt").read_text()
    assert "Page number 6\n" in pages
    assert "Page number 7\n" not in pages


def test_training_lowers_the_loss(script):
    torch.manual_seed(0)
    batch = torch.randint(4096, (1, 32))
    model = script.LlamaForCausalLM(script.model_config())
    before = script.heldout_loss(model, batch[0], 32)
    script.train(model.train(), iter([batch] * 4), 4)
    assert script.heldout_loss(model, batch[0], 32) < before
