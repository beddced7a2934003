"""What kernels and their twins believe of the hardware's layouts: data, each with its source.

    fragment     which thread's register holds which (row, column) of a matrix
    descriptor   which bits of a word mean what
    operand B    where a word of a column stands in shared memory

The C++ twins are printed from here, and the tests compare every entry with a second source, the
layouts that CUTLASS gives its atoms: so a wrong belief cannot sit in kernel and twin alike. Columns
of A and B are words of a slice (32 bytes of a row), those of D are results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True, kw_only=True)
class Digit:
    """A digit of a thread's or register's number, the lowest first, and what a step of it adds."""

    size: int
    row: int = 0
    column: int = 0


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Where the registers of threads lie in a matrix."""

    #: section of the PTX ISA, version 9.0
    source: str
    threads: tuple[Digit, ...]
    registers: tuple[Digit, ...]

    def places(self) -> Int[np.ndarray, "threads registers 2"]:
        """(row, column) of every thread's registers."""
        return _steps(self.threads)[:, None] + _steps(self.registers)[None]

    def cpp(self, name: str) -> str:
        """The same as a C++ function of thread and register."""
        row, column = (
            " + ".join(
                _terms("thread", self.threads, axis) + _terms("i", self.registers, axis)
            ) or "0"
            for axis in ("row", "column")
        )  # fmt: skip
        return (
            f"// {self.source}\n"
            f"constexpr Spot {name}(int thread, int i) {{\n    return {{{row}, {column}}};\n}}\n"
            + self._selector(name)
        )

    def _selector(self, name: str) -> str:
        """Threads alike in rows and columns: which of them an instruction has to name."""
        below = 1
        for digit in self.threads:
            if not (digit.row or digit.column):
                number = f"thread / {below} % {digit.size}"
                return f"constexpr int {name}_selector(int thread) {{\n    return {number};\n}}\n"
            below *= digit.size
        return ""


_QUAD = Digit(size=4, column=1)
_GROUP = Digit(size=8, row=1)
_PAIR = Digit(size=4, column=2)
_WARPS = Digit(size=4, row=16)
_LOWER = Digit(size=2, row=8)
_RIGHT = Digit(size=2, column=4)
_NEXT = Digit(size=2, column=1)
_EITHER_PAIR = Digit(size=2)
_ANY_OF_QUAD = Digit(size=4)
_SCALES = Digit(size=4, column=1)
_LANES = Digit(size=32, row=1)
_PARTITIONS = Digit(size=4, row=32)

