"""The journal of a long quantization: a durable file per finished block, in a folder of its own.

    settings.json             what was asked for; a run with other settings is refused
    block-00000.safetensors   the coded tensors of the first block, and so on
    log.jsonl                 a line per finished block, for people and plots

A file is written beside its place, flushed, renamed, and the folder flushed: whatever kills the run
leaves whole files only. What a later run finds it takes over, so its bytes are the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unspool.checkpoint.write import Payload, sync_folder, write_file, write_shard
from unspool.errors import CheckpointError
from unspool.model.layout import STORED_DTYPE
from unspool.model.shards import StoredTensor, read_header, read_json

SETTINGS, LOG = "settings.json", "log.jsonl"


class Journal:
    """The finished blocks of one run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Opens the folder. Raises CheckpointError where it holds a run and `resume` is not asked
        for, or a run with other settings: the message names them."""
        self._folder = folder
        plain = json.loads(json.dumps(dict(settings)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / SETTINGS).exists():
                self._put(SETTINGS, lambda path: write_file(path, _json(plain)))
                return
        except OSError as error:
            raise self._explained(error, "its settings") from error
        if not resume:
            raise CheckpointError(
                "the work folder holds a run", where=str(folder), allowed="--resume, a new folder"
            )
        _check_same(read_json(folder / SETTINGS), plain, folder)

    def get(self, place: int) -> dict[str, StoredTensor] | None:
        """The tensors of a block by name, where they are stored; None if it is not finished."""
        path = self._folder / _name(place)
        return read_header(path) if path.exists() else None

    def put(self, place: int, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Stores a finished block; raises CheckpointError naming it where that fails."""
        payloads = {
            name: Payload(
                dtype=STORED_DTYPE[str(array.dtype)],
                shape=array.shape,
                read=lambda array=array: array,  # type: ignore[misc]
            )
            for name, array in tensors.items()
        }
        try:
            self._put(_name(place), lambda path: write_shard(path, payloads))
            line = json.dumps({"time": time.time(), "block": place, **facts}) + "\n"
            with (self._folder / LOG).open("a", encoding="utf-8") as log:
                log.write(line)
        except OSError as error:
            raise self._explained(error, f"block {place}") from error

    def _put(self, name: str, write: Callable[[Path], None]) -> None:
        beside = self._folder / f".{name}.partial"
        write(beside)
        beside.replace(self._folder / name)
        sync_folder(self._folder)

    def _explained(self, error: OSError, what: str) -> CheckpointError:
        return CheckpointError(
            f"{what} cannot be stored; what was finished before is kept, --resume goes on",
            where=str(self._folder),
            found=error.strerror or str(error),
        )


def _check_same(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> None:
    changed = [
        f"{key}: {old.get(key)} before, {new.get(key)} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise CheckpointError(
            "the work folder holds a run with other settings",
            where=str(folder),
            found="; ".join(changed),
            allowed="the same settings, or a new folder",
        )


def _name(place: int) -> str:
    return f"block-{place:05}.safetensors"


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
