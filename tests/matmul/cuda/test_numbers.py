"""Operands and conversions of the twins against ml_dtypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from unspool.decode.emit_cuda import header
from unspool.matmul.cuda import simulate


class Numbers(ctypes.Structure):
    _fields_ = (("in", ctypes.c_void_p), ("out", ctypes.c_void_p), ("count", ctypes.c_int))


@pytest.fixture(scope="module")
def kernels() -> simulate.Simulation:
    if simulate.why_not():
        pytest.skip(simulate.why_not())
    text = (Path(__file__).parent / "numbers.cuh").read_text()
    product = "namespace unspool { UNSPOOL_DEVICE word product_of(Kind, int) { return 0; } }"
    return simulate.build(header() + product + text)


def run(kernels: simulate.Simulation, name: str, given: np.ndarray, out: np.ndarray) -> np.ndarray:
    arguments = Numbers(simulate.address(given), simulate.address(out), given.size)
    arrays = {"in": given, "out": out}
    simulate.run(kernels, name, arguments, arrays, grid=(1, 1), threads=32, shared_bytes=0)
    return out


BYTES = np.arange(256, dtype=np.uint8)

# PTX ISA, kind::f8f6f4: four bits of an operand stand in bits 2 to 5 of its byte, six in 0 to 5
OPERANDS = {
    "e4m3": BYTES.view(ml_dtypes.float8_e4m3fn),
    "e5m2": BYTES.view(ml_dtypes.float8_e5m2),
    "e2m1": (BYTES >> 2 & 15).view(ml_dtypes.float4_e2m1fn),
    "e2m3": (BYTES & 63).view(ml_dtypes.float6_e2m3fn),
    "s8": BYTES.view(np.int8),
    "e3m2": (BYTES & 63).view(ml_dtypes.float6_e3m2fn),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_every_byte_is_worth_what_its_format_says(kernels, name):
    found = run(kernels, f"bytes_{name}", np.zeros(1, np.float32), np.zeros(256, np.float32))
    np.testing.assert_array_equal(found, OPERANDS[name].astype(np.float32))


CONVERSIONS = {
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
}


def test_four_floats_become_four_packed_e2m1(kernels):
    ties = np.arange(0, 8, 0.125, np.float32)
    given = np.concatenate((ties, -ties, [1e-30, 1e30, -1e30, 5.1]), dtype=np.float32)
    bits = run(kernels, "to_e2m1", given, np.zeros(given.size // 4, np.uint32))
    found = bits[:, None] >> np.array([0, 4, 8, 12]) & 15
    want = np.clip(given, -6, 6).astype(ml_dtypes.float4_e2m1fn)  # saturating
    np.testing.assert_array_equal(found.reshape(-1), want.view(np.uint8))


def test_floats_become_the_nearest_integers_ties_to_the_even(kernels):
    ties = np.arange(-127, 127.5, 0.5, np.float32)
    near = np.concatenate((np.nextafter(ties, -200), np.nextafter(ties, 200)), dtype=np.float32)
    given = np.concatenate((ties, near, [1e-30, -0.0, 127.4])).astype(np.float32)
    found = run(kernels, "to_s8", given, np.zeros(given.size, np.uint32))
    np.testing.assert_array_equal(found.astype(np.uint8).view(np.int8), np.rint(given))


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_round_to_nearest_even(kernels, name):
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(2000) * 2.0 ** rng.integers(-30, 8, 2000)
    halves = np.arange(4096, dtype=np.uint16).view(np.float16) * np.float32(0.5)  # ties
    given = np.concatenate((spread, halves, -halves, [0.0, -0.0, 448.0, 464.0])).astype(np.float32)
    if name == "e4m3":  # saturating, where ml_dtypes gives NaN
        given = np.clip(given, -464, 464)
    found = run(kernels, f"to_{name}", given, np.zeros(given.size, np.uint32))
    with np.errstate(over="ignore"):
        expected = given.astype(CONVERSIONS[name])
    bits = expected.view(np.uint8 if name == "e4m3" else np.uint16)
    if name == "e4m3":
        bits = np.where(given == 464, 0x7E, bits)
    np.testing.assert_array_equal(found, bits)
