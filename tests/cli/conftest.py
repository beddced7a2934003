"""The command line in this process, tiny models with the bundled tokenizer, one checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.utils import logging

from unspool.cli import bundled
from unspool.cli.main import status

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 4096, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
FAMILIES = {
    "qwen3": Qwen3Config, "mistral": MistralConfig, "gemma": GemmaConfig,
    "qwen3_moe": Qwen3MoeConfig,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def _no_loading_bars():
    """As in a process of its own, where the command line says so before transformers is there."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture
def run(capsys) -> Run:
    def run_here(*arguments: object) -> Result:
        capsys.readouterr()
        code = status([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run_here


def write_model(folder: Path, family: str = "qwen3", **changed: Any) -> Path:
    torch.manual_seed(0)
    own = EXPERTS if family == "qwen3_moe" else {}
    config = FAMILIES[family](**{**SIZES, **own, **changed})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(bundled.folder() / name, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def mixture(tmp_path_factory) -> Path:
    """A model of fused experts."""
    return write_model(tmp_path_factory.mktemp("models") / "mixture", "qwen3_moe")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(bundled.read_text(None, bundled.NAME)[:4000], encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory) -> Path:
    """The tiny model at 3 bits, by the command line itself; tests copy it before they harm it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-3"
    assert status(["quantize", str(tiny), "-o", str(folder), "--bits", "3", "--quiet"]) == 0
    return folder


@pytest.fixture
def goes_through(run, tiny, text, tmp_path) -> Callable[[Path], None]:
    """Quantizes the tiny model in the format of a file, and evaluates what was stored."""

    def there(file: Path) -> None:
        out = tmp_path / "out"
        done = run("quantize", tiny, "-o", out, "--format", file, "--json")
        assert done.code == 0, done.err
        done = run("eval", out, "--baseline", tiny, "--text", text, "--window", 32, "--json")
        assert done.code == 0, done.err
        assert 0 < done.json["kl"] < 2

    return there


@pytest.fixture
def damaged(checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
