"""What runs the kernels of `model.gpu`: torch's GPU, or the CPU playing one thread by thread."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from unspool.decode.machine import MACHINES
from unspool.matmul.cuda import jit, simulate
from unspool.matmul.cuda.device import LoadedKernel, gpu
from unspool.matmul.cuda.launch import RESERVED
from unspool.matmul.cuda.source import Kernel

_PLAYED_KIB = {"sm80": 164, "sm89": 100, "sm90": 228, "sm100": 228, "sm120": 100}
"""Shared memory of a multiprocessor (CUDA programming guide, compute capabilities)."""


class CudaProcessor:
    """One GPU, with torch's memory and its current stream."""

    def __init__(self, ordinal: int = 0) -> None:
        """Opens it; UnspoolError where there is none, or no kernels for it."""
        self._gpu = gpu(ordinal)
        self.machine = self._gpu.machine
        self.device = torch.device("cuda", ordinal)
        self.processors = self._gpu.facts.multiprocessors
        self.per_block = self._gpu.facts.shared_bytes
        self.per_processor = self._gpu.facts.processor_shared_bytes
        self._loaded: dict[Kernel, LoadedKernel] = {}

    @property
    def stream(self) -> int:
        """The handle of torch's current stream."""
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    @property
    def capturing(self) -> bool:
        """Whether torch is capturing a CUDA graph on that stream."""
        with torch.cuda.device(self.device):
            return torch.cuda.is_current_stream_capturing()

    def ready(self, kernels: Sequence[Kernel]) -> None:
        """Compiles and loads kernels, as many at once as there are cores."""
        new = [kernel for kernel in dict.fromkeys(kernels) if kernel not in self._loaded]
        with ThreadPoolExecutor(max(1, min(len(new), os.cpu_count() or 1))) as pool:
            list(pool.map(self._compiled, new))  # into the cache
        with torch.cuda.device(self.device):
            for kernel in new:
                self._load(kernel)

    def run(
        self,
        kernel: Kernel,
        grid: tuple[int, int],
        arguments: ctypes.Structure,
        memory: Mapping[str, torch.Tensor],
    ) -> None:
        """Queues a kernel on the GPU's current stream, whichever GPU is torch's current one."""
        with torch.cuda.device(self.device):
            self._load(kernel).launch((*grid, 1), kernel.threads, arguments, self.stream)

    def _load(self, kernel: Kernel) -> LoadedKernel:
        found = self._loaded.get(kernel)
        if found is None:
            code = self._gpu.load(self._compiled(kernel))
            found = code.kernel(kernel.name, shared_bytes=kernel.shared_bytes)
            self._loaded[kernel] = found
        return found

    def _compiled(self, kernel: Kernel) -> bytes:
        return kernel.compiled(lambda text: jit.compile(text, self.machine.architecture))


class SimulatedProcessor:
    """A machine of a few multiprocessors, played by the CPU; for tests, and slow."""

    device = torch.device("cpu")
    stream = 0
    capturing = False

    def __init__(self, machine: str, *, processors: int = 2) -> None:
        """Plays one of `decode.machine.MACHINES`."""
        self.machine = MACHINES[machine]
        self.processors = processors
        self.per_processor = 1024 * _PLAYED_KIB[machine]
        self.per_block = self.per_processor - RESERVED

    def ready(self, kernels: Sequence[Kernel]) -> None:
        """Compiles kernels."""
        for kernel in kernels:
            simulate.build(kernel.source)

    def run(
        self,
        kernel: Kernel,
        grid: tuple[int, int],
        arguments: ctypes.Structure,
        memory: Mapping[str, torch.Tensor],
    ) -> None:
        """Runs a kernel to its end."""
        arrays = {name: _bytes(tensor) for name, tensor in memory.items()}
        simulate.run(
            simulate.build(kernel.source), kernel.name, arguments, arrays, grid=grid,
            threads=kernel.threads, shared_bytes=kernel.shared_bytes,
        )  # fmt: skip


@functools.cache
def processor(ordinal: int = 0) -> CudaProcessor:
    """The GPU of that number, opened once."""
    return CudaProcessor(ordinal)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.reshape(-1).view(torch.uint8).numpy())
