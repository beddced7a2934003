"""NVIDIA's driver by ctypes, and what its refusals mean. Every machine with a GPU has it.

Nothing here waits for the GPU. A test puts an object with the same functions in its place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from unspool.errors import UnspoolError

LIBRARY = "libcuda.so.1"

OUT_OF_MEMORY, NO_DEVICE, INVALID_CONTEXT, NOT_FOUND = 2, 100, 201, 500

TOO_OLD = frozenset((200, 218, 222))
"""What drivers say of machine code that is newer than they are: invalid image, invalid or
unsupported PTX."""

_MEANING: Mapping[int, str] = {
    OUT_OF_MEMORY: "out of GPU memory",
    3: "the driver is not initialized",
    34: "libcuda.so.1 is a stub for linking, no driver",
    46: "the GPU is taken by another process (exclusive mode)",
    NO_DEVICE: "no GPU is visible (CUDA_VISIBLE_DEVICES may hide it)",
    101: "no such GPU",
    209: "the machine code is for another GPU",
    304: "the operating system refused the driver a call",
    700: "a kernel touched memory that is not its own; this process must be started anew",
    701: "a block takes more registers or shared memory than there are",
    702: "a kernel ran for too long and was ended",
    716: "a kernel touched a misaligned address; this process must be started anew",
    719: "a kernel failed; this process must be started anew",
    802: "the system is not ready for GPU work (fabric manager)",
    803: "the driver's kernel module and library are of different versions",
    804: "a forward-compatible CUDA is installed, which this GPU does not allow",
    900: "the call is not allowed while a graph is captured",
}


class Driver:
    """Calls by name: `call("cuInit", 0)`; a refusal becomes one line."""

    def __init__(self, library: Any = None) -> None:
        """Loads the driver's library; UnspoolError where there is none."""
        try:
            self._library = library or ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise UnspoolError(
                "no NVIDIA driver on this machine", where="GPU", found=error
            ) from error

    def call(self, function: str, *arguments: object, where: str = "GPU") -> None:
        """Calls a function; UnspoolError with its meaning where it refuses."""
        status = self.status(function, *arguments)
        if status:
            raise self.error(status, function, where=where)

    def status(self, function: str, *arguments: object) -> int:
        """Calls a function; its status, 0 for success."""
        return int(getattr(self._library, function)(*arguments))

    def has(self, function: str) -> bool:
        """Whether this driver has a function that came late."""
        return hasattr(self._library, function)

    def error(self, status: int, function: str, *, where: str = "GPU") -> UnspoolError:
        """The error of a refused call: its meaning, the driver's own words, the call."""
        meaning = _MEANING.get(status, "the driver refused a call")
        return UnspoolError(meaning, where=where, found=f"{self._words(status)} from {function}")

    @property
    def version(self) -> str:
        """The newest CUDA it runs, as 13.0."""
        found = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(found))
        return f"{found.value // 1000}.{found.value % 1000 // 10}"

    def _words(self, status: int) -> str:
        text = ctypes.c_char_p()
        if self.status("cuGetErrorName", status, ctypes.byref(text)) or not text.value:
            return f"error {status}"
        return f"{text.value.decode()} ({status})"
