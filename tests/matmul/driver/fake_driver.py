"""A driver's library as far as unspool calls it: what it was asked, and refusals on demand."""

from __future__ import annotations

import ctypes
import struct
from collections import Counter

ATTRIBUTES = {16: 132, 13: 1_980_000, 38: 60 << 20, 97: 227 * 1024, 81: 228 * 1024}
FUNCTION_ATTRIBUTES = {3: 0, 4: 168}


def machine_code(number: int, abi: int = 8) -> bytes:
    """The head of a cubin for an architecture, as 90."""
    head = bytearray(64)
    head[:4], head[8] = b"\x7fELF", abi
    struct.pack_into("<I", head, 0x30, number << 8 | 4 if abi >= 8 else number << 16 | number)
    return bytes(head)


class FakeLibrary:
    """Attributes are functions, as ctypes has them; each returns a status."""

    def __init__(self, capability=(9, 0), *, count=1, kernels=("k",), argument_bytes=16) -> None:
        self.attributes = {**ATTRIBUTES, 75: capability[0], 76: capability[1]}
        self.count, self.kernels, self.argument_bytes = count, kernels, argument_bytes
        self.refuses: dict[str, list[int]] = {}
        self.calls: Counter[str] = Counter()
        self.launches: list[tuple] = []
        self.shared: list[int] = []

    def refuse(self, function: str, *statuses: int) -> FakeLibrary:
        """The next calls of a function return these; the last one stays."""
        self.refuses[function] = list(statuses)
        return self

    def __getattr__(self, name: str):
        if not name.startswith("cu"):
            raise AttributeError(name)
        does = getattr(type(self), f"_{name[2:].lower()}", lambda *_: 0)

        def function(*arguments) -> int:
            self.calls[name] += 1
            left = self.refuses.get(name, [])
            status = (left.pop(0) if len(left) > 1 else left[0]) if left else 0
            return status or does(self, *arguments) or 0

        return function

    def _drivergetversion(self, found) -> None:
        found._obj.value = 13_000

    def _devicegetcount(self, found) -> None:
        found._obj.value = self.count

    def _devicegetname(self, name, size, device) -> None:
        name.value = b"NVIDIA Fake"

    def _devicetotalmem_v2(self, found, device) -> None:
        found._obj.value = 80 << 30

    def _devicegetattribute(self, found, which, device) -> None:
        found._obj.value = self.attributes[which]

    def _funcgetattribute(self, found, which, function) -> None:
        found._obj.value = FUNCTION_ATTRIBUTES[which]

    def _funcgetparaminfo(self, function, which, offset, size) -> None:
        size._obj.value = self.argument_bytes

    def _funcsetattribute(self, function, which, value) -> None:
        self.shared.append(value)

    def _modulegetfunction(self, handle, module, name) -> int:
        handle._obj.value = 0x1000
        return 0 if name.decode() in self.kernels else 500

    def _moduleloaddata(self, module, cubin) -> None:
        module._obj.value = 0x2000

    def _geterrorname(self, status, text) -> None:
        text._obj.value = f"CUDA_ERROR_{status}".encode()

    def _launchkernel(self, function, x, y, z, a, b, c, shared, stream, parameters, extra):
        data = ctypes.string_at(parameters[0], self.argument_bytes)
        self.launches.append(((x, y, z), (a, b, c), shared, stream.value, data))
