"""A kernel's text to machine code, once per machine: NVRTC behind a cache on disk.

    compile(kernel.source, kernel.architecture) -> cubin     bytes for `device.Gpu.load`

The compiler is `cuda.core` where it is installed, else NVRTC itself by ctypes. No GPU is needed.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unspool.decode import nvrtc
from unspool.errors import UnspoolError
from unspool.matmul.cuda.cubin_cache import CubinCache, cache, key

OPTIONS = ("-std=c++17", "--fmad=false")
"""Without contraction a multiplication and an addition round as the definition in numpy does;
where a fused one is meant, the kernels say so."""

_MODULES = ("cuda.core", "cuda.core.experimental")


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """Something that makes machine code of a source for an architecture."""

    #: what machine code depends on beside source, architecture and options
    identity: str
    cubin: Callable[[str, str], bytes]


def compile(
    source: str,
    architecture: str,
    *,
    compiler: Compiler | None = None,
    kept: CubinCache | None = None,
) -> bytes:
    """Machine code of a source for `sm_90a` and the like, from the cache where it is there.

    Raises UnspoolError with what the compiler said, or where there is no compiler.
    """
    compiler, kept = compiler or default_compiler(), kept or cache()
    name = key(source, architecture, compiler.identity, *OPTIONS)
    found = kept.get(name)
    if found is None:
        found = compiler.cubin(source, architecture)
        kept.put(name, found)
    return found


def why_not() -> str:
    """Why nothing can be compiled here; empty where it can."""
    try:
        default_compiler()
    except UnspoolError as error:
        return str(error)
    return ""


@functools.cache
def default_compiler() -> Compiler:
    """The compiler of this machine; UnspoolError where there is none."""
    made = from_cuda_core() or from_nvrtc()
    if made is None:
        raise UnspoolError(
            "no CUDA compiler to build kernels with",
            where="NVRTC",
            found="neither in NVIDIA's wheels nor in CUDA_HOME nor on the loader's path",
            allowed=nvrtc.INSTALL,
        )
    return made


def from_nvrtc() -> Compiler | None:
    """NVRTC by ctypes, or None where it is not found."""
    found = nvrtc.find()
    if found is None:
        return None
    return Compiler(
        identity=found.identity,
        cubin=lambda source, architecture: found.cubin(source, architecture, OPTIONS),
    )


def from_cuda_core() -> Compiler | None:
    """NVIDIA's `cuda.core`, or None where it or its NVRTC is not there."""
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
            version = _bound_version()
            program, options = module.Program, module.ProgramOptions
        except (ImportError, AttributeError, OSError, RuntimeError):
            continue
        cubin = functools.partial(_by_cuda_core, program, options)
        return Compiler(identity=f"{name} {module.__version__} nvrtc {version}", cubin=cubin)
    return None


def _by_cuda_core(program: Any, options: Any, source: str, architecture: str) -> bytes:
    given = options(arch=architecture, std="c++17", fma=False)
    try:
        made = program(source, code_type="c++", options=given).compile("cubin")
    except Exception as error:
        raise nvrtc.refused(architecture, str(error)) from error
    return bytes(made.code)


def _bound_version() -> str:
    """The version of the NVRTC that cuda.core calls; RuntimeError where it does not load."""
    bindings = importlib.import_module("cuda.bindings.nvrtc")
    status, major, minor = bindings.nvrtcVersion()
    if int(status):
        raise RuntimeError(f"nvrtcVersion: {status}")
    return f"{major}.{minor}"
