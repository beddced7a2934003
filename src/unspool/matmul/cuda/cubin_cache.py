"""Compiled kernels on disk, named by the hash of everything that they came from.

    entry   8 bytes "unspool1", SHA-256 of the machine code, the machine code

An entry appears by renaming a complete, flushed file, so that processes that compile the same
kernel at once all succeed and readers see all of it or nothing. An entry that does not match its
checksum is none: it is compiled again. A folder that cannot be written costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unspool import native

ENVIRONMENT_VARIABLE = "UNSPOOL_CACHE"
"""A folder for compiled kernels; else unspool/ in XDG_CACHE_HOME or in ~/.cache."""

MAGIC = b"unspool1"

LIMIT_BYTES = 512 << 20
"""A kernel's machine code is 20 to 100 KB: some thousand kernels, a few models on a few GPUs."""

_CHECKSUM_BYTES = 32
_SUFFIX, _UNFINISHED = ".cubin", ".part"


@dataclass(frozen=True, kw_only=True)
class CubinCache:
    """A folder of entries, the longest unused of which go when it grows over the limit."""

    folder: Path
    limit: int = LIMIT_BYTES

    def get(self, key: str) -> bytes | None:
        """The machine code of that key; None where there is none or it is damaged."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        cubin = stored[len(MAGIC) + _CHECKSUM_BYTES :]
        if not cubin or stored != _entry(cubin):
            return None
        with contextlib.suppress(OSError):  # somebody else's folder may be read, not touched
            os.utime(path)
        return cubin

    def put(self, key: str, cubin: bytes) -> None:
        """Keeps machine code; where the folder cannot be written, says so once and goes on."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self._path(key), _entry(cubin))
            self._evict(key)
        except OSError as error:
            native.warn_slow(
                f"kernels are compiled anew in every process: {self.folder} cannot be written "
                f"({error.strerror}); {ENVIRONMENT_VARIABLE} names another folder"
            )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _evict(self, kept: str) -> None:
        """Deletes what was not used for longest, never the entry just written."""
        entries = sorted(self._entries())
        excess = sum(size for _, size, _ in entries) - self.limit
        for _, size, path in entries:
            if excess <= 0:
                return
            if path.stem == kept:
                continue
            path.unlink(missing_ok=True)
            excess -= size

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """(last use, size, file) of entries and of what died while it was written."""
        for path in self.folder.iterdir():
            if path.suffix in (_SUFFIX, _UNFINISHED):
                with contextlib.suppress(FileNotFoundError):  # another process evicted it
                    facts = path.stat()
                    yield facts.st_mtime_ns, facts.st_size, path


def cache() -> CubinCache:
    """The cache of this user."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return CubinCache(folder=Path(named))
    shared = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # no home: a container's bare user
        home = Path(shared) if shared else Path.home() / ".cache"
        return CubinCache(folder=home / "unspool")
    return CubinCache(folder=Path(tempfile.gettempdir()) / f"unspool-{os.getuid()}")


def key(*parts: str) -> str:
    """The hash of what machine code depends on; the parts cannot run into each other."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _entry(cubin: bytes) -> bytes:
    return MAGIC + hashlib.sha256(cubin).digest() + cubin


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing, even when the power goes."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=path.stem, suffix=_UNFINISHED, delete=False
    ) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)  # noqa: PTH108
            raise
