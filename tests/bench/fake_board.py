"""A GPU made of numpy and a C++ compiler: kernels run as one thread of one block."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from unspool.matmul.cuda.device import Facts, machine_of

SHIM = """
#define __global__
#define __shared__ static
#define __launch_bounds__(threads)
static inline void __syncthreads() {}
static const struct { unsigned x; } threadIdx = {0}, blockIdx = {0}, blockDim = {1}, gridDim = {1};
"""


class Stub:
    """A kernel that only notes its launches; its blocks take a clock per two instructions."""

    def __init__(self, name: str, board: FakeBoard) -> None:
        self.name, self._board = name, board

    def launch(self, grid, threads, arguments, stream=0) -> None:
        self._board.launches[self.name] += 1
        if arguments.out:
            buffer = self._board.buffers[arguments.out]
            buffer.view(np.uint32)[: grid[0]] = threads * 128 * arguments.number // 64 % (1 << 32)


class Compiled(Stub):
    """A kernel's own text, as C++."""

    def __init__(self, name: str, board: FakeBoard, function) -> None:
        super().__init__(name, board)
        self._function = function

    def launch(self, grid, threads, arguments, stream=0) -> None:
        self._board.launches[self.name] += 1
        self._function(arguments)


class Buffer(np.ndarray):
    """Bytes; a copy of torch's by name."""

    def copy_(self, other: np.ndarray) -> None:
        self[...] = other


class FakeBoard:
    """The members of `gpu.board.Board`."""

    device = "cpu"
    stream = 0

    def __init__(self, capability=(9, 0), *, compiles: bool = False, torch=None) -> None:
        facts = Facts(
            name="NVIDIA Fake 100", capability=capability, multiprocessors=4, shared_bytes=99 << 10,
            processor_shared_bytes=100 << 10,
            memory_bytes=1 << 24, l2_bytes=1 << 16, clock_mhz=1000, driver="13.0",
        )  # fmt: skip
        self.gpu = SimpleNamespace(facts=facts)
        self.machine, self.torch = machine_of(capability), torch
        self.launches: Counter[str] = Counter()
        self.buffers: dict[int, np.ndarray] = {}
        self.compiled: list[list[str]] = []
        #: why every call fails from now on
        self.fault = ""
        self._compiles, self._seconds = compiles, itertools.count(1)

    def upload(self, array: np.ndarray) -> np.ndarray:
        buffer = self.empty(max(array.nbytes, 16))
        buffer[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return buffer

    def empty(self, nbytes: int) -> np.ndarray:
        buffer = np.zeros(max(nbytes, 16), np.uint8).view(Buffer)
        self.buffers[buffer.ctypes.data] = buffer
        return buffer

    def address(self, buffer: np.ndarray) -> int:
        return int(buffer.ctypes.data)

    def download(self, buffer: np.ndarray, dtype) -> np.ndarray:
        return np.asarray(buffer).view(dtype)

    def kernels(self, source: str, names, shared_bytes: int = 0) -> list[Stub]:
        if not self._compiles:
            return [Stub(name, self) for name in names]
        library = _library(source)
        functions = [getattr(library, name) for name in names]
        return [Compiled(name, self, f) for name, f in zip(names, functions, strict=True)]

    def ready(self, sources, seconds: float) -> None:
        self.compiled.append(list(sources))

    def give_back(self) -> None:
        self.launches["give_back"] += 1

    def wait(self) -> None:
        pass

    def broken(self) -> str:
        return self.fault

    def graph(self, run):
        run()
        return run

    def seconds(self, run) -> float:
        run()
        return self.between(0, 1)

    def mark(self) -> int:
        return 0

    def between(self, start, end) -> float:
        return 1e-4 * (1 + next(self._seconds) % 3)

    def facts(self) -> dict:
        return {"gpu": self.gpu.facts.name, "target": self.machine.name}


def _library(source: str) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(prefix="unspool-fake-"))
    try:
        (folder / "k.cpp").write_text(SHIM + source)
        compiler = shutil.which("g++") or shutil.which("clang++")
        command = [compiler, "-std=c++17", "-shared", "-fPIC", "-O1", "-o", "k.so", "k.cpp"]
        subprocess.run(command, cwd=folder, check=True)
        return ctypes.CDLL(str(folder / "k.so"))
    finally:
        shutil.rmtree(folder)
