"""A coded matrix as the C++ library sees it: the fields of cpu/coded_matrix.hpp, in order."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from unspool import native
from unspool.errors import NativeError
from unspool.matmul import tables
from unspool.pack.matrix import CodedMatrix
from unspool.spec.code import Code
from unspool.spec.program import STATE

MAX_PLANES = 32
SMALL_BITS = 12
"""State bits up to which the operands of every state are handed over in any case."""
NO_FAST, FLOAT_LEVELS, INT8_LEVELS = 0, 1, 2
SCALE_KINDS = {"E4M3": 1, "E8M0": 2, "FP16": 3}

_LONG, _INT, _POINTER, _FLOAT = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p, ctypes.c_float
_WORD = ctypes.c_uint32


class NativeMatrix(ctypes.Structure):
    """Sizes and addresses; whoever makes one keeps the arrays alive (`keep`)."""

    _fields_ = (
        ("n", _LONG), ("k", _LONG), ("codes", _POINTER),
        ("tile_rows", _INT), ("tile_columns", _INT), ("lanes", _INT), ("words", _INT),
        ("planes", _INT), ("window", _INT * MAX_PLANES), ("stride", _INT * MAX_PLANES),
        ("entries", _POINTER), ("entry_bytes", _INT), ("parameter_bytes", _INT),
        ("values", _POINTER), ("parameter", _POINTER),
        ("length", _LONG), ("unit_rows", _LONG), ("unit_columns", _LONG), ("units_across", _LONG),
        ("fast", _POINTER), ("fast_kind", _INT), ("fast_steps", _INT), ("unit", _FLOAT),
        ("scale_kind", _INT), ("scale", _POINTER), ("block", _LONG), ("blocks", _LONG),
        ("scale_values", _POINTER), ("tensor_scale", _FLOAT),
        ("integer_unit", _FLOAT), ("largest_level", _INT),
        ("multiplies", _INT), ("selector", _WORD), ("multiplier", _WORD), ("addend", _WORD),
    )  # fmt: skip

    keep: list[np.ndarray]


class Turn(ctypes.Structure):
    """A rotation along one side: the fields of `Turn` in cpu/activations.hpp; size 0: none."""

    _fields_ = (("size", _LONG), ("scale", _FLOAT), ("before", _POINTER), ("after", _POINTER))


class Result(ctypes.Structure):
    """Where a product goes: the fields of `Result` in cpu/product.hpp."""

    _fields_ = (("y", _POINTER), ("stride", _LONG), ("bias", _POINTER))


def native_matrix(
    matrix: CodedMatrix, *, exact: bool = False, integer: bool = False
) -> NativeMatrix:
    """The structure of a matrix whose code can be tabulated.

    With `exact` it has the operands of every state, which decoding to operands needs; else those
    are left out where a quicker table does the work (2**20 states of four lanes are 4 MiB).
    `integer`: for the product with int8 activations, of formats that have one.
    """
    code = matrix.format.code
    found = NativeMatrix(fast_steps=1, unit=1.0, tensor_scale=1.0)
    found.keep = []
    found.n, found.k = matrix.format.padded(*matrix.shape)
    found.codes = _address(found, matrix.codes)
    (found.tile_rows, found.tile_columns), found.lanes = code.tile, code.lanes
    found.words, found.planes = code.words, len(code.planes)
    for place, plane in enumerate(code.planes):
        found.window[place], found.stride[place] = plane.window, plane.stride
    found.values = _address(found, tables.operand_values(code.operand))
    if matrix.table is not None:
        _put_parameter(found, matrix, matrix.table)
    else:
        _put_levels(found, code, exact, integer)
    if integer:
        _put_integers(found, code)
    _put_scales(found, matrix)
    return found


def _put_levels(found: NativeMatrix, code: Code, exact: bool, integer: bool) -> None:
    levels = tables.levels(code, integer=integer)
    if levels is not None:
        found.fast = _address(found, levels.table)
        found.fast_kind = INT8_LEVELS if levels.table.dtype == np.int8 else FLOAT_LEVELS
        found.fast_steps, found.unit = levels.steps, levels.unit
    small = code.state_bits <= SMALL_BITS
    if exact or small or levels is None or levels.table.dtype != np.int8 or levels.steps > 1:
        _put_entries(found, tables.entries(code))


def _put_integers(found: NativeMatrix, code: Code) -> None:
    """Unit and levels, and the constants of a multiply code that is decoded in registers."""
    levels = tables.integer_levels(code)
    assert levels is not None
    found.integer_unit, found.largest_level = levels.unit, levels.largest
    constants = nibbles_of_a_product(code)
    if constants is not None:
        found.multiplies = 1
        found.selector, found.multiplier, found.addend = constants


def nibbles_of_a_product(code: Code) -> tuple[int, int, int] | None:
    """(selector, multiplier, addend) of a code whose lanes are the upper four nibbles of
    permute-bytes(state, 0, selector) * multiplier + addend, the selector one of the window's two
    bytes each; None for any other."""
    program = code.program
    shape = [(i.op, len(i.arguments)) for i in program.instructions]
    if shape != [("permute-bytes", 3), ("mul", 2), ("add", 2)] or code.operand.bits != 4:
        return None
    spread, product, total = program.instructions
    arguments = (*spread.arguments, *product.arguments, *total.arguments)
    state, other, selector, first, multiplier, second, addend = arguments
    chained = (state, other, first, second) == (STATE, 0, spread.result, product.result)
    if not chained or not all(isinstance(c, int) for c in (selector, multiplier, addend)):
        return None
    whole = program.outputs == tuple((total.result, 16 + 4 * lane) for lane in range(4))
    inside = int(selector) < 1 << 16 and not int(selector) & 0xEEEE
    return (int(selector), int(multiplier), int(addend)) if whole and inside else None


def _put_parameter(found: NativeMatrix, matrix: CodedMatrix, table: np.ndarray) -> None:
    """Operand bits in place: one table per unit of rows and columns."""
    code = matrix.format.code
    down, across, found.length = table.shape
    found.unit_rows, found.unit_columns = found.n // down, found.k // across
    found.units_across = across
    found.parameter, found.parameter_bytes = _address(found, table), table.itemsize
    entries = tables.entries(code)
    _put_entries(found, entries)
    direct = np.array_equal(entries[:, 0], np.arange(found.length)) and found.length <= 256
    if direct and code.lanes == 1 and found.unit_columns % found.tile_columns == 0:
        found.fast_kind = FLOAT_LEVELS


def _put_entries(found: NativeMatrix, entries: np.ndarray) -> None:
    found.entries, found.entry_bytes = _address(found, entries), entries.itemsize


def _put_scales(found: NativeMatrix, matrix: CodedMatrix) -> None:
    found.block, found.blocks = found.k, 1
    if matrix.tensor_scale is not None:
        found.tensor_scale = float(matrix.tensor_scale)
    if matrix.scale is None:
        return
    found.blocks = matrix.scale.shape[1]
    found.block = found.k // found.blocks
    found.scale = _address(found, matrix.scale)
    operand = matrix.format.scale.operand
    assert operand is not None
    found.scale_kind = SCALE_KINDS[operand.name]
    if operand.bits <= 8:
        found.scale_values = _address(found, tables.operand_values(operand))


def _address(found: NativeMatrix, array: np.ndarray) -> int:
    array = np.ascontiguousarray(array)
    found.keep.append(array)
    return array.ctypes.data


_ROWS = [ctypes.POINTER(NativeMatrix), _LONG, _LONG, _LONG, _POINTER]
_SIGNATURES: dict[str, list[Any]] = {
    "unspool_prepare": [
        _ROWS[0], ctypes.POINTER(Turn), ctypes.POINTER(Turn), _LONG, _LONG, _INT, _INT, _LONG,
        ctypes.POINTER(_POINTER),
    ],
    "unspool_release": [_POINTER],
    "unspool_runs_pairs": [_INT],
    "unspool_owns_codes": [_POINTER],
    "unspool_canonical": [_POINTER, _LONG, _POINTER],
    "unspool_multiply_one": [
        _POINTER, _POINTER, _INT, _LONG, _LONG, _POINTER, _POINTER, _LONG,
    ],
    "unspool_multiply": [_POINTER, _LONG, _POINTER, _INT, _LONG, _LONG, _POINTER, _LONG],
    "unspool_decode_operands": _ROWS,
    "unspool_decode_rows": _ROWS,
    "unspool_hadamard": [
        _POINTER, *[ctypes.c_size_t] * 3, _FLOAT, _POINTER, _POINTER, ctypes.c_size_t, _POINTER,
    ],
}  # fmt: skip


@functools.cache
def function(name: str) -> Callable[..., int]:
    """A function of the library by its C name, argument types declared.

    Raises NativeError where the library was built from other sources than these.
    """
    library = native.library()
    assert library is not None
    _check_version(library)
    # A lookup of its own: attributes of the library are shared, and so would be their types.
    found = library[name]
    found.argtypes, found.restype = _SIGNATURES[name], ctypes.c_int
    return cast(Callable[..., int], found)


def _check_version(library: ctypes.CDLL) -> None:
    """A struct of another layout would be read as garbage; its size tells most changes."""
    measure = getattr(library, "unspool_matrix_bytes", None)
    found, allowed = measure() if measure else 0, ctypes.sizeof(NativeMatrix)
    if found != allowed:
        raise NativeError(
            "the compiled library is not of this version: install the package again (make setup)",
            where=str(library._name),
            found=f"a matrix of {found} bytes",
            allowed=f"{allowed} bytes",
        )
