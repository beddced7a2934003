"""safetensors files as bytes: what is read, and what is refused before anything is allocated."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unspool.errors import CheckpointError
from unspool.model.shards import INDEX, header_bytes, read_folder, read_header, shard_files

ARRAYS = {
    "words": np.arange(6, dtype=np.int32).reshape(2, 3),
    "bytes": np.arange(5, dtype=np.uint8),
    "scalar": np.array(2.5, np.float32),
    "nothing": np.empty((0, 4), np.int16),
}


def test_files_of_the_safetensors_library_are_read(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    found = read_folder(tmp_path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(found[name].array(), array)
        assert found[name].array().shape == array.shape


def test_the_safetensors_library_reads_our_header(tmp_path):
    kinds = {"words": ("I32", (2, 3)), "bytes": ("U8", (5,))}
    file = tmp_path / "x.safetensors"
    file.write_bytes(header_bytes(kinds) + ARRAYS["words"].tobytes() + ARRAYS["bytes"].tobytes())
    found = load_file(file)
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in kinds)


def test_every_truncation_is_an_error(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(ARRAYS, file)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_header(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="after the last tensor"):
        read_header(file)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "I32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "I99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": ["I32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": [1 << 62, 4], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "I32", "shape": [1]},
        [],
    ],
)
def test_a_header_that_lies_is_an_error(tmp_path, entry):
    text = json.dumps({"x": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(CheckpointError):
        read_header(file)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"x": NaN', b"\xff\xfe", b"[" * 100_000])
def test_a_header_that_is_no_json_object_is_an_error(tmp_path, text):
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError):
        read_header(file)


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "x.bin", ".x.safetensors", ""],
)
def test_an_index_names_plain_files_only(tmp_path, shard):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(CheckpointError, match="no plain file name"):
        shard_files(tmp_path)


def test_a_missing_shard_and_a_tensor_stored_twice_are_errors(tmp_path):
    save_file({"x": ARRAYS["words"]}, tmp_path / "a.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="a shard is missing"):
        read_folder(tmp_path)
    save_file({"x": ARRAYS["words"]}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="stored twice"):
        read_folder(tmp_path)
