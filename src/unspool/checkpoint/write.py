"""Write a checkpoint: into a folder beside its place, flushed to the disk, renamed at the end.

A reader sees the whole checkpoint or none of it, whatever happens in between. An error or an
interrupt leaves nothing behind, and an old checkpoint as it was. A hard crash (power, kill) leaves
at most a `.NAME.partial-*` folder; between the two renames that replace an old checkpoint, it
leaves that one whole as `.NAME.replaced-*` and nothing at its place. The next that is written to
that place removes both.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unspool.checkpoint import durable
from unspool.checkpoint.durable import Hold, opened, sync_folder, write_file
from unspool.errors import CheckpointError
from unspool.model.load import is_checkpoint
from unspool.model.shards import CONFIG, INDEX, ITEM_BYTES, WEIGHTS, header_bytes, read_json

MAX_SHARD_BYTES = 5_000_000_000
"""Bytes of a shard; what hubs and slow connections like."""

CHUNK = 64 << 20
"""Bytes per write: bounds the page cache a single call dirties."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Payload:
    """A tensor to be written; `read` yields its bytes when their turn comes."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes that `read` yields."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def check_output(folder: str | Path, *, overwrite: bool = False) -> Path:
    """The output folder; raises CheckpointError if something is there. Call it before long work.

    With `overwrite` an empty folder and a checkpoint of ours may be there, nothing else.
    """
    folder = Path(folder)
    try:
        folder.lstat()  # unlike exists, it tells a path too long from one that is free
        _check_replaceable(folder, overwrite)
    except FileNotFoundError:
        return folder
    except OSError as error:
        raise CheckpointError(
            "cannot be written", where=str(folder), found=error.strerror
        ) from error
    return folder


def check_room(folder: Path, nbytes: int) -> None:
    """Raises CheckpointError unless that many bytes can be written there, as things are now."""
    try:
        parent = _nearest(folder)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        _check_space(folder, nbytes)
    except OSError as error:
        raise _explained(error, folder, nbytes) from error


def write_checkpoint(
    folder: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Payload],
    files: Mapping[str, bytes] | None = None,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes config.json, the tensors in shards with their index, and other small files.

    Raises CheckpointError where the output exists (unless `overwrite`) or space runs out.
    """
    folder = check_output(folder, overwrite=overwrite)
    shards = split(tensors, max_shard_bytes)
    with _staged(folder, sum(t.nbytes for t in tensors.values())) as stage:
        for name, members in shards.items():
            write_shard(stage / name, members)
        if len(shards) > 1:
            write_file(stage / INDEX, _json(_index(shards)))
        for name, content in {**(files or {}), CONFIG: _json(config)}.items():
            write_file(stage / name, content)
    return folder


def split(tensors: Mapping[str, Payload], limit: int) -> dict[str, dict[str, Payload]]:
    """Shards by file name, each at most `limit` bytes unless a single tensor is larger.

    Within a shard wide types come first: readers map tensors in place, which needs them aligned.
    """
    groups: list[dict[str, Payload]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if groups[-1] and used + tensor.nbytes > limit:
            groups.append({})
            used = 0
        groups[-1][name] = tensor
        used += tensor.nbytes
    ordered = [dict(sorted(g.items(), key=lambda t: -ITEM_BYTES[t[1].dtype])) for g in groups]
    if len(ordered) == 1:
        return {WEIGHTS: ordered[0]}
    return {
        f"model-{place:05}-of-{len(ordered):05}.safetensors": group
        for place, group in enumerate(ordered, start=1)
    }


@contextmanager
def _staged(folder: Path, nbytes: int) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends, or vanishes."""
    stage: Path | None = None
    hold: Hold | None = None
    created: list[Path] = []
    try:
        created += [parent for parent in folder.parents if not parent.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_space(folder, nbytes)
        stage, hold = _stage(folder)
        stage.chmod(0o777 & ~_umask())
        _remove_left(folder, ".partial-")
        yield stage
        sync_folder(stage)
        _put_in_place(stage, folder)
        _remove_left(folder, ".replaced-")
    except OSError as error:
        _remove(stage, created)
        raise _explained(error, folder, nbytes) from error
    except BaseException:
        _remove(stage, created)
        raise
    finally:
        if hold is not None:
            hold.release()


def _stage(folder: Path) -> tuple[Path, Hold]:
    """A new folder beside, held; another writer may take one for left before it is."""
    while True:
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        with suppress(BlockingIOError, FileNotFoundError):
            hold = Hold(stage)
            if stage.exists():
                return stage, hold


def _remove_left(folder: Path, kind: str) -> None:
    """Removes what killed writers of the same folder left beside it; those at work hold theirs."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}{kind}*"):
        with suppress(OSError):
            if Hold(path).sure:
                shutil.rmtree(path, ignore_errors=True)


