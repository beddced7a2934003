"""The GPU of this machine: what it can do, its kernels loaded and launched.

    found = gpu()                            facts, and the Machine that code is emitted for
    code = found.load(compile(source, found.machine.architecture))
    kernel = code.kernel(name, shared_bytes=...)
    kernel.launch((tiles, 1, 1), threads, arguments, stream)     arguments: one ctypes.Structure

A launch neither waits nor allocates, so that CUDA graphs can capture it. Memory and streams belong
to the caller, by address and by handle; the context is the device's primary one, as torch's is.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from unspool.decode.machine import MACHINES, Machine, Slot
from unspool.errors import UnspoolError
from unspool.matmul.cuda.driver import INVALID_CONTEXT, NOT_FOUND, TOO_OLD, Driver
from unspool.spec.operand import INT8

_NAMED: Mapping[tuple[int, int], str] = {
    (8, 0): "sm80", (8, 6): "sm80", (8, 7): "sm80", (8, 9): "sm89", (9, 0): "sm90",
    (10, 0): "sm100", (10, 3): "sm100", (12, 0): "sm120", (12, 1): "sm120",
}  # fmt: skip

_OWN_CODE: Mapping[tuple[int, int], str] = {(10, 3): "sm_103a", (12, 1): "sm_121a"}
"""GPUs that do not load their family's machine code: what the letter unlocks is per GPU."""

_NO_INTEGERS = frozenset({(10, 3)})
"""tcgen05 has no kind::i8 there (PTX ISA 9.0)."""

