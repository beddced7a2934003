"""One layer's product: a coded matrix prepared once, multiplied many times.

y = x W^T. Activations are padded and rotated like the columns of the stored weight, multiplied by
the kernel that `choose` picks, then rotated back along the rows. A row of the result depends on its
own row of x alone: not on how many there are, nor on the threads.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Float32, UInt16

from unspool import native
from unspool.decode.target import target as best_target
from unspool.encode.rotate import Signs, hadamard, hadamard_inverse, signs, unrotate
from unspool.errors import WeightError
from unspool.matmul import reference
from unspool.matmul.choose import LOOK_UP_ROWS, PATHS, Choice, choose
from unspool.matmul.native_matrix import function, native_matrix
from unspool.pack.matrix import CodedMatrix

SHARED_SIGNS = 64
"""Sizes and seeds whose signs are kept, nine bytes per column."""

WORTH_THREADS = 1 << 18
"""Activations whose rotation takes longer than starting threads does (about 0.1 ms)."""


class Kernel:
    """A coded matrix ready to be multiplied.

    `target` forces one of `decode.target`; `path` is the kernel that runs for one row of
    activations and `why` says why it and no quicker one; `choice(m)` tells of m rows. The matrix's
    arrays are read in place.
    """

    def __init__(self, matrix: CodedMatrix, *, target: str | None = None) -> None:
        """Prepares a matrix; raises UnspoolError where a forced target cannot run here."""
        chosen = best_target(target)
        self.matrix, self.target = matrix, chosen.name
        self._padded = matrix.format.padded(*matrix.shape)
        self._few = choice = choose(matrix.format, 1, self.target)
        self._many = choose(matrix.format, LOOK_UP_ROWS + 1, self.target)
        self.path, self.why = choice.path, f"{choice.why} (target {chosen.name}: {chosen.why})"
        self._native = None if self.path == "numpy" else native_matrix(matrix)
        if self.path == "numpy" and target != "numpy":
            native.warn_slow(f"{matrix.format.name} multiplies in numpy: {self.why}")

    def choice(self, m: int) -> Choice:
        """The kernel that runs for m rows of activations, and why."""
        return self._few if m <= LOOK_UP_ROWS else self._many

    def __call__(
        self, x: Float32[np.ndarray, "m k"], *, threads: int | None = None
    ) -> Float32[np.ndarray, "m n"]:
        """x W^T in float32 for activations of any strides; raises WeightError where k differs."""
        y = np.empty((len(x), self.matrix.shape[0]), np.float32)
        self.into(x, y, threads=threads)
        return y

    def into(
        self,
        x: Float32[np.ndarray, "m k"],
        y: Float32[np.ndarray, "m n"],
        *,
        threads: int | None = None,
    ) -> None:
        """The same into memory of the caller's: y float32 `[m, n]`, C-contiguous."""
        n, k = self.matrix.shape
        if x.ndim != 2 or x.shape[1] != k:
            raise _wrong("the activation", x, f"[m, {k}]")
        if y.shape != (len(x), n) or y.dtype != np.float32 or not y.flags.c_contiguous:
            raise _wrong("the result's memory", y, f"float32 [{len(x)}, {n}], C-contiguous")
        if not len(x):
            return
        turned = self._turned(x)
        rotation = self.matrix.format.rotation
        if not rotation.output_size:
            self._multiply(turned, y, threads)
            return
        rows = self._padded[0]
        stored = np.empty((len(x), rows), np.float32)
        self._multiply(turned, stored, threads)
        flips = _signs(rows, rotation.seed, "out")
        y[:] = hadamard_inverse(stored, rotation.output_size, flips)[:, :n]

    def decode_operands(self) -> UInt16[np.ndarray, "rows columns"]:
        """Operand bits of the stored (padded, rotated) matrix."""
        if self._native is None:
            return reference.decode_operands(self.matrix)
        out = np.empty(self._padded, np.uint16)
        self._decode("unspool_decode_operands", out)
        return out

    def decode_values(self) -> Float32[np.ndarray, "rows columns"]:
        """Values times scales of the stored (padded, rotated) matrix."""
        if self._native is None:
            return reference.decode_values(self.matrix)
        out = np.empty(self._padded, np.float32)
        self._decode("unspool_decode_rows", out)
        return out

    def decode(self) -> Float32[np.ndarray, "n k"]:
        """The dense weight: rotations undone, padding dropped."""
        n, k = self.matrix.shape
        return unrotate(self.decode_values(), self.matrix.format.rotation)[:n, :k]

    def _turned(self, x: np.ndarray) -> np.ndarray:
        """Activations as the stored columns see them: padded, rotated, float32, contiguous."""
        x = np.ascontiguousarray(x, np.float32)
        if x.shape[1] < self._padded[1]:
            padded = np.zeros((len(x), self._padded[1]), np.float32)
            padded[:, : x.shape[1]] = x
            x = padded
        rotation = self.matrix.format.rotation
        if not rotation.input_size:
            return x
        if self._native is None:
            return hadamard(x, rotation.input_size, _signs(x.shape[1], rotation.seed, "in"))
        return _rotated(x, rotation.input_size, rotation.seed)

    def _multiply(self, x: np.ndarray, y: np.ndarray, threads: int | None) -> None:
        """x `[m, columns]` times the first rows of the stored matrix, as many as y has columns."""
        path = self.choice(len(x)).path
        if self._native is None or path == "numpy":
            weight = reference.decode_values(self.matrix)[: y.shape[1]].astype(np.float64)
            y[:] = _quiet_product(x.astype(np.float64), weight)
            return
        status = function("unspool_matmul")(
            self._native, PATHS[path], x.ctypes.data, len(x), y.shape[1],
            native.threads(threads), y.ctypes.data,
        )  # fmt: skip
        native.check(status, f"matmul ({path})")

    def _decode(self, name: str, out: np.ndarray) -> None:
        exact = native_matrix(self.matrix, exact=True)
        native.check(
            function(name)(exact, 0, len(out), native.threads(None), out.ctypes.data), name
        )


def _quiet_product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x W^T; NaN and infinities run through without a warning, as they do in the library."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.stack([weight @ row for row in x])


def _rotated(x: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`hadamard` with signs converted once: that is 40 us a call, as much as a small product."""
    out = np.empty_like(x)
    flips, ones = _factors(x.shape[1], seed)
    threads = native.threads(None) if x.size >= WORTH_THREADS else 1
    status = function("unspool_hadamard")(
        x.ctypes.data, *x.shape, size, float(np.float32(1 / math.sqrt(size))),
        flips.ctypes.data, ones.ctypes.data, threads, out.ctypes.data,
    )  # fmt: skip
    native.check(status, "hadamard")
    return out


@functools.lru_cache(maxsize=SHARED_SIGNS)
def _factors(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return _signs(size, seed, "in").astype(np.float32), np.ones(size, np.float32)


@functools.lru_cache(maxsize=SHARED_SIGNS)
def _signs(size: int, seed: int, side: str) -> Signs:
    return signs(size, seed, "in" if side == "in" else "out")


def _wrong(what: str, array: np.ndarray, allowed: str) -> WeightError:
    found = f"{array.dtype} {list(array.shape)}"
    return WeightError(
        f"{what} does not fit the weight", where="kernel", found=found, allowed=allowed
    )
