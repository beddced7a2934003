"""How quickly this machine reads main memory, and how large its caches are."""

from __future__ import annotations

import ctypes
import functools
import itertools
import weakref
from pathlib import Path

from unspool import native
from unspool.errors import NativeError

BYTES = 1 << 30
"""What is read before any of it is read again: many times the largest cache."""

SLICE = 32 << 20
"""Bytes read at a time."""

STREAMS = (1, 4)

FALLBACK_CACHE = 32 << 20
"""The last cache where the system does not tell: larger than most."""

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class ReadMemory:
    """Memory in 2 MiB pages (where the system grants them), read slice by slice, round and round.

    A slice takes as long as a few products: a longer read would be interrupted more often than they
    are on a machine that others use, and seem slower.
    """

    def __init__(self, size: int | None = None) -> None:
        """Takes and fills the memory, whole MiB; raises NativeError where there is none."""
        library, size = _library(), size or BYTES
        self._handle = library.unspool_read_memory(size)
        if not self._handle:
            raise NativeError("no memory to read", where="read speed", found=f"{size} bytes")
        self.nbytes, self.slice = size, min(size, SLICE)
        self._starts = itertools.cycle(range(0, size - self.slice + 1, self.slice))
        self._read = library.unspool_read
        self._release = weakref.finalize(self, library.unspool_read_release, self._handle)
        self._release.atexit = False  # a thread may be reading while the process ends

    def read(self, threads: int = 1, streams: int = 1) -> int:
        """Reads the next slice once; the exclusive-or of its 64-bit words.

        A thread reads one stream or four: which is quicker depends on the processor.
        """
        place = self._handle, next(self._starts), self.slice
        return int(self._read(*place, streams == max(STREAMS), threads))


def load_width() -> int:
    """Bytes of the loads that `ReadMemory` uses here."""
    return int(_library().unspool_read_width())


def last_cache(folder: Path = _CACHES) -> int:
    """Bytes of the largest cache that the system lists (the third level as a rule)."""
    sizes = [_size(path.read_text(encoding="ascii")) for path in folder.glob("index*/size")]
    return max(sizes, default=FALLBACK_CACHE)


def free_memory(listing: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that can be taken without swapping; None where the system does not tell."""
    lines = listing.read_text(encoding="ascii").splitlines() if listing.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) << 10 if found else None


def _size(text: str) -> int:
    """`32768K` in bytes."""
    text = text.strip()
    return int(text.rstrip("KMG")) * _UNITS.get(text[-1:], 1)


@functools.cache
def _library() -> ctypes.CDLL:
    library = native.library()
    if library is None:
        raise NativeError(f"no compiled library: {native.why_not()}", where="read speed")
    library.unspool_read_memory.argtypes = [ctypes.c_size_t]
    library.unspool_read_memory.restype = ctypes.c_void_p
    library.unspool_read_release.argtypes = [ctypes.c_void_p]
    library.unspool_read_release.restype = None
    size = ctypes.c_size_t
    library.unspool_read.argtypes = [ctypes.c_void_p, size, size, ctypes.c_int, size]
    library.unspool_read.restype = ctypes.c_uint64
    library.unspool_read_width.argtypes, library.unspool_read_width.restype = [], ctypes.c_int
    return library
