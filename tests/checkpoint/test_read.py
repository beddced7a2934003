"""A checkpoint that is not what it declares is refused, with the tensor named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unspool.checkpoint.manifest import Layer, Manifest
from unspool.checkpoint.read import open_checkpoint, verify
from unspool.checkpoint.write import Payload, write_checkpoint
from unspool.errors import CheckpointError
from unspool.model.layout import STORED_DTYPE, as_buffers
from unspool.pack.matrix import array_specs
from unspool.spec.catalog import parse


def a_checkpoint(folder: Path, name: str = "nvfp4") -> Path:
    """One layer "q" of an all-ones matrix in bits."""
    fmt = parse(name)
    arrays = {p: np.ones(s.shape, s.dtype) for p, s in array_specs(fmt, 16, 32).items()}
    config = Manifest(layers={"q": Layer(format=fmt, shape=(16, 32))}).to_json()
    tensors = {
        f"q.{buffer}": Payload(dtype=STORED_DTYPE[str(a.dtype)], shape=a.shape, read=lambda a=a: a)
        for buffer, a in as_buffers(arrays).items()
    }
    return write_checkpoint(folder, {"model_type": "llama", "quantization_config": config}, tensors)


def changed(folder: Path, change) -> Path:
    file = folder / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)
    return folder


def test_a_good_one_is_read(tmp_path):
    checkpoint = verify(a_checkpoint(tmp_path / "out"))
    assert checkpoint.bits_per_weight == 8 * checkpoint.nbytes / (16 * 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("q.weight_scale"), "no q.weight_scale"),
        (lambda t: t.update({"q.weight": np.ones((16, 32), np.float32)}), "not declared"),
        (lambda t: t.update({"r.weight_codes": t["q.weight_codes"]}), "found r.weight_codes"),
        (lambda t: t.update({"q.weight_table": t["q.weight_scale"]}), "found q.weight_table"),
        (lambda t: t.update({"q.weight_codes": t["q.weight_codes"][:1]}), r"I32 1, 4, 8|I32 \[1"),
        (lambda t: t.update({"q.weight_scale": t["q.weight_scale"].astype("<i2")}), "I16"),
        (lambda t: t["q.weight_scale"].__setitem__((3, 1), 0x7F), r"not finite.*0x7f"),
        (lambda t: t["q.weight_tensor_scale"].fill(0x7F800000), "tensor scale"),
        (lambda t: t["q.weight_tensor_scale"].fill(0x7FC00000), "tensor scale"),
        (lambda t: t["q.weight_tensor_scale"].fill(-1), "tensor scale"),
    ],
)
def test_tensors_that_contradict_the_manifest(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        verify(changed(a_checkpoint(tmp_path / "out"), change))


@pytest.mark.parametrize(("name", "bad"), [("fp8-e4m3", 0x7F), ("fp8-e5m2", 0x7C)])
def test_a_code_that_is_no_number(tmp_path, name, bad):
    out = a_checkpoint(tmp_path / "out", name)
    changed(out, lambda t: t["q.weight_codes"].view(np.uint8).reshape(-1).__setitem__(70, bad))
    with pytest.raises(CheckpointError, match=r"q tile \[0, 1\] step 6: .* not finite"):
        verify(out)


def test_a_table_entry_that_is_no_number(tmp_path):
    out = a_checkpoint(tmp_path / "out", "lut-b")
    changed(out, lambda t: t["q.weight_table"].__setitem__((1, 0, 5), 0x7F))
    with pytest.raises(CheckpointError, match=r"q at \[1, 0, 5\].*'table' is not finite"):
        verify(out)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="not quantized by unspool"):
        open_checkpoint(tmp_path)


def test_a_declared_size_is_compared_before_it_is_allocated(tmp_path):
    out = a_checkpoint(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["layers"]["q"]["shape"] = [(1 << 31) - 1, (1 << 31) - 1]
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not match the format"):
        open_checkpoint(out)