def _put_in_place(stage: Path, folder: Path) -> None:
    """Renames the stage; an old folder steps aside first and comes back if that fails."""
    aside = stage.with_name(stage.name.replace(".partial-", ".replaced-"))
    try:
        if folder.exists():
            durable.DISK.rename(folder, aside)
        durable.DISK.rename(stage, folder)
        # In place and whole: what goes wrong from here on is no failure to write it.
        with suppress(OSError):
            sync_folder(folder.parent)
    finally:
        # An interrupt may come before, between or after the renames: what is there decides.
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)


def write_shard(path: Path, tensors: Mapping[str, Payload]) -> None:
    """Writes a safetensors file, flushed to the disk."""
    header = header_bytes({name: (t.dtype, t.shape) for name, t in tensors.items()})
    with opened(path) as stream:
        stream.write(header)
        for name, tensor in tensors.items():
            content = tensor.read().reshape(-1).view(np.uint8)
            if content.nbytes != tensor.nbytes:
                raise CheckpointError("a tensor changed its size", where=name)
            for start in range(0, content.nbytes, CHUNK):
                stream.write(content[start : start + CHUNK].data)


def _index(shards: Mapping[str, Mapping[str, Payload]]) -> dict[str, Any]:
    total = sum(t.nbytes for group in shards.values() for t in group.values())
    weight_map = {name: shard for shard, group in shards.items() for name in group}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not overwrite:
        raise CheckpointError(
            "the output exists", where=str(folder), allowed="a new folder, or overwrite"
        )
    if not folder.is_dir():
        raise CheckpointError("the output is not a folder", where=str(folder))
    if not any(folder.iterdir()):
        return
    if not (folder / CONFIG).is_file() or not is_checkpoint(read_json(folder / CONFIG)):
        raise CheckpointError(
            "only a checkpoint of unspool is overwritten",
            where=str(folder),
            found="a folder with other files",
            allowed="a new or empty folder, or a checkpoint to replace",
        )


def _nearest(folder: Path) -> Path:
    """The parent that exists already."""
    return next(parent for parent in folder.absolute().parents if parent.exists())


def _check_space(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(_nearest(folder)).free
    if nbytes > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _explained(error: OSError, folder: Path, nbytes: int) -> CheckpointError:
    if error.errno in _FULL:
        free = shutil.disk_usage(_nearest(folder)).free
        return CheckpointError(
            "no space left; nothing was written",
            where=str(folder),
            found=f"{free:,} bytes free",
            allowed=f"more than {nbytes:,} bytes",
        )
    return CheckpointError(
        "cannot be written; nothing was", where=str(folder), found=error.strerror or str(error)
    )


def _remove(stage: Path | None, created: Sequence[Path]) -> None:
    """Removes the stage and the folders above it that were made for it, the deepest first."""
    if stage is not None:
        shutil.rmtree(stage, ignore_errors=True)
    for parent in created:
        with suppress(OSError):
            parent.rmdir()


def _umask() -> int:
    """The process's umask; mkdtemp ignores it, a checkpoint's folder should not."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
