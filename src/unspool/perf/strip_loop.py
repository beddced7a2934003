"""The inner loop of a CPU's strip kernel, counted: instructions per 64 weights, machine code alone.

The kernel of a code's shape is compiled for few rows of activations, to assembly, by g++; the loop
that decodes and multiplies is the shortest with a dot product. Nothing is run, so that a count does
not depend on the machine, only on the compiler.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import unspool
from unspool.errors import DeclarationError, UnspoolError
from unspool.spec.code import Code

SOURCE = Path(unspool.__file__).parent
CPU = "matmul/cpu"
COMPILER = "g++"
OPTIONS = ("-std=c++17", "-O3", "-ffp-contract=off", f"-I{SOURCE}", "-w")
"""Those of the library."""

MULTIPLIED = "Multiplied"
DOTS = ("vpdpbusd", "vpmaddubsw")
LINE = 64
"""Weights that a count is of: a register of bytes of AVX-512."""

_CASE = re.compile(r"case table_shape\(([\d, ]+)\):")
_LABEL = re.compile(r"\.L\d+:")
_JUMP = re.compile(r"\s+j\w+\s+(\.L\d+)")
_DIRECTIVE = re.compile(r"\s*[.#]")


@dataclass(frozen=True, kw_only=True)
class Target:
    """How strip_product.cpp compiles the kernel: instruction set, tables, bytes of a register."""

    features: str
    tables: str
    width: int


_AVX512 = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni"
TARGETS: Mapping[str, Target] = {
    "avx512": Target(features=f"arch=x86-64-v3,{_AVX512}", tables="merged", width=64),
    "avx2": Target(features="arch=x86-64-v3", tables="split", width=32),
}


@dataclass(frozen=True, kw_only=True)
class StripShape:
    """What the kernels know of a table code: the ring's window and stride, plain bits, lanes."""

    window: int
    plain: int
    lanes: int = 1
    stride: int = 1

    def __str__(self) -> str:
        """As C++ spells it."""
        stride = f", {self.stride}" if self.window and self.stride > 1 else ""
        return f"Table<{self.window}, {self.plain}, {self.lanes}{stride}>"

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight."""
        return ((self.stride if self.window else 0) + self.plain) / self.lanes


@dataclass(frozen=True, kw_only=True)
class StripCount:
    """A loop: its lines, and registers of weights that one turn multiplies."""

    loop: tuple[str, ...]
    registers: int
    width: int

    @property
    def of_line(self) -> float:
        """Turns of the loop per 64 weights."""
        return LINE / (self.width * self.registers)

    @property
    def instructions(self) -> float:
        """Instructions per 64 weights and one row of activations times the rows."""
        return len(self.loop) * self.of_line


def compiled_shapes() -> tuple[StripShape, ...]:
    """The table shapes that the library has a kernel for, read off strip_kernel.hpp."""
    text = (SOURCE / CPU / "strip_kernel.hpp").read_text(encoding="utf-8")
    found = (tuple(int(n) for n in case.split(",")) for case in _CASE.findall(text))
    return tuple(
        StripShape(window=case[0], plain=case[1], lanes=case[2], stride=(*case, 1)[3])
        for case in found
    )


def shape_of(code: Code) -> str | None:
    """How C++ spells the kernel of a code, or None: its table is then read step by step.

    The twin of strips.cpp's `register_shape`, for codes of a table and of a product of 16 bits.
    """
    planes = [(plane.window, plane.stride) for plane in code.planes]
    if planes == [(16, 8)] and code.tile == (8, 16) and code.operand.bits == 4:
        ops = [instruction.op for instruction in code.program.instructions]
        return MULTIPLIED if ops == ["permute-bytes", "mul", "add"] else None
    (window, stride), plain = planes[0], 0
    if window == stride:
        window, stride, plain = 0, 1, planes[0][1]
    elif len(planes) > 1:
        plain = planes[1][0]
    fits = code.tile == (8, 8 * code.lanes) and all(w == s for w, s in planes[1:])
    shape = StripShape(window=window, plain=plain, lanes=code.lanes, stride=stride)
    whole = len(planes) == (2 if window and plain else 1)
    return str(shape) if fits and whole and shape in compiled_shapes() else None


def source(target: str, shape: str, m: int, caller: str = "") -> str:
    """A translation unit with one function, the kernel of a shape for m rows; then the caller."""
    machine = TARGETS[target]
    kernel = (f"lanes_{target}", f"table_{machine.tables}", "strip_codes", "strip_kernel")
    return "\n".join((
        "#include <immintrin.h>",
        "#include <cstdio>",
        "#include <new>",
        f'#include "{CPU}/features.hpp"',
        f'#include "{CPU}/integer.hpp"',
        "#define UNSPOOL_INLINE inline __attribute__((always_inline))",
        '#define UNSPOOL_UNROLL _Pragma("GCC unroll 16")',
        f'#pragma GCC target("{machine.features}")',
        "namespace unspool { namespace kernels {",
        *(f'#include "{CPU}/{name}.hpp"' for name in kernel),
        f"typedef {shape} Counted;",
        "}",
        "void counted(const StripJob& job, int64_t strip, float* out) {",
        f"  kernels::few<kernels::Counted, {m}, kNoScale>(job, strip, out);",
        "} }",
        caller,
    ))  # fmt: skip


def count_strip(target: str, shape: StripShape | str, m: int = 1) -> StripCount:
    """The loop of a shape for m rows of activations on a target.

    Raises DeclarationError for a target without strip kernels, UnspoolError without g++ or where
    it does not compile the shape.
    """
    if target not in TARGETS:
        raise DeclarationError("no strip kernel is counted there", found=target, allowed=TARGETS)
    loop = inner_loop(_assembly(source(target, str(shape), m), str(shape)))
    dots = sum(_multiplies(line) for line in loop)
    return StripCount(loop=loop, registers=dots // m, width=TARGETS[target].width)


def compile_with(
    options: tuple[str, ...], text: str, where: str, others: tuple[str, ...] = ()
) -> bytes:
    """What g++ writes to its output for a source and other files; or UnspoolError."""
    if shutil.which(COMPILER) is None:
        raise UnspoolError(
            "strip kernels are counted in machine code, and there is no compiler",
            where="PATH", found="nothing", allowed=COMPILER,
        )  # fmt: skip
    command = [COMPILER, *OPTIONS, *options, "-x", "c++", "-", *others]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UnspoolError(
            "a strip kernel does not compile", where=where, found=(said or ["no message"])[0]
        )
    return done.stdout


def _assembly(text: str, where: str) -> list[str]:
    return compile_with(("-S", "-o", "-"), text, where).decode().splitlines()


def inner_loop(lines: list[str]) -> tuple[str, ...]:
    """The instructions of the shortest loop that has a dot product."""
    found = [part for part in _loops(lines) if any(map(_multiplies, part))]
    return tuple(line for line in min(found, key=len) if not _DIRECTIVE.match(line))


def _loops(body: list[str]) -> Iterator[list[str]]:
    labels = {line[:-1]: i for i, line in enumerate(body) if _LABEL.match(line)}
    for i, line in enumerate(body):
        jump = _JUMP.match(line)
        if jump and labels.get(jump[1], i) < i:
            yield body[labels[jump[1]] + 1 : i + 1]


def _multiplies(line: str) -> bool:
    return any(dot in line for dot in DOTS)
