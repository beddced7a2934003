"""Streaming: the checkpoint of a whole model, a block at a time, and again after an error.

Kills are in tests/bench/test_crash.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import unspool
from unspool.checkpoint.journal import Journal
from unspool.checkpoint.read import verify
from unspool.checkpoint.stream import quantize_folder
from unspool.encode.ldlq import Calibration
from unspool.errors import CheckpointError
from unspool.model.calibrate import Plan
from unspool.model.load import empty_model, unfilled_model
from unspool.model.selection import plan

FORMAT = "t2-e2m1:h32"
SETTINGS = {"format": FORMAT, "tokens": 192}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=128, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("stream") / "model"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def windows() -> torch.Tensor:
    return torch.randint(0, 128, (4, 48), generator=torch.Generator().manual_seed(1))


def planned(source: Path, *, importance: bool = False) -> Plan:
    formats = plan(empty_model(source), FORMAT)
    return Plan(formats=formats, how=Calibration(), threads=1, importance=importance)


def streamed(
    source: Path,
    out: Path,
    work: Path | None = None,
    *,
    resume: bool = False,
    importance: bool = False,
) -> bytes:
    journal = Journal(work, SETTINGS, resume=resume) if work else None
    steps = planned(source, importance=importance)
    quantize_folder(source, out, steps, windows=windows(), journal=journal)
    return content(out)


def content(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return streamed(source, tmp_path_factory.mktemp("whole") / "out")


def test_it_gives_the_tensors_of_a_model_quantized_in_memory(source: Path, tmp_path: Path) -> None:
    streamed(source, tmp_path / "streamed")
    model = unspool.load(source)
    unspool.quantize(model, FORMAT, calibration=windows(), threads=1)
    unspool.save(model, tmp_path / "saved", source=source)
    verify(tmp_path / "streamed")
    name = "model.safetensors"
    assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_a_model_without_its_weights_has_its_buffers(source: Path) -> None:
    model = unfilled_model(source)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_a_journal_leaves_the_bytes_as_they_are(source: Path, tmp_path: Path, whole: bytes) -> None:
    assert streamed(source, tmp_path / "a", tmp_path / "work") == whole
    names = sorted(path.name for path in (tmp_path / "work").iterdir())
    blocks = [f"block-{place:05}.safetensors" for place in range(3)]
    assert names == [*blocks, "log.jsonl", "settings.json"]
    (tmp_path / "work" / blocks[1]).unlink()  # as if the run had ended before
    assert streamed(source, tmp_path / "b", tmp_path / "work", resume=True) == whole


def test_gradients_are_kept_and_a_run_that_lost_some_goes_on_to_the_same_bytes(
    source: Path, tmp_path: Path, whole: bytes
) -> None:
    work = tmp_path / "work"
    first = streamed(source, tmp_path / "a", work, importance=True)
    assert first != whole
    chunks = sorted(work.glob("importance-*"))
    assert len(chunks) == 4  # the eight parts of four windows
    chunks[1].unlink()  # as if the run had ended before
    for path in work.glob("block-*"):
        path.unlink()
    before = chunks[0].stat().st_mtime_ns
    assert streamed(source, tmp_path / "b", work, resume=True, importance=True) == first
    assert chunks[0].stat().st_mtime_ns == before
    model = unspool.load(source)  # a tied head, which the folder does not hold
    unspool.quantize(model, FORMAT, calibration=windows(), threads=1, importance=True)
    unspool.save(model, tmp_path / "saved", source=source)
    name = "model.safetensors"
    assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_a_run_with_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    Journal(tmp_path / "work", SETTINGS, resume=False)
    with pytest.raises(CheckpointError, match=r"holds a run.*--resume"):
        Journal(tmp_path / "work", SETTINGS, resume=False)
    other = {**SETTINGS, "tokens": 96}
    with pytest.raises(CheckpointError, match=r"tokens: 192 before, 96 now"):
        Journal(tmp_path / "work", other, resume=True)


def test_one_run_at_a_time_has_the_work_folder(tmp_path: Path) -> None:
    first = Journal(tmp_path / "work", SETTINGS, resume=False)
    with pytest.raises(CheckpointError, match="another run is at work"):
        Journal(tmp_path / "work", SETTINGS, resume=True)
    del first
    Journal(tmp_path / "work", SETTINGS, resume=True)


def test_a_line_of_the_log_that_a_kill_cut_off_stays_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS, resume=False)
    (tmp_path / "log.jsonl").write_text('{"time": 1, "bl')
    journal.put(1, {}, {"name": "b"})
    cut, whole = (tmp_path / "log.jsonl").read_text().splitlines()
    assert cut == '{"time": 1, "bl'
    assert json.loads(whole)["block"] == 1


def test_a_full_disk_names_the_block_and_keeps_the_others(
    source: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unspool.checkpoint import journal

    real = journal.write_shard

    def full(path: Path, tensors: object) -> None:
        if "00001" in path.name:
            raise OSError(28, "No space left on device")
        real(path, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "write_shard", full)
        with pytest.raises(
            CheckpointError, match=r"block 1 \(model\.layers\.1\) cannot be stored.*No space left"
        ):
            streamed(source, tmp_path / "out", tmp_path / "work")
    assert not (tmp_path / "out").exists()
    assert streamed(source, tmp_path / "out", tmp_path / "work", resume=True) == whole
