"""Kernels on the CPU, thread by thread: the same text, compiled as C++ with the host's twins.

Every access to memory is checked: bounds, alignment, what was never written, what another thread
wrote or still reads without a barrier between. Copies and products of the hardware happen as late
as they may. What is found is an UnspoolError. Needs g++; a GPU is not asked for.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from unspool.decode.emit_cuda import header as instructions
from unspool.errors import UnspoolError
from unspool.matmul.cuda import layouts

_HOST = resources.files("unspool") / "matmul" / "cuda" / "host"
_PARTS = (
    "kernel", "switch", "engine", "memory", "global", "numbers", "copies", "fragments", "products",
    "wgmma", "tensor_memory", "run",
)  # fmt: skip
_FLAGS = (
    "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-w",
    "-ftrivial-auto-var-init=pattern",  # a register that nobody has set is -1.7e38, or nonsense
)  # fmt: skip
_SIMULATED = "#define UNSPOOL_SIMULATED"
_MESSAGE_BYTES = 1000


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A compiled kernel source, and the twins that it calls."""

    twins: Path
    path: Path

    @functools.cached_property
    def library(self) -> ctypes.CDLL:
        """The loaded kernel; its calls find the twins that were loaded before."""
        ctypes.CDLL(str(self.twins), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(self.path))


def why_not() -> str:
    """What is missing to run kernels here; empty where nothing is."""
    return "" if _compiler() else "no g++ to compile kernels for the CPU with"


def build(source: str) -> Simulation:
    """Compiles a kernel's source; the same source is compiled once per user."""
    folder = Path(tempfile.gettempdir()) / f"unspool-simulations-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = (_HOST / "kernel.hpp").read_text(encoding="utf-8")
    kernel = "\n".join((_SIMULATED, instructions(), seen, source.removeprefix(instructions())))
    return Simulation(twins=_library(_twins(), folder), path=_library(kernel, folder))


def run(
    simulation: Simulation,
    name: str,
    arguments: ctypes.Structure,
    arrays: Mapping[str, np.ndarray],
    *,
    grid: tuple[int, int],
    threads: int,
    shared_bytes: int,
    seed: int = 0,
) -> None:
    """Runs a kernel; `arrays` are its global memory, changed in place.

    Raises UnspoolError where the kernel does what no GPU allows, or what it would not survive.
    """
    library = simulation.library
    count = len(arrays)
    pointers = (ctypes.c_void_p * count)(*(a.ctypes.data for a in arrays.values()))
    sizes = (ctypes.c_longlong * count)(*(a.nbytes for a in arrays.values()))
    names = (ctypes.c_char_p * count)(*(n.encode() for n in arrays))
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    kernel = ctypes.cast(getattr(library, name), ctypes.c_void_p)
    shape = (*grid, threads, shared_bytes)
    failed = ctypes.CDLL(str(simulation.twins)).unspool_simulate(
        kernel, ctypes.byref(arguments), *map(ctypes.c_int, shape), ctypes.c_uint(seed),
        pointers, sizes, names, ctypes.c_int(count), message, ctypes.c_int(_MESSAGE_BYTES),
    )  # fmt: skip
    if failed:
        raise UnspoolError(message.value.decode(errors="replace"), where=f"kernel {name}")


def address(array: np.ndarray | None) -> ctypes.c_void_p:
    """What a kernel's argument points to."""
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def _twins() -> str:
    """The host's twins of all wrappers, in the order in which they build on each other."""
    parts = ((_HOST / f"{part}.hpp").read_text(encoding="utf-8") for part in _PARTS)
    lines = [line for part in parts for line in part.splitlines() if '#include "' not in line]
    twins = (line for line in lines if line != "#pragma once")
    return "\n".join((_SIMULATED, instructions(), layouts.cpp(), *twins))


def _library(text: str, folder: Path) -> Path:
    """The text compiled, whole or not at all, also where two processes do it."""
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    if path.exists():
        return path
    compiler = _compiler()
    if compiler is None:
        raise UnspoolError(why_not())
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unit, made = Path(scratch) / "unit.cpp", Path(scratch) / path.name
        unit.write_text(text, encoding="utf-8")
        command = [compiler, *_FLAGS, str(unit), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnspoolError("the kernel is no C++", found=done.stderr[:2000])
        made.replace(path)
    return path


def _compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++")
