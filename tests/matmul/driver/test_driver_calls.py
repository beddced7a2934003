"""What ctypes hands to the driver's functions, by a library that has their types (cuda.h).

No driver is at hand: compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from unspool.errors import UnspoolError
from unspool.matmul.cuda.device import Gpu
from unspool.matmul.cuda.driver import Driver

STUB = Path(__file__).with_name("stub.cpp")
HIGH = 0x7FFF_1234_5678_9ABC


class Arguments(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_uint64),
        ("y", ctypes.c_uint64),
        ("m", ctypes.c_int),
        ("n", ctypes.c_int),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to build the stub with")
    path = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
    command = [compiler, "-std=c++17", "-shared", "-fPIC", "-O1", str(STUB), "-o", str(path)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def opened(library) -> Gpu:
    return Gpu(Driver(library), ordinal=1)


def seen(library: ctypes.CDLL) -> list[int]:
    library.stub_seen.restype = ctypes.POINTER(ctypes.c_uint64)
    return library.stub_seen()[:11]


def test_facts_come_through(opened):
    facts = opened.facts
    assert (facts.name, facts.driver, facts.capability) == ("NVIDIA Stub", "12.8", (9, 0))
    assert facts.memory_bytes == 41 << 32  # more than 32 bits
    assert (facts.shared_bytes, facts.multiprocessors) == (232448, 16000)


def test_a_launch_comes_through_with_64_bit_handles_and_the_struct_by_value(opened, library, fake):
    kernel = opened.load(fake.machine_code(90)).kernel("k", shared_bytes=200_000)
    assert (kernel.argument_bytes, kernel.registers) == (24, 4)
    kernel.launch((1 << 31, 2, 3), 160, Arguments(HIGH, HIGH + 1, -5, 6), HIGH + 2)
    numbers = seen(library)
    assert numbers[:7] == [1 << 31, 2, 3, 160, 1, 1, 200_000]
    assert numbers[7:10] == [HIGH + 2, HIGH, HIGH + 1]
    assert numbers[10] == 6 << 32 | 0xFFFF_FFFB


def test_the_drivers_words_come_through(opened, fake):
    kernel = opened.load(fake.machine_code(90)).kernel("k")
    with pytest.raises(UnspoolError, match=r"OUT_OF_RESOURCES \(701\) from cuLaunchKernel"):
        kernel.launch((1, 77, 1), 32, Arguments())
