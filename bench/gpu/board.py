"""The GPU under test: our driver calls for kernels, torch for memory, streams, graphs and events.

Stages touch the GPU through this class alone; a test puts another in its place.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from unspool.errors import UnspoolError
from unspool.matmul.cuda import jit
from unspool.matmul.cuda.device import Gpu, LoadedKernel, gpu


class Arguments(ctypes.Structure):
    """What the kernels of this folder take: three arrays and two numbers."""

    _fields_ = (
        ("given", ctypes.c_uint64),
        ("out", ctypes.c_uint64),
        ("more", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
    )


STRUCT = """
struct Arguments {
    const unsigned* given;
    unsigned* out;
    const unsigned* more;
    unsigned long long count, number;
};
"""
"""The same in CUDA."""


class Board:
    """One GPU with torch on it."""

    #: where torch keeps what is under test
    device = "cuda"

    def __init__(self) -> None:
        """Opens GPU 0; UnspoolError, in one line, where something is missing."""
        self.gpu: Gpu = gpu()
        self.machine = self.gpu.machine
        self.torch: Any = _torch()
        reason = jit.why_not()
        if reason:
            raise UnspoolError(reason)
        self._ready()
        self._side = self.torch.cuda.Stream()

    @property
    def stream(self) -> int:
        """The handle of torch's current stream: what a graph captures."""
        return int(self.torch.cuda.current_stream().cuda_stream)

    def upload(self, array: np.ndarray) -> Any:
        """An array's bytes in GPU memory; `address` tells where."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        padded = flat if flat.size else np.zeros(16, np.uint8)
        return self.torch.from_numpy(padded.copy()).cuda()

    def empty(self, nbytes: int) -> Any:
        """Uninitialised GPU memory."""
        return self.torch.empty(max(nbytes, 16), dtype=self.torch.uint8, device="cuda")

    def address(self, buffer: Any) -> int:
        """Where a buffer starts."""
        return int(buffer.data_ptr())

    def download(self, buffer: Any, dtype: type[np.generic]) -> np.ndarray:
        """A buffer's bytes as numbers; waits for the GPU."""
        return buffer.cpu().numpy().view(dtype)

    def kernels(
        self, source: str, names: Sequence[str], shared_bytes: int = 0
    ) -> list[LoadedKernel]:
        """Compiles a source for this GPU and loads kernels of it."""
        code = self.gpu.load(jit.compile(source, self.machine.architecture))
        return [code.kernel(name, shared_bytes=shared_bytes) for name in names]

    def ready(self, sources: Sequence[str], seconds: float) -> None:
        """Compiles sources into the cache, on all cores, for so long at most.

        What does not compile is told where it is needed.
        """
        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        try:
            architecture = self.machine.architecture
            asked = [
                pool.submit(jit.compile, each, architecture) for each in dict.fromkeys(sources)
            ]
            concurrent.futures.wait(asked, timeout=max(seconds, 0))
        finally:  # nor does an interruption wait for those that have not begun
            pool.shutdown(wait=False, cancel_futures=True)

    def give_back(self) -> None:
        """Returns memory that nobody holds to the driver: another graph's pool cannot use it."""
        gc.collect()
        self.torch.cuda.empty_cache()

    def wait(self) -> None:
        """Waits for the GPU; an error of a kernel shows here."""
        self.torch.cuda.synchronize()

    def broken(self) -> str:
        """Why no further call of this process can succeed; empty where they can.

        Asked twice: an error that passes is reported once, one that stays every time.
        """
        for _ in range(2):
            try:
                self.wait()
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
            else:
                return ""
        return reason

    def graph(self, run: Callable[[], object]) -> Callable[[], object]:
        """What `run` queues, captured; each call queues it all at once.

        Before, it runs on the very stream that is captured: our products keep counters per stream,
        and the first of a stream would have its counters zeroed in every replay.
        """
        torch, side = self.torch, self._side
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is compiled or allocated at first use is so before
            run()
        torch.cuda.current_stream().wait_stream(side)
        self.wait()  # a kernel that breaks does so here, where its name is known
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=side):
            run()

        def replay(kept: object = run) -> None:
            """Keeps what `run` multiplies: the graph knows addresses alone, and the next capture
            gives memory that nobody holds back to the driver."""
            captured.replay()

        return replay

    def seconds(self, run: Callable[[], object]) -> float:
        """GPU time from before to after what `run` queues, with all that lies between."""
        start = self.mark()
        run()
        end = self.mark()
        self.wait()
        return self.between(start, end)

    def mark(self) -> Any:
        """A point in what is queued, whose time the GPU notes when it gets there."""
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two marks; after `wait`."""
        return float(start.elapsed_time(end)) / 1e3

    def facts(self) -> dict[str, Any]:
        """The GPU, the driver, the compiler and torch."""
        found = self.gpu.facts
        return {
            "gpu": found.name,
            "capability": f"{found.capability[0]}.{found.capability[1]}",
            "target": self.machine.name,
            "architecture": self.machine.architecture,
            "multiprocessors": found.multiprocessors,
            "clock_mhz": found.clock_mhz,
            "memory_bytes": found.memory_bytes,
            "l2_bytes": found.l2_bytes,
            "shared_bytes": found.shared_bytes,
            "processor_shared_bytes": found.processor_shared_bytes,
            "driver_cuda": found.driver,
            "compiler": jit.default_compiler().identity,
            "torch": self.torch.__version__,
            "torch_cuda": self.torch.version.cuda,
        }

    def _ready(self) -> None:
        try:
            self.torch.zeros(1, device="cuda").add_(1).item()
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise UnspoolError("torch cannot use this GPU", where="torch", found=first) from error


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UnspoolError("torch is needed for memory and graphs", where="torch") from error
    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} for CUDA {torch.version.cuda}"
        raise UnspoolError("this torch has no CUDA", where="torch", found=found)
    return torch