FRAGMENTS: Mapping[str, Fragment] = {
    "a_spot": Fragment(
        source="Matrix fragments for mma.m16n8k16 with floating point type, and mma.m16n8k32",
        threads=(_QUAD, _GROUP),
        registers=(_LOWER, _RIGHT),
    ),
    "b_spot": Fragment(
        # a row of this table is a column of operand B
        source="Matrix fragments for mma.m16n8k16 with floating point type, and mma.m16n8k32",
        threads=(_QUAD, _GROUP),
        registers=(_RIGHT,),
    ),
    "d_spot": Fragment(
        source="Matrix fragments for mma.m16n8k16 with floating point type, and mma.m16n8k32",
        threads=(_PAIR, _GROUP),
        registers=(_NEXT, _LOWER),
    ),
    "scale_a_spot": Fragment(
        # registers: bytes of the one word; a column is 16 operands of a slice. Of .scale_vec::1X
        # byte-id-a says which byte is that of all 32
        source="mma with block scaling: scale_A of .scale_vec::4X, thread-id-a; byte-id-a is 0",
        threads=(_LOWER, _EITHER_PAIR, _GROUP),
        registers=(_SCALES,),
    ),
    "scale_b_spot": Fragment(
        # a row of this table is a column of operand B
        source="mma with block scaling: scale_B of .scale_vec::4X, thread-id-b; byte-id-b is 0",
        threads=(_ANY_OF_QUAD, _GROUP),
        registers=(_SCALES,),
    ),
    "group_a_spot": Fragment(
        source="Register fragments for wgmma.mma_async.m64nNk16 and m64nNk32: matrix A",
        threads=(_QUAD, _GROUP, _WARPS),
        registers=(_LOWER, _RIGHT),
    ),
    "group_d_spot": Fragment(
        source="Register fragments for wgmma.mma_async.m64nNk16 and m64nNk32: accumulator D",
        threads=(_PAIR, _GROUP, _WARPS),
        registers=(_NEXT, _LOWER, Digit(size=32, column=8)),
    ),
    "store_spot": Fragment(
        source="tcgen05 data movement shape .16x128b, .x2; row: lane of tensor memory",
        threads=(_QUAD, _GROUP),
        registers=(_LOWER, _RIGHT),
    ),
    "load_spot": Fragment(
        source="tcgen05 data movement shape .16x256b, each .x1; row: lane of tensor memory",
        threads=(_PAIR, _GROUP),
        registers=(_NEXT, _LOWER),
    ),
    "row_spot": Fragment(
        source="tcgen05 data movement shape .32x32b; row: lane of tensor memory",
        threads=(_LANES,),
        registers=(Digit(size=128, column=1),),
    ),
    "copy_spot": Fragment(
        # thread: which 16 bytes of shared memory; row: lane of tensor memory, of every warp's 32
        source="tcgen05.cp of shape .32x128b with .warpx4",
        threads=(_LANES,),
        registers=(Digit(size=4, column=1), _PARTITIONS),
    ),
    "memory_scale_spot": Fragment(
        # thread: row of operand A or column of B; registers: a scale per 16 operands of a slice,
        # and its copies; row: lane of tensor memory, column: byte from where the scales begin. Of
        # scale_vec::1X the descriptor says which byte is that of all 32
        source="Layout of the scale factor A and B matrices for scale_vec::4X with K=64",
        threads=(_LANES, Digit(size=4, column=4)),
        registers=(_SCALES, _PARTITIONS),
    ),
    "matrix_spot": Fragment(
        # row: which lane gives the address; column: which word of the 16 bytes there
        source="Warp-level matrix load instruction: ldmatrix, .m8n8, .x4",
        threads=(_QUAD, _GROUP),
        registers=(Digit(size=4, row=8),),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Field:
    """Bits of a descriptor."""

    first: int
    bits: int
    #: low bits of the value that are left out
    dropped: int = 0


WGMMA_DESCRIPTOR: Mapping[str, Field] = {
    "start": Field(first=0, bits=14, dropped=4),
    "leading": Field(first=16, bits=14, dropped=4),
    "stride": Field(first=32, bits=14, dropped=4),
    "base": Field(first=49, bits=3),
    "swizzle": Field(first=62, bits=2),
}
"""Asynchronous warpgroup level matrix shared memory layout: matrix descriptor format."""

TENSOR_DESCRIPTOR: Mapping[str, Field] = {
    "start": Field(first=0, bits=14, dropped=4),
    "leading": Field(first=16, bits=14, dropped=4),
    "stride": Field(first=32, bits=14, dropped=4),
    "version": Field(first=46, bits=3),
    "base": Field(first=49, bits=3),
    "leading_mode": Field(first=52, bits=1),
    "swizzle": Field(first=61, bits=3),
}
"""tcgen05 shared memory descriptor; the version is 1, no swizzle is 0."""

INSTRUCTION_DESCRIPTOR: Mapping[str, Field] = {
    "sparse": Field(first=2, bits=1),
    "saturate": Field(first=3, bits=1),
    "d_format": Field(first=4, bits=2),
    "a_format": Field(first=7, bits=3),
    "b_format": Field(first=10, bits=3),
    "negate": Field(first=13, bits=2),
    "transpose": Field(first=15, bits=2),
    "n": Field(first=17, bits=6, dropped=3),
    "m": Field(first=24, bits=5, dropped=4),
}
"""tcgen05 instruction descriptor, for .kind::f16, .kind::f8f6f4 and .kind::i8."""

SCALED_DESCRIPTOR: Mapping[str, Field] = {
    "sparse": Field(first=2, bits=1),
    "b_scale": Field(first=4, bits=2),
    "a_format": Field(first=7, bits=3),
    "b_format": Field(first=10, bits=3),
    "negate": Field(first=13, bits=2),
    "transpose": Field(first=15, bits=2),
    "n": Field(first=17, bits=6, dropped=3),
    "scale_format": Field(first=23, bits=1),
    "m": Field(first=24, bits=5, dropped=4),
    "a_scale": Field(first=29, bits=2),
    "k": Field(first=31, bits=1),
}
"""tcgen05 instruction descriptor, for .kind::mxf4nvf4 and .kind::mxf8f6f4. a_scale and b_scale
select bytes of a word of scales: with scale_vec::4X all of it are a slice's, and they are 0; with
scale_vec::1X that byte is. k: 0 is 64 columns of FP4, 32 of others.
"""

SCALE_ALIGNMENT = 2
"""Columns of tensor memory: scales begin at a multiple. The PTX ISA asks for whole words; CUTLASS
moves B's scales by 2 columns for 64 of B, and a public kernel for B200 says that odd ones fail.
"""

FORMATS: Mapping[str, tuple[int, int, int]] = {
    "f16": (0, 0, 1), "e4m3": (0, 0, 1), "e5m2": (1, 0, 1), "f8f6f4_e2m1": (5, 0, 1),
    "f8f6f4_e2m3": (3, 0, 1), "f8f6f4_e3m2": (4, 0, 1), "mxf4nvf4": (1, 1, 0), "s8": (1, 1, 2),
}  # fmt: skip
"""Kind of product, in the order of the wrappers' Kind -> a_format, b_format, d_format. B is
binary16 for f16, packed E2M1 for mxf4nvf4, signed for s8, E4M3 for all others; D is FP32, whole
numbers of 32 bits for s8. The descriptor of mxf4nvf4 has no format of D: it is FP32."""

SCALE_FORMATS: Mapping[str, int] = {
    "f16": 0, "e4m3": 1, "e5m2": 1, "f8f6f4_e2m1": 1, "f8f6f4_e2m3": 1, "f8f6f4_e3m2": 1,
    "mxf4nvf4": 0, "s8": 0,
}  # fmt: skip
"""Kind of product -> scale_format of scales beside it, where there are some: E4M3 is 0, E8M0 1."""

CONTAINER_SHIFTS: Mapping[str, int] = {
    "f16": 0, "e4m3": 0, "e5m2": 0, "f8f6f4_e2m1": 2, "f8f6f4_e2m3": 0, "f8f6f4_e3m2": 0,
    "mxf4nvf4": 0, "s8": 0,
}  # fmt: skip
"""Where a narrow float begins in its byte. PTX ISA, mma with .kind::f8f6f4: four bits in the
middle, six at the bottom; tensor memory is believed to have them the same."""


def operand_offset(column: int, word: int, leading: int, stride: int) -> int:
    """Bytes from a slice's start to a word of its operand B: no swizzle, K contiguous.

    PTX ISA, "Strides" and "Canonical layouts" (K-major, no swizzling, T = 128 bits / element):
    ((8, n), (T, 2)) : ((T, SBO), (1, LBO)). Core matrices of 8 columns x 16 bytes.
    """
    return column % 8 * 16 + column // 8 * stride + word % 4 * 4 + word // 4 * leading


def cpp() -> str:
    """All of it for the host twins."""
    fields = {
        "wgmma": WGMMA_DESCRIPTOR,
        "tensor": TENSOR_DESCRIPTOR,
        "product": INSTRUCTION_DESCRIPTOR,
        "scaled": SCALED_DESCRIPTOR,
    }
    lines = [
        f"constexpr Field {kind}_{name} = {{{field.first}, {field.bits}, {field.dropped}}};"
        for kind, of in fields.items()
        for name, field in of.items()
    ]
    return "\n".join((
        "namespace unspool::host {",
        "struct Spot {\n    int row, column;\n};",
        *(fragment.cpp(name) for name, fragment in FRAGMENTS.items()),
        "struct Field {\n    int first, bits, dropped;\n};",
        *lines,
        f"constexpr int scale_alignment = {SCALE_ALIGNMENT};",
        "// by kind of product",
        *(
            f"constexpr int {which}_formats[] = {{{', '.join(map(str, formats))}}};"
            for which, formats in zip("abd", zip(*FORMATS.values(), strict=True), strict=True)
        ),
        *(
            f"constexpr int {name}[] = {{{', '.join(map(str, of.values()))}}};"
            for name, of in (
                ("scale_formats", SCALE_FORMATS), ("container_shifts", CONTAINER_SHIFTS)
            )
        ),
        "}  // namespace",
        "",
    ))  # fmt: skip


def _steps(digits: tuple[Digit, ...]) -> Int[np.ndarray, "numbers 2"]:
    steps = np.zeros((1, 2), np.int64)
    for digit in digits:
        each = np.arange(digit.size)[:, None] * np.array([digit.row, digit.column])
        steps = (each[:, None] + steps[None]).reshape(-1, 2)
    return steps


def _terms(variable: str, digits: tuple[Digit, ...], axis: str) -> list[str]:
    found, below = [], 1
    for digit in digits:
        if step := digit.row if axis == "row" else digit.column:
            found.append(f"{variable} / {below} % {digit.size} * {step}")
        below *= digit.size
    return found
