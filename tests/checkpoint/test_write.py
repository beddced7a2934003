"""A checkpoint is written whole or not at all, and read back checked."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from unspool.checkpoint import durable, write
from unspool.checkpoint.manifest import Layer, Manifest
from unspool.checkpoint.read import matrices, open_checkpoint, verify
from unspool.checkpoint.save import copied_files
from unspool.checkpoint.write import Payload, check_room, split, write_checkpoint
from unspool.errors import CheckpointError
from unspool.model.layout import STORED_DTYPE, as_buffers
from unspool.pack.matrix import CodedMatrix, array_specs, coded_matrix
from unspool.spec.catalog import parse


def some_matrix(name: str, n: int, k: int) -> CodedMatrix:
    rng, fmt, arrays = np.random.default_rng(0), parse(name), {}
    for part, spec in array_specs(fmt, n, k).items():
        # 0x3c3c3c3c and below: no byte of it is a NaN of E4M3 or E5M2
        top = {"codes": 1, "tensor_scale": 2}.get(part, 120)
        arrays[part] = rng.integers(1, top, spec.shape, np.uint64, endpoint=True).astype(spec.dtype)
    return coded_matrix(fmt, (n, k), arrays)


MATRICES = {
    "layers.0.q": some_matrix("nvfp4", 24, 40),
    "layers.0.k": some_matrix("fp8-e4m3", 8, 40),
    "layers.1.q": some_matrix("lut-b", 16, 64),
}
MANIFEST = Manifest(
    layers={name: Layer(format=m.format, shape=m.shape) for name, m in MATRICES.items()}
)
CONFIG = {"model_type": "llama", "quantization_config": MANIFEST.to_json()}


def payload(array: np.ndarray, dtype: str | None = None) -> Payload:
    kind = dtype or {**STORED_DTYPE, "float32": "F32"}[str(array.dtype)]
    return Payload(dtype=kind, shape=array.shape, read=lambda: array)


def all_payloads() -> dict[str, Payload]:
    found = {"norm.weight": payload(np.ones(6, np.uint16), "BF16")}
    for name, matrix in MATRICES.items():
        for buffer, array in as_buffers(matrix.arrays).items():
            found[f"{name}.{buffer}"] = payload(array)
    return found


def written(folder: Path, **options) -> Path:
    return write_checkpoint(folder, CONFIG, all_payloads(), {"README.md": b"card"}, **options)


@pytest.mark.parametrize("limit", [1, 500, 2000, 1 << 40])
def test_what_is_written_is_read_back(tmp_path, limit):
    checkpoint = verify(written(tmp_path / "out", max_shard_bytes=limit))
    assert checkpoint.manifest.to_json() == MANIFEST.to_json()
    for name, matrix in matrices(checkpoint):
        for part, array in matrix.arrays.items():
            assert np.array_equal(array, MATRICES[name].arrays[part])
        assert checkpoint.layer_nbytes(name) == MATRICES[name].nbytes
    assert checkpoint.nbytes == 12 + sum(m.nbytes for m in MATRICES.values())


def test_shards_keep_their_limit_and_their_order():
    tensors = {f"t{i}": payload(np.zeros(100, "uint8" if i % 2 else "int32")) for i in range(9)}
    shards = split(tensors, 900)
    assert list(shards) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert {name for group in shards.values() for name in group} == set(tensors)
    for group in shards.values():
        assert sum(t.nbytes for t in group.values()) <= 900
        sizes = [t.nbytes for t in group.values()]
        assert sizes == sorted(sizes, reverse=True)


def test_other_libraries_read_the_shards(tmp_path):
    out = written(tmp_path / "out", max_shard_bytes=500)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == open_checkpoint(out).nbytes
    for name, shard in index["weight_map"].items():
        with safe_open(out / shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            file.get_tensor(name)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_an_output_that_exists_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("dear")
    with pytest.raises(CheckpointError, match="the output exists"):
        written(tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


def test_an_output_is_replaced_when_asked_to(tmp_path):
    written(tmp_path / "out", max_shard_bytes=500)
    verify(written(tmp_path / "out", overwrite=True))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="not a folder"):
        written(tmp_path / "file", overwrite=True)


class Failing(durable.Disk):
    """Fails the n-th write, flush or rename with a given error."""

    def __init__(self, monkeypatch, fail_at: int, code: int):
        self.calls, self.fail_at, self.code = 0, fail_at, code
        monkeypatch.setattr(durable, "DISK", self)

    def step(self):
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(self.code, os.strerror(self.code))

    def write(self, handle, content):
        self.step()
        return super().write(handle, content)

    def flush(self, handle):
        self.step()
        super().flush(handle)

    def rename(self, old, new):
        self.step()
        super().rename(old, new)


def test_a_full_disk_at_any_moment_leaves_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        disk = Failing(patch, 0, errno.ENOSPC)
        written(tmp_path / "probe", max_shard_bytes=500)
    # The last step comes after the rename: flushing the parent folder, the checkpoint is there.
    assert disk.calls > 15
    for moment in range(1, disk.calls):
        with monkeypatch.context() as patch:
            Failing(patch, moment, errno.ENOSPC)
            with pytest.raises(CheckpointError, match=r"no space left.*bytes free"):
                written(tmp_path / "out", max_shard_bytes=500)
        assert [p.name for p in tmp_path.iterdir()] == ["probe"]


def test_a_full_disk_while_replacing_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    written(tmp_path / "out", max_shard_bytes=500)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with monkeypatch.context() as patch:
        disk = Failing(patch, 0, errno.ENOSPC)
        written(tmp_path / "out", overwrite=True, max_shard_bytes=500)
    for moment in range(1, disk.calls):
        with monkeypatch.context() as patch:
            Failing(patch, moment, errno.EIO)
            with pytest.raises(CheckpointError, match="cannot be written"):
                written(tmp_path / "out", overwrite=True, max_shard_bytes=500)
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    tensors = {**all_payloads(), "z": Payload(dtype="U8", shape=(1,), read=interrupted)}
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "out", CONFIG, tensors)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_another_writer_takes_for_left_is_made_anew(tmp_path, monkeypatch):
    taken = [tmp_path / ".out.partial-held", tmp_path / ".out.partial-gone"]
    taken[0].mkdir()
    other = durable.Hold(taken[0])  # it is about to remove the first, and removed the second
    names, made = iter(taken), write.tempfile.mkdtemp
    monkeypatch.setattr(
        write.tempfile, "mkdtemp", lambda **given: str(next(names, None) or made(**given))
    )
    folder = written(tmp_path / "out")
    other.release()
    verify(folder)


def test_what_killed_writers_left_is_removed_by_the_next_but_not_what_is_at_work(tmp_path):
    left = [tmp_path / f".out.{kind}-x" for kind in ("partial", "replaced")]
    busy, other = tmp_path / ".out.partial-busy", tmp_path / ".other.partial-x"
    for folder in (*left, busy, other):
        folder.mkdir()
        (folder / "model.safetensors").touch()
    hold = durable.Hold(busy)
    written(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", busy.name, other.name}
    hold.release()
    written(tmp_path / "out", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", other.name}


def test_too_little_space_is_known_beforehand(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"found 10 bytes free; allowed: more than 1,"):
        written(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_only_a_checkpoint_or_an_empty_folder_is_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    verify(written(out, overwrite=True))
    (out / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="only a checkpoint of unspool is overwritten"):
        written(out, overwrite=True)
    (out / "config.json").unlink()
    with pytest.raises(CheckpointError, match="only a checkpoint of unspool is overwritten"):
        written(out, overwrite=True)
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("moment", [1, 2])
def test_an_interrupt_around_the_renames_leaves_one_whole_checkpoint(
    tmp_path, monkeypatch, moment, after
):
    written(tmp_path / "out", max_shard_bytes=500)
    plain_rename, calls = Path.rename, []

    def renamed(path, target):
        calls.append(target)
        if len(calls) == moment and not after:
            raise KeyboardInterrupt
        plain_rename(path, target)
        if len(calls) == moment:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "out", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    replaced = (moment, after) == (2, True)
    assert verify(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() != replaced


def test_folders_made_for_a_checkpoint_vanish_with_it(tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="no space left"):
        written(tmp_path / "kept" / "new" / "newer" / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["kept"]


def test_room_is_checked_at_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    out = tmp_path / "new" / "out"
    check_room(out, 1)
    with pytest.raises(CheckpointError, match="no space left"):
        check_room(out, 1 << 60)
    monkeypatch.setattr(write.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(CheckpointError, match="Permission denied"):
        check_room(out, 1)
    assert list(tmp_path.iterdir()) == []


def test_an_output_s_path_too_long_is_an_error_of_ours():
    with pytest.raises(CheckpointError, match="cannot be written"):
        written(Path("x" * 5000))


def test_a_small_file_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").touch()

    def refused(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(CheckpointError, match=r"tokenizer.json: cannot be read; found Input"):
        copied_files(tmp_path)