#: CUdevice_attribute
_MULTIPROCESSORS, _CLOCK, _L2, _MAJOR, _MINOR, _SHARED_BYTES = 16, 13, 38, 75, 76, 97
_PROCESSOR_SHARED_BYTES = 81
#: CUfunction_attribute
_LOCAL_BYTES, _REGISTERS, _DYNAMIC_SHARED_BYTES = 3, 4, 8
#: a launch may have so much dynamic shared memory without being asked
_UNASKED_SHARED_BYTES = 48 * 1024
_FLAGS, _ABI, _NEW_ABI = 0x30, 8, 8
"""Places of an ELF header; since ABI 8 (CUDA 13) the architecture is in the flags' second byte."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one GPU is and has."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    #: a block's shared memory at most
    shared_bytes: int
    #: a multiprocessor's, for all blocks that it runs at once
    processor_shared_bytes: int
    memory_bytes: int
    l2_bytes: int
    clock_mhz: int
    #: the newest CUDA that the driver runs
    driver: str


def machine_of(capability: tuple[int, int]) -> Machine:
    """The target for GPUs of a compute capability; UnspoolError where there is none."""
    if capability not in _NAMED:
        able = [f"{major}.{minor}" for major, minor in _NAMED]
        found = f"compute capability {capability[0]}.{capability[1]}"
        raise UnspoolError("no kernels for this GPU", where="GPU", found=found, allowed=able)
    named = MACHINES[_NAMED[capability]]
    if capability in _NO_INTEGERS:
        named = replace(named, slots=tuple(slot for slot in named.slots if slot != Slot(INT8)))
    return replace(named, architecture=_OWN_CODE.get(capability, named.architecture))


@functools.cache
def gpu(ordinal: int = 0) -> Gpu:
    """The GPU of that number; UnspoolError where there is no driver, no GPU or no such one."""
    return Gpu(Driver(), ordinal)


def why_not(ordinal: int = 0) -> str:
    """Why no kernel can run here; empty where one can."""
    try:
        _ = gpu(ordinal).machine
    except UnspoolError as error:
        return str(error)
    return ""


class Gpu:
    """One GPU, through its primary context, which is made or shared and never destroyed."""

    def __init__(self, driver: Driver, ordinal: int = 0) -> None:
        """Opens it; UnspoolError with the reason where that fails."""
        self.driver, self.ordinal = driver, ordinal
        driver.call("cuInit", 0)
        self._device = self._open(ordinal)
        self.facts = self._facts()
        self._context = ctypes.c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)

    @functools.cached_property
    def machine(self) -> Machine:
        """The target that code for it is emitted for."""
        return machine_of(self.facts.capability)

    def enter(self) -> None:
        """Makes the primary context this thread's current one."""
        self.driver.call("cuCtxSetCurrent", self._context)

    def load(self, cubin: bytes) -> MachineCode:
        """Loads machine code; UnspoolError where it is another GPU's or newer than the driver."""
        self._check_architecture(cubin)
        self.enter()
        module = ctypes.c_void_p()
        status = self.driver.status("cuModuleLoadData", ctypes.byref(module), cubin)
        if status in TOO_OLD:
            raise UnspoolError(
                "the driver is too old for this machine code: update it, or compile with an "
                "older CUDA",
                where=self.facts.name,
                found=f"a driver for CUDA {self.facts.driver}",
            )
        if status:
            raise self.driver.error(status, "cuModuleLoadData", where=self.facts.name)
        return MachineCode(self, module)

    def _check_architecture(self, cubin: bytes) -> None:
        number = architecture_number(cubin)
        major, minor = self.facts.capability
        own = 10 * major + minor
        family = major == 8 and 80 <= number <= own  # machine code runs on later GPUs of 8.x
        if number != own and not family:
            raise UnspoolError(
                "machine code of another GPU",
                where=self.facts.name,
                found=f"code for {number // 10}.{number % 10}",
                allowed=f"code for {major}.{minor}",
            )

    def _open(self, ordinal: int) -> ctypes.c_int:
        count = ctypes.c_int()
        self.driver.call("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= ordinal < count.value:
            raise UnspoolError(
                "no such GPU", where="GPU", found=ordinal, allowed=f"{count.value} visible"
            )
        device = ctypes.c_int()
        self.driver.call("cuDeviceGet", ctypes.byref(device), ordinal)
        return device

    def _facts(self) -> Facts:
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        self.driver.call("cuDeviceGetName", name, len(name), self._device)
        self.driver.call("cuDeviceTotalMem_v2", ctypes.byref(memory), self._device)
        return Facts(
            name=name.value.decode(errors="replace"),
            capability=(self._attribute(_MAJOR), self._attribute(_MINOR)),
            multiprocessors=self._attribute(_MULTIPROCESSORS),
            shared_bytes=self._attribute(_SHARED_BYTES),
            processor_shared_bytes=self._attribute(_PROCESSOR_SHARED_BYTES),
            memory_bytes=memory.value,
            l2_bytes=self._attribute(_L2),
            clock_mhz=self._attribute(_CLOCK) // 1000,
            driver=self.driver.version,
        )

    def _attribute(self, which: int) -> int:
        found = ctypes.c_int()
        self.driver.call("cuDeviceGetAttribute", ctypes.byref(found), which, self._device)
        return found.value


class MachineCode:
    """Machine code on a GPU, until the process ends."""

    def __init__(self, gpu: Gpu, module: ctypes.c_void_p) -> None:
        """What `Gpu.load` returns."""
        self._gpu, self._module = gpu, module

    def kernel(self, name: str, *, shared_bytes: int = 0) -> LoadedKernel:
        """A kernel of it, with so much dynamic shared memory at every launch.

        UnspoolError where it has none of that name, or a block has less shared memory.
        """
        driver, handle = self._gpu.driver, ctypes.c_void_p()
        arguments = ctypes.byref(handle), self._module, name.encode()
        status = driver.status("cuModuleGetFunction", *arguments)
        if status == NOT_FOUND:
            raise UnspoolError("no such kernel in the machine code", where="GPU", found=name)
        if status:
            raise driver.error(status, "cuModuleGetFunction", where=name)
        if shared_bytes > self._gpu.facts.shared_bytes:
            raise UnspoolError(
                "a block has less shared memory on this GPU",
                where=name,
                found=f"{shared_bytes} bytes",
                allowed=f"at most {self._gpu.facts.shared_bytes}",
            )
        if shared_bytes > _UNASKED_SHARED_BYTES:
            asked = (handle, _DYNAMIC_SHARED_BYTES, shared_bytes)
            driver.call("cuFuncSetAttribute", *asked, where=name)
        return LoadedKernel(self._gpu, name, handle, shared_bytes)


class LoadedKernel:
    """A kernel that takes one struct, by value."""

    def __init__(self, gpu: Gpu, name: str, handle: ctypes.c_void_p, shared_bytes: int) -> None:
        """What `MachineCode.kernel` returns."""
        self._gpu, self.name, self._handle, self._shared = gpu, name, handle, shared_bytes
        self.argument_bytes = self._argument_bytes()

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        arguments: ctypes.Structure,
        stream: int = 0,
    ) -> None:
        """Queues it on a stream (its handle); UnspoolError where the driver refuses."""
        size = ctypes.sizeof(arguments)
        if self.argument_bytes not in (0, size):
            raise UnspoolError(
                "the struct of arguments is not the kernel's",
                where=self.name,
                found=f"{size} bytes",
                allowed=f"{self.argument_bytes} bytes",
            )
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        given = (
            self._handle, *grid, threads, 1, 1, self._shared, ctypes.c_void_p(stream), parameters,
            None,
        )  # fmt: skip
        status = self._gpu.driver.status("cuLaunchKernel", *given)
        if status == INVALID_CONTEXT:  # the first launch of this thread
            self._gpu.enter()
            status = self._gpu.driver.status("cuLaunchKernel", *given)
        if status:
            raise self._gpu.driver.error(status, "cuLaunchKernel", where=self.name)

    @property
    def registers(self) -> int:
        """Registers of a thread."""
        return self._attribute(_REGISTERS)

    @property
    def spilled_bytes(self) -> int:
        """Local memory of a thread: registers that did not fit."""
        return self._attribute(_LOCAL_BYTES)

    def _attribute(self, which: int) -> int:
        found = ctypes.c_int()
        asked = (ctypes.byref(found), which, self._handle)
        self._gpu.driver.call("cuFuncGetAttribute", *asked, where=self.name)
        return found.value

    def _argument_bytes(self) -> int:
        """Bytes of its one parameter; 0 where the driver (before 12.4) cannot tell."""
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        if not self._gpu.driver.has("cuFuncGetParamInfo"):
            return 0
        asked = (self._handle, ctypes.c_size_t(0), ctypes.byref(offset), ctypes.byref(size))
        return 0 if self._gpu.driver.status("cuFuncGetParamInfo", *asked) else size.value


def architecture_number(cubin: bytes) -> int:
    """The architecture that machine code is for, as 90; UnspoolError where it is none."""
    if len(cubin) < _FLAGS + 4 or cubin[:4] != b"\x7fELF":
        raise UnspoolError("no machine code", where="GPU", found=f"{len(cubin)} bytes")
    (flags,) = struct.unpack_from("<I", cubin, _FLAGS)
    return int(flags >> 8 if cubin[_ABI] >= _NEW_ABI else flags) & 0xFF
