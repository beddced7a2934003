"""One thread for each product of numpy's linear algebra, so that no bit depends on how many run.

OpenBLAS divides products and factorizations among its threads, and rounds otherwise for each
number of them: on one machine `x.T @ x`, `solve` and `cholesky` gave other bits with two threads
than with one from 96 columns on. Larger work is cut into products whose shapes do not depend on
the threads, for threads of our own.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from unspool import native

Place = TypeVar("Place")
Made = TypeVar("Made")

LIBRARY = "libscipy_openblas*"
"""The one in numpy's own wheels; the functions carry its prefix, and the suffix of 64-bit sizes."""

_LOCK = threading.Lock()
_INSIDE: list[bool] = []
_BEFORE: list[int] = []
"""Who is inside the context, and the number of threads before the first: it is the process's."""

NAMES = tuple(f"{{}}openblas_{{}}_num_threads{end}" for end in ("64_", ""))


@contextmanager
def one_thread() -> Iterator[None]:
    """numpy's linear algebra runs on one thread of its own until the context ends.

    Where numpy has another library than OpenBLAS, that one's settings hold as they are.
    """
    functions = _functions()
    if functions is None:
        _warn()
        yield
        return
    get, put = functions
    with _LOCK:
        if not _INSIDE:
            _BEFORE[:] = [get()]
            put(1)
        _INSIDE.append(True)
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE.pop()
            if not _INSIDE:
                put(_BEFORE[0])


def in_threads(
    work: Callable[[Place], Made], places: Sequence[Place], threads: int | None
) -> list[Made]:
    """`work` of every place, by threads that have one each at a time; results in their order."""
    count = min(native.threads(threads), len(places))
    if count < 2:
        return [work(place) for place in places]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, places))


def slices(size: int, block: int) -> list[slice]:
    """Slices of a range, `block` long, the last one shorter."""
    return [slice(first, min(first + block, size)) for first in range(0, size, block)]


@functools.cache
def _warn() -> None:
    warnings.warn(
        "numpy without OpenBLAS: calibrated bytes may depend on its number of threads",
        stacklevel=3,
    )


@functools.cache
def _functions() -> tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer] | None:
    folders = (Path(np.__file__).parents[1] / "numpy.libs", Path(np.__file__).parent / ".dylibs")
    for path in (path for folder in folders for path in folder.glob(LIBRARY)):
        library = ctypes.CDLL(str(path))  # the one that numpy has loaded
        for name in NAMES:
            found = [getattr(library, name.format("scipy_", what), None) for what in ("get", "set")]
            if found[0] is not None and found[1] is not None:
                return found[0], found[1]
    return None
