"""Loading and launching by the driver: every refusal is one line that says what to do.

Against a fake of the driver's library: compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import ctypes

import pytest

from unspool.decode.machine import MACHINES, Slot
from unspool.errors import UnspoolError
from unspool.matmul.cuda import device, driver, jit
from unspool.matmul.cuda.cubin_cache import CubinCache
from unspool.matmul.cuda.device import Gpu, architecture_number, machine_of
from unspool.matmul.cuda.driver import Driver
from unspool.matmul.cuda.recipe import recipe
from unspool.matmul.cuda.source import multiply_kernel
from unspool.spec.catalog import FORMATS
from unspool.spec.operand import INT8


class Pair(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint64), ("n", ctypes.c_uint32), ("m", ctypes.c_uint32))


@pytest.fixture
def opened(fake):
    def open_gpu(library=None, ordinal: int = 0) -> Gpu:
        return Gpu(Driver(library or fake.FakeLibrary()), ordinal)

    return open_gpu


@pytest.fixture
def kernel(fake, opened):
    def load(library, shared_bytes: int = 0):
        return opened(library).load(fake.machine_code(90)).kernel("k", shared_bytes=shared_bytes)

    return load


def told(call) -> str:
    with pytest.raises(UnspoolError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_gpu_tells_what_it_is(opened):
    found = opened()
    facts = found.facts
    assert (facts.name, facts.capability, facts.driver) == ("NVIDIA Fake", (9, 0), "13.0")
    assert (facts.multiprocessors, facts.shared_bytes) == (132, 227 * 1024)
    assert facts.processor_shared_bytes == 228 * 1024
    assert (facts.memory_bytes, facts.l2_bytes, facts.clock_mhz) == (80 << 30, 60 << 20, 1980)
    assert found.machine == MACHINES["sm90"]


@pytest.mark.parametrize(
    ("capability", "name", "architecture"),
    [
        ((8, 0), "sm80", "sm_80"),
        ((8, 6), "sm80", "sm_80"),
        ((8, 7), "sm80", "sm_80"),
        ((8, 9), "sm89", "sm_89"),
        ((9, 0), "sm90", "sm_90a"),
        ((10, 0), "sm100", "sm_100a"),
        ((10, 3), "sm100", "sm_103a"),
        ((12, 0), "sm120", "sm_120a"),
        ((12, 1), "sm120", "sm_121a"),
    ],
)
def test_a_capability_has_its_machine(capability, name, architecture):
    found = machine_of(capability)
    assert (found.name, found.architecture) == (name, architecture)
    assert (Slot(INT8) in found.slots) == (capability != (10, 3))


@pytest.mark.parametrize("capability", [(7, 5), (8, 1), (10, 1), (11, 0), (13, 0)])
def test_other_gpus_are_refused(capability):
    message = told(lambda: machine_of(capability))
    assert "no kernels for this GPU; found compute capability" in message
    assert "8.0, 8.6" in message


@pytest.mark.parametrize(
    ("capability", "number", "runs"),
    [
        ((8, 6), 80, True),
        ((8, 0), 86, False),
        ((8, 9), 80, True),
        ((9, 0), 80, False),
        ((9, 0), 90, True),
        ((10, 3), 100, False),
        ((10, 3), 103, True),
        ((12, 1), 120, False),
        ((12, 1), 121, True),
    ],
)
def test_machine_code_of_another_gpu_is_refused(fake, opened, capability, number, runs):
    found = opened(fake.FakeLibrary(capability))
    if runs:
        assert found.load(fake.machine_code(number))
    else:
        message = told(lambda: found.load(fake.machine_code(number)))
        assert message.startswith("NVIDIA Fake: machine code of another GPU; found code for")


def test_the_architecture_is_read_in_both_elf_dialects(fake):
    assert architecture_number(fake.machine_code(120)) == 120
    assert architecture_number(fake.machine_code(90, abi=7)) == 90
    assert "no machine code" in told(lambda: architecture_number(b"PTX"))


@pytest.mark.skipif(bool(jit.why_not()), reason=jit.why_not() or "compiling works")
@pytest.mark.parametrize("capability", device._NAMED)
def test_real_machine_code_is_for_the_gpu_it_was_compiled_for(capability):
    compiler = jit.from_nvrtc() or jit.default_compiler()
    architecture = machine_of(capability).architecture
    number = architecture_number(compiler.cubin("__global__ void k() {}", architecture))
    assert f"sm_{number}" == architecture.rstrip("a")


@pytest.mark.slow
@pytest.mark.skipif(bool(jit.why_not()), reason=jit.why_not() or "compiling works")
@pytest.mark.parametrize(
    ("capability", "name", "activations"),
    [
        *((capability, "m2-e4m3", "auto") for capability in device._NAMED),
        *((capability, "nvfp4", "fp4") for capability in device._NAMED if capability >= (10, 0)),
    ],
)
def test_the_fused_product_compiles_for_every_gpu(capability, name, activations, tmp_path):
    machine = machine_of(capability)
    made = recipe(FORMATS[name], machine, activations)
    kernel = multiply_kernel(made, tokens=16, output="bfloat16", slots=2)
    cubin = jit.compile(kernel.source, kernel.architecture, kept=CubinCache(folder=tmp_path))
    assert f"sm_{architecture_number(cubin)}" == machine.architecture.rstrip("a")
    assert kernel.name.encode() in cubin


@pytest.mark.skipif(bool(jit.why_not()), reason=jit.why_not() or "compiling works")
def test_int8_of_10_0_is_no_kernel_for_10_3(tmp_path):
    made = recipe(FORMATS["t2-e2m1"], machine_of((10, 0)), "int8")
    kernel = multiply_kernel(made, tokens=16, output="bfloat16", slots=2)
    with pytest.raises(UnspoolError, match="no kind::i8 here"):
        jit.compile(kernel.source, "sm_103a", kept=CubinCache(folder=tmp_path))


def test_no_driver_is_told(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-that-is-not-there.so.1")
    assert told(Driver).startswith("GPU: no NVIDIA driver on this machine; found libcuda-that")


def test_why_not_says_the_same(monkeypatch):
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-that-is-not-there.so.1")
    device.gpu.cache_clear()
    assert device.why_not().startswith("GPU: no NVIDIA driver")


@pytest.mark.parametrize(
    ("function", "status", "meaning"),
    [
        ("cuInit", 100, "no GPU is visible"),
        ("cuInit", 34, "a stub for linking"),
        ("cuInit", 803, "of different versions"),
        ("cuInit", 804, "forward-compatible"),
        ("cuInit", 802, "not ready"),
        ("cuInit", 12345, "the driver refused a call; found CUDA_ERROR_12345 (12345) from cuInit"),
        ("cuDevicePrimaryCtxRetain", 2, "out of GPU memory"),
        ("cuDevicePrimaryCtxRetain", 46, "taken by another process"),
    ],
)
def test_what_keeps_a_gpu_from_opening_is_told(fake, opened, function, status, meaning):
    library = fake.FakeLibrary().refuse(function, status)
    assert meaning in told(lambda: opened(library))


def test_no_visible_gpu_and_no_such_gpu(fake, opened):
    nothing = told(lambda: opened(fake.FakeLibrary(count=0)))
    assert nothing == "GPU: no such GPU; found 0; allowed: 0 visible"
    assert "found 2; allowed: 2 visible" in told(lambda: opened(fake.FakeLibrary(count=2), 2))


@pytest.mark.parametrize("status", [200, 218, 222])
def test_a_driver_older_than_the_machine_code_is_told(fake, opened, status):
    found = opened(fake.FakeLibrary().refuse("cuModuleLoadData", status))
    message = told(lambda: found.load(fake.machine_code(90)))
    assert "the driver is too old for this machine code" in message
    assert "a driver for CUDA 13.0" in message


@pytest.mark.parametrize(("status", "meaning"), [(2, "out of GPU memory"), (209, "another GPU")])
def test_machine_code_that_does_not_load_is_told(fake, opened, status, meaning):
    found = opened(fake.FakeLibrary().refuse("cuModuleLoadData", status))
    assert meaning in told(lambda: found.load(fake.machine_code(90)))


def test_a_kernel_that_is_not_there_is_told(fake, opened):
    code = opened().load(fake.machine_code(90))
    message = told(lambda: code.kernel("elsewhere"))
    assert message == "GPU: no such kernel in the machine code; found elsewhere"


def test_more_shared_memory_than_usual_is_asked_for(fake, kernel):
    library = fake.FakeLibrary()
    kernel(library, 48 * 1024)
    assert library.shared == []
    kernel(library, 100 * 1024)
    assert library.shared == [100 * 1024]


def test_more_shared_memory_than_there_is_is_refused(fake, kernel):
    message = told(lambda: kernel(fake.FakeLibrary(), 228 * 1024))
    assert "k: a block has less shared memory on this GPU; found 233472 bytes" in message


def test_a_launch_passes_grid_threads_memory_stream_and_the_struct(fake, kernel):
    library = fake.FakeLibrary()
    arguments = Pair(0x1122334455667788, 7, 9)
    kernel(library, 4096).launch((5, 6, 7), 160, arguments, 0xABC)
    (launch,) = library.launches
    assert launch == ((5, 6, 7), (160, 1, 1), 4096, 0xABC, bytes(arguments))


def test_a_launch_waits_for_nothing_and_asks_for_nothing_else(fake, kernel):
    library = fake.FakeLibrary()
    loaded = kernel(library)
    before = library.calls.copy()
    loaded.launch((1, 1, 1), 32, Pair())
    assert library.calls - before == {"cuLaunchKernel": 1}


def test_a_thread_that_never_met_the_gpu_can_launch(fake, kernel):
    library = fake.FakeLibrary()
    loaded = kernel(library)
    library.refuse("cuLaunchKernel", 201, 0)
    loaded.launch((1, 1, 1), 32, Pair())
    assert len(library.launches) == 1


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (2, "out of GPU memory"),
        (700, "touched memory that is not its own"),
        (701, "more registers or shared memory"),
        (719, "must be started anew"),
        (900, "while a graph is captured"),
        (1, "the driver refused a call; found CUDA_ERROR_1 (1) from cuLaunchKernel"),
    ],
)
def test_a_launch_that_fails_is_told(fake, kernel, status, meaning):
    loaded = kernel(fake.FakeLibrary().refuse("cuLaunchKernel", status))
    message = told(lambda: loaded.launch((1, 1, 1), 32, Pair()))
    assert message.startswith("k: ")
    assert meaning in message


def test_a_struct_of_another_size_is_refused(fake, kernel):
    loaded = kernel(fake.FakeLibrary(argument_bytes=24))
    message = told(lambda: loaded.launch((1, 1, 1), 32, Pair()))
    assert message.endswith("not the kernel's; found 16 bytes; allowed: 24 bytes")


def test_a_kernel_tells_its_registers_and_what_spilled(fake, kernel):
    loaded = kernel(fake.FakeLibrary())
    assert (loaded.registers, loaded.spilled_bytes) == (168, 0)
