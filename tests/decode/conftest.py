"""The host twin: emitted CUDA compiled by a C++ compiler and run on rings of words."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from unspool.decode.emit_cuda import emit, header
from unspool.decode.lowering import Lowering

Run = Callable[[int, np.ndarray, np.ndarray], np.ndarray]

FLAGS = ("-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-fno-fast-math")

DRIVER = """
extern "C" void run_{number}(
    const unsigned* words, long rings, unsigned* out, const unsigned* given) {{
    using namespace unspool::code_{number};
    unsigned table[entry_count + {shared} + 1], levels[level_count + held_count + 1];
    {fill}
    for (int i = 0; i < {shared}; ++i) table[entry_count + i] = given[i];
    for (int i = 0; i < level_count; ++i) levels[i] = given[i];
    for (long ring = 0; ring < rings; ++ring)
        decode(words + ring * word_count, out + ring * register_count, table, levels);
}}
"""


@pytest.fixture(scope="session")
def compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler to build the host twin with")
    return found


@pytest.fixture(scope="session")
def build(compiler: str, tmp_path_factory) -> Callable[[Sequence[Lowering]], Run]:
    """Compiles lowerings; run(which, words [rings, words], given) -> registers."""

    def build(lowerings: Sequence[Lowering]) -> Run:
        folder = tmp_path_factory.mktemp("twin")
        source, library = folder / "twin.cpp", folder / "twin.so"
        source.write_text(header() + "".join(map(_unit, range(len(lowerings)), lowerings)))
        command = [compiler, *FLAGS, str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:2000]
        return _runner(library, lowerings)

    return build


def _unit(number: int, lowering: Lowering) -> str:
    fill = [("table", "entry_count", "entries")] if lowering.table else []
    fill += [("levels + level_count", "held_count", "held")] if lowering.held else []
    loops = " ".join(f"for (int i = 0; i < {n}; ++i) ({to})[i] = {of}[i];" for to, n, of in fill)
    driver = DRIVER.format(number=number, shared=lowering.shared, fill=loops)
    return emit(lowering, number) + driver


def _runner(library: Path, lowerings: Sequence[Lowering]) -> Run:
    loaded = ctypes.CDLL(str(library))

    def run(which: int, words: np.ndarray, given: np.ndarray) -> np.ndarray:
        words = np.ascontiguousarray(words, np.uint32)
        given = np.ascontiguousarray(np.append(given, 0), np.uint32)
        out = np.empty((len(words), len(lowerings[which].registers)), np.uint32)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (words, out, given)]
        function = getattr(loaded, f"run_{which}")
        function(pointers[0], ctypes.c_long(len(words)), pointers[1], pointers[2])
        return out

    return run
