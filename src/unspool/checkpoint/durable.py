"""What reaches the disk for good: every write, flush and rename of checkpoints and journals.

Each goes through `DISK`, in whose place the crash tests put one that fails, tears a write or dies
at any operation they choose (bench/crash.py).
"""

from __future__ import annotations

import fcntl
import io
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Disk:
    """The operations as the system has them."""

    def write(self, handle: int, content: memoryview) -> int:
        """Writes some of the bytes; how many."""
        return os.write(handle, content)

    def flush(self, handle: int) -> None:
        """Returns when a file's bytes, or a folder's entries, are on the disk."""
        os.fsync(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Puts a file or folder in its place, at once."""
        old.rename(new)


DISK = Disk()


class _File(io.RawIOBase):
    """A file that is written by way of DISK."""

    def __init__(self, path: Path, how: int) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o666)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._handle

    def write(self, content: ReadableBuffer, /) -> int:
        return DISK.write(self._handle, memoryview(content))

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._handle)


@contextmanager
def opened(path: Path, *, append: bool = False) -> Iterator[BinaryIO]:
    """A file to write into, new or longer by what is written; on the disk when the block ends."""
    with io.BufferedWriter(_File(path, os.O_APPEND if append else os.O_TRUNC)) as stream:
        yield cast("BinaryIO", stream)
        stream.flush()
        DISK.flush(stream.fileno())


def write_file(path: Path, content: bytes) -> None:
    """Writes a small file, flushed to the disk."""
    with opened(path) as stream:
        stream.write(content)


def put(path: Path, write: Callable[[Path], None]) -> None:
    """Puts a whole file in its place: `write` writes and flushes it beside.

    An error leaves nothing beside; a kill leaves `.NAME.partial`, which the next `put` replaces.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        write(beside)
        DISK.rename(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries, so that a rename cannot reach the disk before its files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        DISK.flush(handle)
    finally:
        os.close(handle)


class Hold:
    """A folder that one process holds, until it lets go or ends, by whatever end.

    `sure` is False on a file system without locks, where others may hold it too.
    """

    def __init__(self, folder: Path) -> None:
        """Raises BlockingIOError where another holds it, OSError where it cannot be read."""
        handle = os.open(folder, os.O_RDONLY)
        self.release = weakref.finalize(self, os.close, handle)
        self.sure = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise
        except OSError:
            self.sure = False
