"""The compiled library behind a plain C ABI: found here, bound by the module that calls it.

Every function in it has a numpy twin. Where the library is absent (a source tree without a build)
the twin runs and says so once.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import warnings
from pathlib import Path

from unspool.errors import NativeError, SlowPathWarning

ENVIRONMENT_VARIABLE = "UNSPOOL_NATIVE"
"""A path to the library, for development against a build folder."""

ABI = 4
"""What functions of the library take and return: raised with every change, here and in C++."""

MOST_THREADS = 1024
"""Scratch memory is set aside for each thread that is asked for."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None (then `why_not` has the reason)."""
    path = _path()
    if path is None or why_not():
        return None
    return ctypes.CDLL(str(path))


@functools.cache
def why_not() -> str:
    """The reason why the compiled library is not in use; empty when it is."""
    path = _path()
    if path is None:
        return "the compiled library is not installed beside this package (pip install .)"
    if not path.is_file():
        return f"{ENVIRONMENT_VARIABLE} names {path}, which is not a file"
    try:
        abi = getattr(ctypes.CDLL(str(path)), "unspool_abi", None)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    if abi is None or abi() != ABI:
        raise NativeError(
            "the compiled library is not of this version: install the package again (make setup)",
            where=str(path),
            found=None if abi is None else abi(),
            allowed=ABI,
        )
    return ""


def trim() -> None:
    """Gives freed memory back to the system, where the C library keeps it (glibc).

    Threads that run a model hold 0.3 GB of what they freed between two layers of 2048 x 8192.
    """
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if give_back is not None:
        give_back(ctypes.c_size_t(0))


def warn_twin(what: str) -> None:
    """Says once per operation that the numpy twin runs in the place of the library."""
    warn_slow(f"{what} runs in numpy, many times slower: {why_not()}")


def warn_slow(message: str) -> None:
    """Says once that a slower path runs, and why."""
    _warn_once(message)


def check(status: int, what: str) -> None:
    """Turns a C status (0 is success) into an error."""
    if status != 0:
        raise NativeError("the compiled library refused the call", where=what, found=status)


def threads(wanted: int | None) -> int:
    """How many threads to run: as many as asked for, or one per core this process may use."""
    if wanted is None:
        visible = getattr(os, "sched_getaffinity", None)
        return len(visible(0)) if visible else os.cpu_count() or 1
    if not 1 <= wanted <= MOST_THREADS:
        allowed = f"1 to {MOST_THREADS}"
        raise NativeError("not a thread count", where="threads", found=wanted, allowed=allowed)
    return wanted


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, SlowPathWarning, stacklevel=4)


def _path() -> Path | None:
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return Path(named)
    found = importlib.util.find_spec("unspool._native")
    return Path(found.origin) if found is not None and found.origin else None
