"""What this machine can run, and why not more.

The answer comes from CPUID and from XCR0 (the register states that the operating system saves),
asked by the compiled library; a listing such as /proc/cpuinfo does not say both.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass

from unspool import native
from unspool.errors import UnspoolError

ENVIRONMENT_VARIABLE = "UNSPOOL_TARGET"
"""Forces a target, for tests and comparisons; an argument goes before it."""

#: names of the bits of `unspool_cpu_features`, lowest first
FEATURES = (
    "saved YMM", "saved ZMM", "AVX", "AVX2", "FMA", "F16C", "BMI1", "BMI2", "LZCNT", "MOVBE",
    "AVX512F", "AVX512BW", "AVX512VL", "AVX512DQ", "AVX512VBMI", "AVX512VBMI2", "AVX512VNNI",
    "ASIMDDP", "AVX512_BF16",
)  # fmt: skip

_V3 = ("saved YMM", "AVX", "AVX2", "FMA", "F16C", "BMI1", "BMI2", "LZCNT", "MOVBE")

_AVX512 = tuple(name for name in FEATURES if name.startswith("AVX512") and "_" not in name)

#: target -> what a processor and its operating system must have; the best last
NEEDS: Mapping[str, tuple[str, ...]] = {
    "numpy": (),
    "portable": (),
    "avx2": _V3,
    "neon": ("ASIMDDP",),
    "avx512": (*_V3, "saved ZMM", *_AVX512),
}

#: target -> its bit of `unspool_compiled_targets`
_COMPILED = {"avx2": 0, "avx512": 1, "neon": 2}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine family code runs for, and why this one and none better."""

    name: str
    why: str


@functools.cache
def features() -> frozenset[str]:
    """What the processor has and the operating system saves; empty without the library."""
    library = native.library()
    if library is None:
        return frozenset()
    bits = _bits(library, "unspool_cpu_features")
    return frozenset(name for place, name in enumerate(FEATURES) if bits >> place & 1)


def why_not(name: str) -> str:
    """The reason why a target cannot run here; empty where it can."""
    library = native.library()
    if name == "numpy":
        return ""
    if library is None:
        return native.why_not()
    if name == "portable":
        return ""
    compiled = _bits(library, "unspool_compiled_targets") >> _COMPILED[name] & 1
    return missing(name, features(), compiled=bool(compiled))


def missing(name: str, found: frozenset[str], *, compiled: bool = True) -> str:
    """Which needs of a target are not met; empty where all are."""
    lacking = [need for need in NEEDS[name] if need not in found]
    if lacking:
        return f"{name} needs {', '.join(lacking)}"
    return "" if compiled else f"{name} was not compiled into the library"


def target(forced: str | None = None) -> Target:
    """The best target of this machine, or the forced one (argument or UNSPOOL_TARGET).

    Raises UnspoolError where the forced one does not exist or cannot run here.
    """
    if forced is not None:
        return _forced(forced, "the caller")
    if os.environ.get(ENVIRONMENT_VARIABLE):
        return _forced(os.environ[ENVIRONMENT_VARIABLE], ENVIRONMENT_VARIABLE)
    return _best()


def _forced(name: str, by: str) -> Target:
    if name not in NEEDS:
        raise UnspoolError("no such target", where=by, found=name, allowed=tuple(NEEDS))
    reason = why_not(name)
    if reason:
        able = [other for other in NEEDS if not why_not(other)]
        raise UnspoolError(f"cannot run here: {reason}", where=by, found=name, allowed=able)
    return Target(name=name, why=f"forced by {by}")


@functools.cache
def _best() -> Target:
    reasons: list[str] = []
    for name in reversed(tuple(NEEDS)):
        reason = why_not(name)
        if not reason:
            break
        if reason not in reasons:
            reasons.append(reason)
    return Target(name=name, why="; ".join(reasons) or "the best target there is")


def _bits(library: ctypes.CDLL, function: str) -> int:
    ask = getattr(library, function)
    ask.argtypes, ask.restype = [], ctypes.c_uint64
    return int(ask())
