"""Targets: the machine families that code runs on, what this machine is, and why not more."""

from __future__ import annotations

import ctypes
import functools
import os

from unspool import native
from unspool.errors import NativeError

TARGETS = ("numpy", "portable", "avx2", "avx512")
"""CPU targets, slowest first. `numpy` is the reference, for a source tree without the library."""

ENVIRONMENT_VARIABLE = "UNSPOOL_TARGET"
"""Forces a target, for tests and for comparing them."""

_AVX2, _AVX512 = 1, 2


@functools.cache
def available() -> dict[str, str]:
    """Every target, and why it cannot run here; an empty reason where it can."""
    missing = native.why_not()
    features = 0 if missing else _features()
    lacks = "this CPU or operating system lacks "
    return {
        "numpy": "",
        "portable": missing,
        "avx2": missing or ("" if features & _AVX2 else lacks + "AVX2 and FMA"),
        "avx512": missing or ("" if features & _AVX512 else lacks + "AVX-512 F, BW, VL and VBMI"),
    }


def best() -> str:
    """The fastest target that runs here, or the one that the environment forces."""
    forced = os.environ.get(ENVIRONMENT_VARIABLE)
    if forced:
        return checked(forced)
    return next(target for target in reversed(TARGETS) if not available()[target])


def checked(target: str) -> str:
    """The target itself; raises NativeError where it does not exist or cannot run here."""
    if target not in TARGETS:
        raise NativeError("no such target", found=target, allowed=TARGETS)
    if available()[target]:
        raise NativeError(
            "the target cannot run here", where=target, found=available()[target]
        )
    return target


def _features() -> int:
    library = native.library()
    assert library is not None
    function = library.unspool_features
    function.argtypes, function.restype = [], ctypes.c_int
    return int(function())
