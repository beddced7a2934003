"""Rotation by a blockwise Walsh-Hadamard transform with random signs.

It makes the weights of any matrix nearly Gaussian, which is what the codes are designed for, and
costs a few additions per weight. Forwards: signs, then H; back: H, then signs (H is symmetric and
its own inverse). H is orthonormal, in natural order, of a power-of-two size, one per block of the
row: H[i, j] = (-1)^popcount(i & j) / sqrt(size).

The sign at `index` is the top bit of splitmix64 (Steele, Lea, Flood 2014): minus where
mix(mix(2 * seed + side) + (index + 1) * 0x9E3779B97F4A7C15) has it set, with side 0 for "in" and 1
for "out", everything modulo 2^64. Signs depend on nothing else, so a slice of a sharded layer can
compute its own.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unspool import native
from unspool.errors import UnspoolError
from unspool.spec.rotation import Rotation

Floats = NDArray[np.float32]
Signs = NDArray[np.int8]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def signs(size_total: int, seed: int, side: Literal["in", "out"]) -> Signs:
    """The +-1 [size_total] of one side of a layer; side "in" runs along k, "out" along n."""
    if side not in ("in", "out"):
        raise _wrong("side", side, '"in" or "out"')
    if not 0 <= seed < 1 << 63:
        raise _wrong("seed", seed, "0 to 2^63 - 1")
    key = _mix(np.array([2 * seed + (side == "out")], np.uint64))
    counter = np.arange(1, size_total + 1, dtype=np.uint64) * _GAMMA
    top = (_mix(key + counter) >> np.uint64(63)).astype(np.int8)
    return np.int8(1) - np.int8(2) * top


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hadamard(x: Floats, size: int, signs: Signs, *, threads: int | None = None) -> Floats:
    """H (x * signs) for every block of `size` columns of x [rows, k]; signs [k]."""
    return _rotate(x, size, signs, np.ones_like(signs), threads)


def hadamard_inverse(x: Floats, size: int, signs: Signs, *, threads: int | None = None) -> Floats:
    """(H x) * signs: undoes `hadamard` up to float32 rounding."""
    return _rotate(x, size, np.ones_like(signs), signs, threads)


def rotate(
    weight: Floats, rotation: Rotation, *, first_row: int = 0, threads: int | None = None
) -> Floats:
    """The weight [n, k] that rotated activations meet: rows along k, then columns along n.

    `first_row`: where in the whole matrix these rows stand, whole blocks of the rotation before.
    """
    n, k = weight.shape
    if rotation.input_size:
        flips = signs(k, rotation.seed, "in")
        weight = hadamard(weight, rotation.input_size, flips, threads=threads)
    if rotation.output_size:
        flips = signs(first_row + n, rotation.seed, "out")[first_row:]
        turned = hadamard(weight.T, rotation.output_size, flips, threads=threads)
        weight = np.ascontiguousarray(turned.T)
    return weight


def unrotate(weight: Floats, rotation: Rotation) -> Floats:
    """The inverse of `rotate`, up to float32 rounding."""
    n, k = weight.shape
    if rotation.output_size:
        turned = hadamard_inverse(weight.T, rotation.output_size, signs(n, rotation.seed, "out"))
        weight = np.ascontiguousarray(turned.T)
    if rotation.input_size:
        weight = hadamard_inverse(weight, rotation.input_size, signs(k, rotation.seed, "in"))
    return weight


def _rotate(x: Floats, size: int, before: Signs, after: Signs, threads: int | None) -> Floats:
    x = np.ascontiguousarray(x, np.float32)
    _check(x, size, before)
    count = native.threads(threads)
    if native.library() is None:
        native.warn_twin("the Hadamard rotation")
        return rotate_twin(x, size, before, after)
    return _rotate_native(x, size, before, after, count)


def rotate_twin(x: Floats, size: int, before: Signs, after: Signs) -> Floats:
    """The same in numpy, butterflies from the nearest partners outwards, one scaling last."""
    out = x * before.astype(np.float32)
    gap = 1
    while gap < size:
        pairs = out.reshape(-1, 2, gap)
        a, b = pairs[:, 0], pairs[:, 1]
        out = np.stack([a + b, a - b], axis=1)
        gap *= 2
    scaled: Floats = out.reshape(x.shape) * _scale(size) * after.astype(np.float32)
    return scaled


def _scale(size: int) -> np.float32:
    return np.float32(1 / math.sqrt(size))


def _check(x: Floats, size: int, signs: Signs) -> None:
    if size < 1 or size & (size - 1):
        raise _wrong("size", size, "a power of two")
    if x.ndim != 2 or x.shape[1] % size:
        raise _wrong("x", x.shape, f"[rows, a multiple of {size}]")
    if signs.shape != x.shape[1:]:
        raise _wrong("signs", signs.shape, f"[{x.shape[1]}]")


def _rotate_native(x: Floats, size: int, before: Signs, after: Signs, threads: int) -> Floats:
    out = np.empty_like(x)
    first, last = before.astype(np.float32), after.astype(np.float32)
    status = _function()(
        x.ctypes.data, *x.shape, size, float(_scale(size)),
        first.ctypes.data, last.ctypes.data, threads, out.ctypes.data,
    )  # fmt: skip
    native.check(status, "hadamard")
    return out


@functools.cache
def _function() -> Callable[..., int]:
    library = native.library()
    assert library is not None
    function = library.unspool_hadamard
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [pointer, *[size] * 3, ctypes.c_float, *[pointer] * 2, size, pointer]
    function.restype = ctypes.c_int
    return function


def _wrong(argument: str, found: object, allowed: str) -> UnspoolError:
    where = f"hadamard {argument}"
    return UnspoolError("cannot rotate", where=where, found=str(found), allowed=allowed)
