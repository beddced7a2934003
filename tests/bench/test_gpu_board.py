"""The GPU under test, through a fake driver and a stand-in for torch's CUDA half.

Compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sys
import time
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from unspool.errors import UnspoolError
from unspool.matmul.cuda import device, jit
from unspool.matmul.cuda.device import Gpu
from unspool.matmul.cuda.driver import Driver

FAKE_DRIVER = Path(__file__).parents[1] / "matmul" / "driver" / "fake_driver.py"


def fake_library(*arguments, **named):
    spec = importlib.util.spec_from_file_location("fake_driver_of_board", FAKE_DRIVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FakeLibrary(*arguments, **named)


class Tensor:
    """A tensor that says it is on the GPU."""

    def __init__(self, held) -> None:
        self.held = held

    def cuda(self) -> Tensor:
        return self

    def add_(self, value) -> Tensor:
        return self

    def item(self) -> float:
        return 1.0

    def __getattr__(self, name):
        return getattr(self.held, name)


class Stream:
    def __init__(self, handle: int = 0xBEEF) -> None:
        self.cuda_stream, self.waited = handle, []

    def wait_stream(self, other) -> None:
        self.waited.append(other)


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end) -> float:
        assert self.timed
        assert end.timed
        return 3.0


class Graph:
    replays = 0

    def replay(self) -> None:
        self.replays += 1


def stand_in(*, available: bool = True) -> types.ModuleType:
    """As much of torch as the board asks for; every name is one that torch has."""
    main, streams = Stream(), []
    cuda = types.SimpleNamespace(
        is_available=lambda: available, current_stream=lambda: main, Stream=Stream, Event=Event,
        CUDAGraph=Graph, synchronize=lambda: None,
        stream=lambda stream: contextlib.nullcontext(streams.append(stream)),
        graph=lambda graph, stream: contextlib.nullcontext(streams.append(stream)),
        empty_cache=lambda: None,
    )  # fmt: skip
    assert all(hasattr(torch.cuda, name) for name in vars(cuda))
    module = types.ModuleType("torch")
    module.__version__, module.version = "2.11", types.SimpleNamespace(cuda="13.0")
    module.entered = streams
    module.cuda, module.uint8 = cuda, torch.uint8
    module.from_numpy = lambda array: Tensor(torch.from_numpy(array))
    module.zeros = lambda count, device: Tensor(torch.zeros(count))
    module.empty = lambda count, dtype, device: Tensor(torch.empty(count, dtype=dtype))
    return module


@pytest.fixture
def made(monkeypatch):
    """A Board on a fake driver."""

    def make(library=None, module=None):
        from gpu import board

        opened = Gpu(Driver(library or fake_library(kernels=("empty",), argument_bytes=40)))
        monkeypatch.setattr(board, "gpu", lambda: opened)
        monkeypatch.setitem(sys.modules, "torch", module or stand_in())
        monkeypatch.setattr(jit, "compile", lambda source, architecture: machine_code())
        return board.Board()

    return make


def machine_code() -> bytes:
    head = bytearray(64)
    head[:4], head[8], head[0x31] = b"\x7fELF", 8, 90
    return bytes(head)


@pytest.fixture(autouse=True)
def _a_compiler(monkeypatch):
    monkeypatch.setattr(jit, "why_not", lambda: "")
    compiler = jit.Compiler(identity="nvrtc 13.0", cubin=lambda *_: b"")
    monkeypatch.setattr(jit, "default_compiler", lambda: compiler)


def test_what_is_uploaded_comes_back(made):
    board = made()
    numbers = np.arange(12, dtype=np.uint32).reshape(3, 4)
    buffer = board.upload(numbers)
    assert board.download(buffer, np.uint32).tolist() == list(range(12))
    assert board.address(buffer) == buffer.data_ptr()
    assert board.empty(0).nbytes == 16
    assert board.upload(np.zeros(0, np.uint32)).nbytes == 16


def test_a_kernel_is_launched_on_torchs_stream(made):
    from gpu.board import Arguments

    library = fake_library(kernels=("empty",), argument_bytes=40)
    board = made(library)
    (kernel,) = board.kernels("source", ["empty"])
    kernel.launch((2, 1, 1), 64, Arguments(1, 2, 3, 4, 5), board.stream)
    ((grid, threads, shared, stream, data),) = library.launches
    assert (grid, threads, shared, stream) == ((2, 1, 1), (64, 1, 1), 0, 0xBEEF)
    assert np.frombuffer(data, np.uint64).tolist() == [1, 2, 3, 4, 5]


def test_a_graph_runs_what_it_captures_once_before(made):
    calls: list[int] = []
    replay = made().graph(lambda: calls.append(1))
    assert len(calls) == 2  # to warm up, and captured
    replay()
    assert len(calls) == 2


def test_a_graph_keeps_what_it_reads(made):
    class Activations:
        pass

    def captured():
        x = Activations()
        return board.graph(lambda: x), weakref.ref(x)

    board = made()
    replay, x = captured()
    gc.collect()
    assert x() is not None
    del replay
    gc.collect()
    assert x() is None


def test_a_graph_is_captured_on_the_stream_that_it_ran_on(made):
    module = stand_in()
    board = made(module=module)
    for _ in range(2):
        board.graph(lambda: None)
    assert len(module.entered) == 4
    assert len(set(map(id, module.entered))) == 1  # counters of ours are per stream


def test_sources_are_compiled_at_once_and_what_does_not_compile_is_told_later(made, monkeypatch):
    board, seen = made(), []

    def compile(source, architecture):
        seen.append((source, architecture))
        if source == "bad":
            raise UnspoolError("the compiler refused")
        if source == "slow":
            time.sleep(2)

    monkeypatch.setattr(jit, "compile", compile)
    board.ready(["a", "bad", "a", "b"], 60)
    assert sorted(seen) == [(each, board.machine.architecture) for each in ("a", "b", "bad")]
    start = time.monotonic()
    board.ready(["slow"] * 3 + [f"slow {i}" for i in range(99)] + ["slow"], 0.1)
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize(("failures", "broken"), [(0, ""), (1, ""), (9, "an illegal access")])
def test_an_error_that_stays_breaks_the_gpu_and_one_that_passes_does_not(made, failures, broken):
    module, left = stand_in(), [failures]

    def synchronize() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("an illegal access\nand more")

    board = made(module=module)
    module.cuda.synchronize = synchronize
    assert board.broken() == broken


def test_seconds_are_of_events(made):
    assert made().seconds(lambda: None) == 0.003


def test_facts_say_with_what(made):
    facts = made().facts()
    assert (facts["gpu"], facts["target"], facts["torch_cuda"]) == ("NVIDIA Fake", "sm90", "13.0")
    assert (facts["compiler"], facts["architecture"]) == ("nvrtc 13.0", "sm_90a")


def test_a_torch_without_cuda_is_told(made):
    with pytest.raises(UnspoolError, match=r"torch: this torch has no CUDA; found torch 2\.11"):
        made(module=stand_in(available=False))


def test_a_torch_that_was_not_built_for_this_gpu_is_told(made):
    module = stand_in()

    def zeros(count, device):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    module.zeros = zeros
    with pytest.raises(UnspoolError, match="cannot use this GPU; found CUDA error: no k"):
        made(module=module)


def test_a_gpu_without_kernels_is_told(made):
    with pytest.raises(UnspoolError, match=r"no kernels for this GPU; found .* 7\.5"):
        made(fake_library((7, 5)))


def test_no_compiler_is_told(made, monkeypatch):
    monkeypatch.setattr(jit, "why_not", lambda: "no CUDA compiler")
    with pytest.raises(UnspoolError, match="no CUDA compiler"):
        made()


def test_no_torch_is_told(made, monkeypatch):
    from gpu import board

    monkeypatch.setattr(board, "gpu", lambda: Gpu(Driver(fake_library())))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnspoolError, match="torch is needed"):
        board.Board()


def test_the_whole_command_tells_it_in_one_line(monkeypatch, capsys):
    from gpu import __main__ as program

    def none(ordinal: int = 0):
        raise UnspoolError("no NVIDIA driver on this machine", where="GPU")

    monkeypatch.setattr(device, "gpu", none)
    monkeypatch.setattr("gpu.board.gpu", none)
    assert program.main(["--together"]) == 3
    assert capsys.readouterr().out == "no GPU to run on: GPU: no NVIDIA driver on this machine\n"
