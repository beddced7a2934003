"""One layer's product: a coded matrix prepared once, multiplied many times.

y = x W^T. Activations are padded and rotated like the columns of the stored weight, multiplied by
the kernel that `choose` picks, then rotated back along the rows. A row of the result depends on its
own row of x alone: not on how many there are, nor on the threads.
"""

from __future__ import annotations

import ctypes
import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unspool import native
from unspool.decode.target import target as best_target
from unspool.encode.rotate import Signs, hadamard, hadamard_inverse, signs, unrotate
from unspool.errors import WeightError
from unspool.matmul import reference
from unspool.matmul.choose import PATHS, choose
from unspool.matmul.integer import integer_product
from unspool.matmul.native_matrix import Result, Turn, function, native_matrix
from unspool.pack.matrix import CodedMatrix

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt16, UInt32

SHARED_SIGNS = 64
"""Sizes and seeds whose signs are kept, nine bytes per column."""

FLOAT32, BFLOAT16 = 0, 1
"""Number types of activations and results in the library (cpu/activations.hpp)."""


class Kernel:
    """A coded matrix ready to be multiplied.

    `target` forces one of `decode.target`, `activations` one of `choose.ACTIVATIONS`; `path` is the
    kernel that runs and `why` says why it and no quicker one. Where `owns_codes`, the codes were
    copied into the kernel's own order and the matrix's array of them is not read any more; `codes`
    gives them back. All other arrays are read in place.
    """

    def __init__(
        self, matrix: CodedMatrix, *, target: str | None = None, activations: str = "auto"
    ) -> None:
        """Prepares a matrix; raises UnspoolError where a forced target cannot run here, or where
        int8 activations are asked for and the weights are not exact in int8."""
        chosen = best_target(target)
        # In plain C++ only where that is asked for: it is there to be compared with.
        pairs = target == "portable" or (chosen.name == "avx512" and _has_pairs())
        choice = choose(matrix.format, chosen.name, activations, pairs=pairs)
        self.format, self.shape, self.target = matrix.format, matrix.shape, chosen.name
        self.path, self.activations = choice.path, choice.activations
        self.why = f"{choice.why} (target {chosen.name}: {chosen.why})"
        self._padded = matrix.format.padded(*matrix.shape)
        self._matrix: CodedMatrix | None = matrix
        self._handle: int | None = None
        self.owns_codes = False
        if self.path == "numpy":
            if target != "numpy":
                native.warn_slow(f"{matrix.format.name} multiplies in numpy: {self.why}")
            return
        if self.path == "integer-portable" and target is None:
            native.warn_slow(f"products run without SIMD, many times slower: {chosen.why}")
        self._prepare(matrix, *choice.numbers)

    def __call__(
        self, x: Float32[np.ndarray, "m k"], *, threads: int | None = None
    ) -> Float32[np.ndarray, "m n"]:
        """x W^T in float32 for activations of any strides; raises WeightError where k differs."""
        y = np.empty((len(x), self.shape[0]), np.float32)
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
        n, k = self.shape
        if x.ndim != 2 or x.shape[1] != k:
            raise _wrong("the activation", x, f"[m, {k}]")
        if y.shape != (len(x), n) or y.dtype != np.float32 or not y.flags.carray:
            raise _wrong("the result's memory", y, f"float32 [{len(x)}, {n}], writable, contiguous")
        if not len(x):
            return
        x = np.ascontiguousarray(x, np.float32)
        if self._handle is None:
            y[:] = self._product_in_numpy(x)
            return
        place = x.ctypes.data, FLOAT32, len(x), k
        multiply((self,), place, ((y.ctypes.data, None),), native.threads(threads))

    @property
    def compiled(self) -> bool:
        """Whether the library multiplies, so that `multiply` takes this kernel."""
        return self._handle is not None

    @property
    def matrix(self) -> CodedMatrix:
        """The coded matrix, its codes put back in order where the kernel owns them."""
        if self._matrix is None:
            return CodedMatrix(
                format=self.format, shape=self.shape, codes=self.codes(), **self._rest
            )
        return self._matrix

    def codes(self) -> UInt32[np.ndarray, "down across words"]:
        """The stored words."""
        if self._matrix is not None:
            return self._matrix.codes
        tile_rows, tile_columns = self.format.code.tile
        rows, columns = self._padded
        shape = (rows // tile_rows, columns // tile_columns, self.format.code.words)
        out = np.empty(shape, np.uint32)
        status = function("unspool_canonical")(self._handle, native.threads(None), out.ctypes.data)
        native.check(status, "codes")
        return out

    def drop_codes(self) -> bool:
        """Lets go of the matrix's codes where the kernel has its own; says whether it did."""
        if self.owns_codes and self._matrix is not None:
            self._matrix = None
            self._native.keep.clear()
        return self.owns_codes

    def decode_operands(self) -> UInt16[np.ndarray, "rows columns"]:
        """Operand bits of the stored (padded, rotated) matrix."""
        if self._handle is None:
            return reference.decode_operands(self.matrix)
        out = np.empty(self._padded, np.uint16)
        self._decode("unspool_decode_operands", out)
        return out

    def decode_values(self) -> Float32[np.ndarray, "rows columns"]:
        """Values times scales of the stored (padded, rotated) matrix."""
        if self._handle is None:
            return reference.decode_values(self.matrix)
        out = np.empty(self._padded, np.float32)
        self._decode("unspool_decode_rows", out)
        return out

    def decode(self) -> Float32[np.ndarray, "n k"]:
        """The dense weight: rotations undone, padding dropped."""
        n, k = self.shape
        return unrotate(self.decode_values(), self.format.rotation)[:n, :k]

    def _prepare(self, matrix: CodedMatrix, path: int, kind: int) -> None:
        integer = self.activations == "int8"
        rotation, (rows, columns) = matrix.format.rotation, self._padded
        self._native = native_matrix(matrix, integer=integer)
        self._turns = (
            _turn(columns, rotation.input_size, rotation.seed, "in"),
            _turn(rows, rotation.output_size, rotation.seed, "out"),
        )
        handle = ctypes.c_void_p()
        status = function("unspool_prepare")(
            self._native, *(ctypes.byref(turn) for turn, _ in self._turns), *self.shape,
            path, kind, native.threads(None), ctypes.byref(handle),
        )  # fmt: skip
        native.check(status, f"prepare ({self.path})")
        assert handle.value is not None
        self._handle = handle.value
        self._release = weakref.finalize(self, function("unspool_release"), self._handle)
        self._release.atexit = False  # a thread may be multiplying while the process ends
        self.owns_codes = bool(function("unspool_owns_codes")(self._handle))
        self._rest = {name: a for name, a in matrix.arrays.items() if name != "codes"}

    def _product_in_numpy(self, x: np.ndarray) -> np.ndarray:
        """Rotated, multiplied and rotated back, all in numpy."""
        (rows, columns), rotation, matrix = self._padded, self.format.rotation, self.matrix
        turned = np.zeros((len(x), columns), np.float32)
        turned[:, : x.shape[1]] = x
        with np.errstate(invalid="ignore", over="ignore"):
            if rotation.input_size:
                turned = hadamard(turned, rotation.input_size, _signs(columns, rotation.seed, "in"))
            if self.activations == "int8":
                y = integer_product(turned, matrix)
            else:
                if self.activations == "bf16":
                    turned = round_to_bfloat16(turned)
                weight = reference.decode_values(matrix).astype(np.float64)
                y = np.stack([weight @ row for row in turned.astype(np.float64)])
                y = y.astype(np.float32)
            if rotation.output_size:
                flips = _signs(rows, rotation.seed, "out")
                y = hadamard_inverse(y, rotation.output_size, flips)
        return y[:, : self.shape[0]]

    def _decode(self, name: str, out: np.ndarray) -> None:
        exact = native_matrix(self.matrix, exact=True)
        native.check(
            function(name)(exact, 0, len(out), native.threads(None), out.ctypes.data), name
        )


def multiply(
    kernels: Sequence[Kernel],
    x: tuple[int, int, int, int],
    results: Sequence[tuple[int, int | None]],
    threads: int,
) -> None:
    """Products of one activation with several compiled kernels of the same k, in one call.

    x is (address, number type, rows, elements from row to row); results[i] is where kernel i's
    product goes, `[rows, n]` of the same number type, and where its float32 bias lies, if any.
    Activations are rotated and rounded once for kernels that ask for the same, and all rows of all
    weights are shared out together.
    """
    if len(kernels) == 1:
        (kernel,), ((y, bias),) = kernels, results
        status = _functions()[0](kernel._handle, *x, y, bias, threads)
    else:
        count = len(kernels)
        handles = (ctypes.c_void_p * count)(*[kernel._handle for kernel in kernels])
        pairs = zip(kernels, results, strict=True)
        places = (Result * count)(*[Result(y, each.shape[0], bias) for each, (y, bias) in pairs])
        status = _functions()[1](handles, count, *x, places, threads)
    if status:
        native.check(status, "matmul")


def round_to_bfloat16(x: Float32[np.ndarray, "m k"]) -> Float32[np.ndarray, "m k"]:
    """The nearest bf16 numbers, ties to even; NaN stays NaN."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))


@functools.cache
def _has_pairs() -> bool:
    return bool(function("unspool_runs_pairs")(PATHS["avx512"]))


@functools.cache
def _functions() -> tuple[Callable[..., int], Callable[..., int]]:
    return function("unspool_multiply_one"), function("unspool_multiply")


def _turn(size: int, block: int, seed: int, side: str) -> tuple[Turn, tuple[np.ndarray, ...]]:
    """The structure, and the arrays it points to; forwards along "in", backwards along "out"."""
    if not block:
        return Turn(), ()
    flips, ones = _factors(size, seed, side)
    before, after = (flips, ones) if side == "in" else (ones, flips)
    scale = float(np.float32(1 / math.sqrt(block)))
    return Turn(block, scale, before.ctypes.data, after.ctypes.data), (flips, ones)


@functools.lru_cache(maxsize=SHARED_SIGNS)
def _factors(size: int, seed: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    return _signs(size, seed, side).astype(np.float32), np.ones(size, np.float32)


@functools.lru_cache(maxsize=SHARED_SIGNS)
def _signs(size: int, seed: int, side: str) -> Signs:
    return signs(size, seed, "in" if side == "in" else "out")


def _wrong(what: str, array: np.ndarray, allowed: str) -> WeightError:
    found = f"{array.dtype} {list(array.shape)}"
    return WeightError(
        f"{what} does not fit the weight", where="kernel", found=found, allowed=allowed
    )
