"""A coded matrix made ready to multiply: the C++ kernels of `cpu/`, or the numpy reference.

The weight stays coded: products decode a few rows of 512 columns at a time into a buffer that fits
the L1 cache, and every decoded panel serves all rows of the batch. A product is summed in the same
order whatever the batch and the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt16

from unspool import native
from unspool.decode import target as targets
from unspool.encode.rotate import hadamard, hadamard_inverse, signs, unrotate
from unspool.errors import WeightError
from unspool.matmul import reference
from unspool.matmul.choose import choose
from unspool.matmul.tables import Tables, operand_values, tables
from unspool.pack.matrix import CodedMatrix

PLANES = 4
WORTH_A_THREAD = 1 << 19
"""Weights x batch that one thread should have to do: about .5 ms, ten times a thread's start."""


class _Coded(ctypes.Structure):
    """`struct Coded` of coded.hpp, field by field."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("tile_rows", ctypes.c_int32),
        ("tile_columns", ctypes.c_int32),
        ("lanes", ctypes.c_int32),
        ("steps", ctypes.c_int32),
        ("words", ctypes.c_int32),
        ("planes", ctypes.c_int32),
        ("window", ctypes.c_int32 * PLANES),
        ("stride", ctypes.c_int32 * PLANES),
        ("entries", ctypes.c_void_p),
        ("entries_per_unit", ctypes.c_int64),
        ("unit_rows", ctypes.c_int64),
        ("unit_columns", ctypes.c_int64),
        ("units_across", ctypes.c_int64),
        ("entry_bytes", ctypes.c_int32),
        ("scale_bytes", ctypes.c_int32),
        ("scales", ctypes.c_void_p),
        ("block", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("scale_values", ctypes.c_void_p),
        ("tensor_scale", ctypes.c_float),
        ("state_values", ctypes.c_void_p),
    )


class Kernel:
    """A coded matrix `[n, k]`, ready to multiply with activations `[m, k]`.

    `target` forces one of `decode.target.TARGETS`; `path` and `why` say what runs and why.
    """

    def __init__(self, matrix: CodedMatrix, *, target: str | None = None) -> None:
        self.matrix = matrix
        wanted = targets.best() if target is None else targets.checked(target)
        choice = choose(matrix.format, wanted)
        self.path, self.why = choice.path, choice.why
        if self.path == "numpy" and target != "numpy":
            native.warn_slow(f"{matrix.format.name} multiplies in numpy: {self.why}")
        self._coded = None if self.path == "numpy" else _describe(matrix)

    def __call__(
        self, x: Float32[np.ndarray, "m k"], *, threads: int | None = None
    ) -> Float32[np.ndarray, "m n"]:
        """x @ weight.T in float32, input and output rotations included.

        Raises WeightError where k differs. NaN and Inf stay in their own row of the batch.
        """
        n, k = self.matrix.shape
        if x.ndim != 2 or x.shape[1] != k:
            raise WeightError(
                "the activation does not fit the weight",
                where=self.matrix.format.name,
                found=list(x.shape),
                allowed=f"[m, {k}]",
            )
        rotated = self._rotated(np.asarray(x, np.float32))
        y = self._multiply(rotated, threads)
        rotation = self.matrix.format.rotation
        if rotation.output_size:
            y = hadamard_inverse(y, rotation.output_size, _signs(y.shape[1], rotation.seed, "out"))
        return np.ascontiguousarray(y[:, :n])

    def decode(self) -> Float32[np.ndarray, "n k"]:
        """The dense weight, rotations undone."""
        n, k = self.matrix.shape
        return unrotate(self.decode_values(), self.matrix.format.rotation)[:n, :k]

    def decode_values(self) -> Float32[np.ndarray, "rows columns"]:
        """Values times scales of the stored matrix; the same bits as the reference."""
        rows, columns = self.matrix.format.padded(*self.matrix.shape)
        if self._coded is None:
            return reference.decode_values(self.matrix)
        out = np.empty((rows, columns), np.float32)
        count = native.threads(None)
        status = _functions()["decode"](self._coded, 0, rows, *self._run(count), out.ctypes.data)
        native.check(status, "decode")
        return out

    def decode_operands(self) -> UInt16[np.ndarray, "rows columns"]:
        """Operand bit patterns of the stored matrix; the same as the interpreter's."""
        if self._coded is None:
            return reference.decode_operands(self.matrix)
        out = np.empty(self.matrix.format.padded(*self.matrix.shape), np.uint16)
        count = native.threads(None)
        status = _functions()["operands"](self._coded, *self._run(count), out.ctypes.data)
        native.check(status, "decode_operands")
        return out

    def _rotated(self, x: Float32[np.ndarray, "m k"]) -> Float32[np.ndarray, "m columns"]:
        """The activations that the stored columns meet: padded with zeros, rotated."""
        columns = self.matrix.format.padded(*self.matrix.shape)[1]
        if columns != x.shape[1]:
            x = np.pad(x, ((0, 0), (0, columns - x.shape[1])))
        rotation = self.matrix.format.rotation
        if rotation.input_size and len(x):
            return hadamard(x, rotation.input_size, _signs(columns, rotation.seed, "in"), threads=1)
        return np.ascontiguousarray(x)

    def _multiply(self, x: np.ndarray, threads: int | None) -> Float32[np.ndarray, "m rows"]:
        rows, columns = self.matrix.format.padded(*self.matrix.shape)
        if self._coded is None:
            return _reference_product(x, self.matrix)
        y = np.empty((len(x), rows), np.float32)
        worth = max(1, rows * columns * len(x) // WORTH_A_THREAD)
        count = min(native.threads(threads), worth)
        function = _functions()["matmul"]
        status = function(self._coded, x.ctypes.data, len(x), *self._run(count), y.ctypes.data)
        native.check(status, "matmul")
        return y

    def _run(self, threads: int) -> tuple[int, int]:
        return int(self.path == "portable"), threads


def _describe(matrix: CodedMatrix) -> _Coded:
    """The C struct of a matrix; it points into the matrix's arrays, which must outlive it."""
    code, shared = matrix.format.code, tables(matrix.format.code)
    rows, columns = matrix.format.padded(*matrix.shape)
    coded = _Coded(
        rows=rows,
        columns=columns,
        codes=matrix.codes.ctypes.data,
        tile_rows=code.tile[0],
        tile_columns=code.tile[1],
        lanes=code.lanes,
        steps=code.steps,
        words=code.words,
        planes=len(code.planes),
        tensor_scale=1.0 if matrix.tensor_scale is None else float(matrix.tensor_scale),
        block=columns,
        values=shared.values.ctypes.data,
    )
    for place, plane in enumerate(code.planes):
        coded.window[place], coded.stride[place] = plane.window, plane.stride
    _describe_entries(coded, matrix, shared)
    scale = matrix.format.scale
    if scale.operand is not None and matrix.scale is not None:
        coded.scale_bytes = matrix.scale.dtype.itemsize
        coded.scales = matrix.scale.ctypes.data
        coded.block = scale.block or columns
        coded.scale_values = operand_values(scale.operand).ctypes.data
    return coded


def _describe_entries(coded: _Coded, matrix: CodedMatrix, shared: Tables) -> None:
    """Where the operand bits of a state stand: in the code's table, or in a stored parameter."""
    entries = shared.entries if matrix.table is None else matrix.table
    assert entries is not None
    coded.entries, coded.entry_bytes = entries.ctypes.data, entries.dtype.itemsize
    coded.unit_rows, coded.unit_columns, coded.units_across = coded.rows, coded.columns, 1
    coded.entries_per_unit = entries.size
    if matrix.table is not None:
        down, across, length = matrix.table.shape
        coded.unit_rows, coded.unit_columns = coded.rows // down, coded.columns // across
        coded.units_across, coded.entries_per_unit = across, length
    if shared.state_values is not None:
        coded.state_values = shared.state_values.ctypes.data


def _reference_product(x: np.ndarray, matrix: CodedMatrix) -> Float32[np.ndarray, "m rows"]:
    weight = reference.decode_values(matrix).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return (x.astype(np.float64) @ weight.T).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _signs(count: int, seed: int, side: str) -> np.ndarray:
    return signs(count, seed, "in" if side == "in" else "out")


@functools.cache
def _functions() -> dict[str, Callable[..., int]]:
    library = native.library()
    assert library is not None
    pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    matrix, flag = ctypes.POINTER(_Coded), ctypes.c_int
    signatures = {
        "matmul": (library.unspool_matmul, [matrix, pointer, number, flag, size, pointer]),
        "decode": (library.unspool_decode, [matrix, number, number, flag, size, pointer]),
        "operands": (library.unspool_operands, [matrix, flag, size, pointer]),
    }
    for function, arguments in signatures.values():
        function.argtypes, function.restype = arguments, ctypes.c_int
    return {name: function for name, (function, _) in signatures.items()}
