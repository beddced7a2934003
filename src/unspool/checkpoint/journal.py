"""The journal of a long quantization: a durable file per finished block, in a folder of its own.

    settings.json             what was asked for; a run with other settings is refused
    block-00000.safetensors   the coded tensors of the first block, and so on
    importance-00000.safetensors   where tokens are weighed: gradients of the first windows
    log.jsonl                 a line per finished file, for people and plots

A file is written beside its place, flushed, renamed, and the folder flushed: whatever kills the run
leaves whole files only. What a later run finds it takes over, so its bytes are the same. One run
holds the folder at a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unspool.checkpoint.durable import Hold, opened, put, write_file
from unspool.checkpoint.write import Payload, write_shard
from unspool.errors import CheckpointError
from unspool.model.layout import STORED_DTYPE
from unspool.model.shards import StoredTensor, read_header, read_json

SETTINGS, LOG = "settings.json", "log.jsonl"

BLOCK, IMPORTANCE = "block", "importance"
"""What is finished: a block, or the gradients of a chunk of windows."""

DTYPES: Mapping[str, str] = {**STORED_DTYPE, "float32": "F32"}
"""Coded tensors, and gradients."""


class Journal:
    """The finished blocks of one run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Opens the folder. Raises CheckpointError where it holds a run and `resume` is not asked
        for, a run with other settings (the message names them), or one that is under way."""
        self._folder = folder
        plain = json.loads(json.dumps(dict(settings)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._hold = Hold(folder)
            if not (folder / SETTINGS).exists():
                put(folder / SETTINGS, lambda path: write_file(path, _json(plain)))
                return
        except BlockingIOError as error:
            raise CheckpointError(
                "another run is at work in the folder", where=str(folder), allowed="a new folder"
            ) from error
        except OSError as error:
            raise self._explained(error, "its settings") from error
        try:
            _check_again(folder, plain, resume)
        except CheckpointError:
            self._hold.release()
            raise

    def get(self, place: int, stage: str = BLOCK) -> dict[str, StoredTensor] | None:
        """The tensors of a block by name, where they are stored; None if it is not finished."""
        path = self._folder / _name(place, stage)
        return read_header(path) if path.exists() else None

    def put(
        self,
        place: int,
        tensors: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        stage: str = BLOCK,
    ) -> None:
        """Stores a finished block and notes the facts, its `name` among them, in the log.

        Raises CheckpointError naming the block where that fails.
        """
        payloads = {
            name: Payload(
                dtype=DTYPES[str(array.dtype)],
                shape=array.shape,
                read=lambda array=array: array,  # type: ignore[misc]
            )
            for name, array in tensors.items()
        }
        try:
            put(self._folder / _name(place, stage), lambda path: write_shard(path, payloads))
            self._note({"time": time.time(), stage: place, **facts})
        except OSError as error:
            raise self._explained(error, f"{stage} {place} ({facts['name']})") from error

    def _note(self, facts: Mapping[str, Any]) -> None:
        """Adds a line to the log, below the rest of one that a kill cut off."""
        path = self._folder / LOG
        cut = path.exists() and not path.read_bytes().endswith(b"\n")
        with opened(path, append=True) as log:
            log.write(b"\n" * cut + json.dumps(facts).encode() + b"\n")

    def _explained(self, error: OSError, what: str) -> CheckpointError:
        return CheckpointError(
            f"{what} cannot be stored; what was finished before is kept, --resume goes on",
            where=str(self._folder),
            found=error.strerror or str(error),
        )


def _check_again(folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
    if not resume:
        raise CheckpointError(
            "the work folder holds a run", where=str(folder), allowed="--resume, a new folder"
        )
    _check_same(read_json(folder / SETTINGS), settings, folder)


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


def _name(place: int, stage: str) -> str:
    return f"{stage}-{place:05}.safetensors"


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
