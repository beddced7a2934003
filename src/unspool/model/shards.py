"""safetensors files, read and written as bytes: headers, sizes and arrays, without torch.

    8 bytes       length of the header, little-endian
    header        JSON {name: {dtype, shape, data_offsets: [begin, end]}}, padded with spaces
    data          the tensors, one after the other, no gaps

Everything is checked against the file's size before anything is allocated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unspool.errors import CheckpointError, UnspoolError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

HEADER_LIMIT = 100 << 20
"""Bytes of a header; the limit of the safetensors library."""

ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}

_NUMPY: Mapping[str, str] = {
    "U8": "<u1", "I8": "<i1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4",
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "U64": "<u8", "BOOL": "?",
}  # fmt: skip
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a safetensors file: its type, its shape and where its bytes are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    #: position of the first byte in the file
    begin: int

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    def array(self) -> np.ndarray:
        """The tensor as a read-only numpy array, mapped from the file; bf16 and fp8 have none."""
        if self.dtype not in _NUMPY:
            raise CheckpointError(
                "numpy has no such type", where=self.file.name, found=self.dtype, allowed=_NUMPY
            )
        if not self.nbytes:
            return np.empty(self.shape, _NUMPY[self.dtype])
        mapped = np.memmap(
            self.file, dtype=_NUMPY[self.dtype], mode="r", offset=self.begin, shape=self.shape or 1
        )
        return np.asarray(mapped).reshape(self.shape)


def read_folder(
    folder: Path, error: type[UnspoolError] = CheckpointError
) -> dict[str, StoredTensor]:
    """Every tensor of a folder's safetensors files by name; raises `error` on anything odd."""
    tensors: dict[str, StoredTensor] = {}
    for file in shard_files(folder, error):
        for name, tensor in read_header(file, error).items():
            if name in tensors:
                raise error("a tensor is stored twice", where=f"{file.name}, {name}")
            tensors[name] = tensor
    return tensors


def shard_files(folder: Path, error: type[UnspoolError] = CheckpointError) -> list[Path]:
    """The folder's safetensors files: those of the index, or the single one.

    Names in an index must be plain: joined to a path unchecked they read any file of the machine.
    """
    index = folder / INDEX
    if not index.is_file():
        single = folder / WEIGHTS
        if not single.is_file():
            raise error("no safetensors weights", where=str(folder), allowed=f"{WEIGHTS}, {INDEX}")
        return [single]
    weight_map = read_json(index, error).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise error("no weight_map in the index", where=str(index))
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if not _SHARD_NAME.fullmatch(name):
            raise error("a shard has no plain file name", where=str(index), found=name)
        if not (folder / name).is_file():
            raise error("a shard is missing", where=str(folder), found=name)
    return [folder / name for name in names]


def read_header(file: Path, error: type[UnspoolError] = CheckpointError) -> dict[str, StoredTensor]:
    """The tensors of one file; raises `error` unless they cover its data without gap or overlap."""
    try:
        size, text = _header_text(file, error)
    except OSError as found:
        raise error("cannot be read", where=str(file), found=found.strerror) from found
    header = _parse(text, str(file), error)
    header.pop("__metadata__", None)
    tensors, data = {}, 8 + len(text)
    end = data
    entries = {name: _entry(entry, f"{file.name}, {name}", error) for name, entry in header.items()}
    for name, (dtype, shape, begin, stop) in sorted(entries.items(), key=lambda e: e[1][2:]):
        tensors[name] = StoredTensor(file=file, dtype=dtype, shape=shape, begin=data + begin)
        if tensors[name].begin != end or stop - begin != tensors[name].nbytes:
            raise error("offsets and sizes contradict each other", where=f"{file.name}, {name}")
        end += stop - begin
    if end != size:
        what = "truncated" if end > size else "bytes after the last tensor"
        raise error(what, where=str(file), found=f"{size} bytes", allowed=f"{end} bytes")
    return tensors


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The length and header of a file that holds `{name: (dtype, shape)}` in that order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_json(file: Path, error: type[UnspoolError] = CheckpointError) -> dict[str, Any]:
    """A JSON object; raises `error` for anything else."""
    try:
        return _parse(file.read_bytes(), str(file), error)
    except OSError as found:
        raise error("cannot be read", where=str(file), found=found.strerror) from found


def _header_text(file: Path, error: type[UnspoolError]) -> tuple[int, bytes]:
    """(bytes of the file, the header's JSON); OSErrors pass."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
            raise error(
                "not a safetensors file, or truncated", where=str(file), found=f"{size} bytes"
            )
        return size, stream.read(length)


def _parse(text: bytes, where: str, error: type[UnspoolError]) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as found:
        raise error("not JSON", where=where, found=str(found)) from found
    if not isinstance(data, dict):
        raise error("not a JSON object", where=where, found=type(data).__name__)
    return data


def _entry(
    entry: object, where: str, error: type[UnspoolError]
) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of a header's entry."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if (
            dtype in ITEM_BYTES
            and all(type(size) is int and size >= 0 for size in (*shape, begin, end))
        ):
            return dtype, tuple(shape), begin, end
    raise error("a header entry makes no sense", where=where, found=str(entry)[:200])
