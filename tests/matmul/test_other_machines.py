"""Kernels for machines that this one is not: AVX-512 by emulated instructions, NEON by an emulator.

AVX-512 from a second source: SIMDe (Debian's libsimde-dev) says in plain C what Intel's
instructions do. Arm: cross-compiled, run by QEMU. Either is compiled with `machines/replay.cpp`,
which runs the products that are written down here; the bits must be the definition's.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from unspool import native
from unspool.matmul.choose import KINDS, PATHS, choose
from unspool.matmul.kernel import Kernel
from unspool.matmul.native_matrix import NativeMatrix, Turn
from unspool.spec.catalog import parse
from unspool.spec.rotation import Rotation

MACHINES = Path(__file__).parent / "machines"
SOURCES = Path(__file__).parents[2] / "src" / "unspool"
SYSROOT = Path("/usr/aarch64-linux-gnu")
SIMDE = Path("/usr/include/simde/x86/avx512.h")

PER_MACHINE = {"features.cpp", "strip_product.cpp"}
LIBRARY = [
    *(path for path in sorted(SOURCES.glob("matmul/cpu/*.cpp")) if path.name not in PER_MACHINE),
    *(SOURCES / "pool.cpp", SOURCES / "encode/rotate.cpp"),
]
"""What a product needs beside the kernel of a family and what tells families apart."""

FLAGS = ["-std=c++17", "-Og", "-ffp-contract=off", "-Wall", "-Wextra", f"-I{SOURCES}", "-pthread"]

SIZE = 71, 650
"""Rows and columns: several strips of 16 and one and a half of 64, two chunks, a part of a tile."""

BATCHES = (1, 2, 3, 4, 5, 7, 13)
"""Rows of activations: up to four are multiplied as they are decoded, then six at a time."""

NAMES = (
    "t1-e2m1", "t1.5-e2m1", "t2-e2m1", "t2.5-e2m3", "t3-e2m3", "t3.5-e2m3", "t4-e2m3",
    "mxfp4", "nvfp4", "mxfp6-e2m3", "int4", "int8", "m2-e2m1", "m2-e4m3", "m3-e2m1",
    "int8:b16-e4m3", "t1.5-e2m1:b48-fp16", "m2-e2m1:b64-e4m3", "t2-e2m1:h64-both", "int4:b8-fp16",
    "mxfp4:b256-e8m0",
)  # fmt: skip
TABLES = {
    "two plain bits": ("2,2", [-3, -1, 1, 3]),
    "three plain bits": ("3,3", range(-4, 4)),
    "levels to the ends of int8": ("5,1 2,2", range(-128, 256, 3)),
    "a ring of two bits a step": ("7,2", range(-128, 128, 2)),
    "128 levels and a plain bit": ("6,1 1,1", range(-64, 64)),
    "those by a table": ("4,1 5,5", range(-128, 128)),
}


def tools(*needed: str | Path) -> None:
    for tool in needed:
        if not (tool.exists() if isinstance(tool, Path) else shutil.which(tool)):
            pytest.skip(f"{tool} is not installed")
    if native.library() is None:
        pytest.skip(native.why_not())


def compiled(program: Path, compiler: str, *sources: Path, flags=()) -> Path:
    command = [compiler, *FLAGS, *flags, *sources, "-ldl", "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


class Notes:
    """Products written down for replay.cpp, and what they should be."""

    def __init__(self, path: str) -> None:
        self.path, self.parts = path, []
        self.expected: list[tuple[str, list[np.ndarray], np.ndarray | None]] = []

    def add(self, name: str, matrix) -> None:
        rng = np.random.default_rng(len(self.expected))
        x = rng.standard_normal((max(BATCHES), matrix.shape[1]), np.float32)
        x[1, -1], x[2, :], x[3] = 300, -0.0, x[3] * np.float32(1e30)
        y = Kernel(matrix, target="numpy")(x)
        here = Kernel(matrix, target="portable")
        turns = [turn for turn, _ in here._turns]
        arrays = [*here._native.keep, *(array for _, kept in here._turns for array in kept)]
        by_address = {array.ctypes.data: array for array in arrays}
        head = PATHS[self.path], KINDS["integer"], *matrix.shape, len(BATCHES), len(by_address)
        sizes = ctypes.sizeof(NativeMatrix), ctypes.sizeof(Turn)
        self.parts += [np.array([*head, *sizes], np.int64).tobytes()]
        self.parts += map(bytes, (here._native, *turns))
        for address, array in by_address.items():
            self.parts += [np.array([address, array.nbytes], np.uint64).tobytes(), array.tobytes()]
        self.parts += [np.array(BATCHES, np.int64).tobytes(), x.tobytes()]
        codes = matrix.codes if here.owns_codes else None
        self.expected.append((name, [y[:m] for m in BATCHES], codes))

    def replayed(self, folder: Path, *program: str | Path) -> list[tuple[str, bool]]:
        """(what, whether it is as expected) of everything that the program wrote."""
        written, answers = folder / "products", folder / "answers"
        written.write_bytes(b"".join(self.parts))
        command = [*program, written, answers]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return list(self._compared(answers.read_bytes()))

    def _compared(self, answers: bytes):
        at = 0

        def take(dtype: str, count: int) -> np.ndarray:
            nonlocal at
            found = np.frombuffer(answers, dtype, count, at)
            at += found.nbytes
            return found

        for name, batches, codes in self.expected:
            for y in batches:
                found, wanted = take("uint32", y.size), y.view(np.uint32).ravel()
                nan = np.isnan(found.view(np.float32)) & np.isnan(y.ravel())
                yield f"{name}, {len(y)} rows", bool(np.all((found == wanted) | nan))
            (owned,) = take("int64", 1)
            yield f"{name}: owns its codes", bool(owned) == (codes is not None)
            if owned and codes is not None:
                yield f"{name}: codes", np.array_equal(take("uint32", codes.size), codes.ravel())
        yield "nothing more is written", at == len(answers)


@pytest.fixture
def notes(random_matrix, table_format):
    def written(path: str) -> Notes:
        noted = Notes(path)
        for name in NAMES:
            noted.add(name, random_matrix(name, *SIZE))
        for name, (planes, levels) in TABLES.items():
            fmt = table_format(planes, levels)
            noted.add(name, random_matrix(fmt, *SIZE))
            noted.add(
                f"{name}, rotated", random_matrix(fmt.vary(rotation=Rotation(size=32)), *SIZE)
            )
        return noted

    return written


def test_the_formats_here_have_integer_products():
    assert all(choose(parse(name), "neon").path == "integer-neon" for name in NAMES)


def test_avx512_instructions_do_what_their_plain_twins_do(tmp_path):
    tools("g++", SIMDE)
    program = compiled(
        tmp_path / "lanes", "g++", MACHINES / "lanes_by_simde.cpp", flags=["-Wno-psabi"]
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
def test_the_avx512_kernel_on_emulated_instructions_gives_the_definitions_bits(notes, tmp_path):
    tools("g++", SIMDE)
    text = (SOURCES / "matmul/cpu/strip_product.cpp").read_text(encoding="utf-8")
    kernel = re.search(r"namespace avx512 \{\n(.*?)\}  // namespace avx512", text, re.DOTALL)
    assert kernel is not None
    (tmp_path / "avx512_kernel.hpp").write_text(kernel[1], encoding="utf-8")
    program = compiled(
        tmp_path / "replay", "g++", *LIBRARY, MACHINES / "strip_product_by_simde.cpp",
        MACHINES / "replay.cpp", flags=["-Wno-psabi", f"-I{tmp_path}"],
    )  # fmt: skip
    compared = notes("avx512").replayed(tmp_path, program)
    assert [what for what, same in compared if not same] == []


@pytest.mark.slow
def test_the_neon_kernel_in_an_emulator_gives_the_definitions_bits(notes, tmp_path):
    tools("aarch64-linux-gnu-g++", "qemu-aarch64", SYSROOT)
    program = compiled(
        tmp_path / "replay", "aarch64-linux-gnu-g++", *LIBRARY, MACHINES / "replay.cpp",
        *(SOURCES / "matmul/cpu" / name for name in sorted(PER_MACHINE)),
    )  # fmt: skip
    emulator = ["qemu-aarch64", "-cpu", "max", "-L", SYSROOT]
    compared = notes("neon").replayed(tmp_path, *emulator, program)
    assert [what for what, same in compared if not same] == []
