"""A coded matrix: the stored arrays of one weight, and what they must be for a format."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.interpret import state_values
from unspool.errors import CheckpointError
from unspool.pack.words import unpack
from unspool.spec.code import Code
from unspool.spec.format import Format
from unspool.spec.operand import Operand

if TYPE_CHECKING:
    from jaxtyping import UInt32

CODES, SCALE, TENSOR_SCALE, TABLE = "codes", "scale", "tensor_scale", "table"


@dataclass(frozen=True, kw_only=True)
class CodedMatrix:
    """A weight `[n, k]` as stored. Scales and tables are kept as operand bit patterns.

    codes         uint32 [rows / tile rows, columns / tile columns, words]
    scale         uint8 or uint16 bit patterns [rows, scales per row]; absent without scales
    tensor_scale  float32 []; absent where the format has none
    table         uint8 or uint16 bit patterns [units down, units across, length]; parameters
    """

    format: Format
    #: the weight's size before padding
    shape: tuple[int, int]
    codes: UInt32[np.ndarray, "down across words"]
    scale: np.ndarray | None = None
    tensor_scale: np.ndarray | None = None
    table: np.ndarray | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The stored arrays by name, absent ones left out."""
        named = {
            CODES: self.codes,
            SCALE: self.scale,
            TENSOR_SCALE: self.tensor_scale,
            TABLE: self.table,
        }
        return {name: array for name, array in named.items() if array is not None}

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Shape and numpy dtype of a stored array."""

    shape: tuple[int, ...]
    dtype: str


def bits_dtype(operand: Operand) -> str:
    """The smallest unsigned dtype that holds an operand's bit pattern."""
    return "uint8" if operand.bits <= 8 else "uint16"


def array_specs(fmt: Format, n: int, k: int) -> dict[str, ArraySpec]:
    """The arrays that a format stores for an `[n, k]` weight."""
    rows, columns = fmt.padded(n, k)
    tile_rows, tile_columns = fmt.code.tile
    shape = (rows // tile_rows, columns // tile_columns, fmt.code.words)
    specs = {CODES: ArraySpec(shape=shape, dtype="uint32")}
    if fmt.scale.operand is not None:
        count = fmt.scale.count(rows, columns)
        specs[SCALE] = ArraySpec(shape=count, dtype=bits_dtype(fmt.scale.operand))
    if fmt.scale.tensor:
        specs[TENSOR_SCALE] = ArraySpec(shape=(), dtype="float32")
    for parameter in fmt.code.program.parameters:
        units = parameter.units(rows, columns)
        specs[TABLE] = ArraySpec(
            shape=(*units, parameter.length), dtype=bits_dtype(parameter.operand)
        )
    return specs


def coded_matrix(
    fmt: Format, shape: tuple[int, int], arrays: Mapping[str, np.ndarray], where: str = ""
) -> CodedMatrix:
    """A coded matrix from stored arrays; raises CheckpointError where they contradict the format.

    Scales must be finite and the tensor scale positive; codes and tables must decode to finite
    values (E4M3 and E5M2 have patterns that do not).
    """
    check_arrays(fmt, shape, arrays, where)
    return CodedMatrix(format=fmt, shape=shape, **arrays)


def check_arrays(
    fmt: Format, shape: tuple[int, int], arrays: Mapping[str, np.ndarray], where: str = ""
) -> None:
    """Raises CheckpointError where stored arrays contradict the format's declaration."""
    specs = array_specs(fmt, *shape)
    if set(arrays) != set(specs):
        raise CheckpointError(
            "stored arrays do not match the format",
            where=where,
            found=sorted(arrays),
            allowed=sorted(specs),
        )
    for name, spec in specs.items():
        found = arrays[name]
        if (found.shape, str(found.dtype)) != (spec.shape, spec.dtype):
            raise CheckpointError(
                f"stored array '{name}' does not match the format {fmt.name}",
                where=where,
                found=f"{found.dtype} {list(found.shape)}",
                allowed=f"{spec.dtype} {list(spec.shape)}",
            )
    _check_finite(fmt, arrays, where)


def _check_finite(fmt: Format, arrays: Mapping[str, np.ndarray], where: str) -> None:
    if fmt.scale.operand is not None:
        _refuse_specials(fmt.scale.operand, arrays[SCALE], SCALE, where)
    if fmt.scale.tensor and not (0 <= float(arrays[TENSOR_SCALE]) < np.inf):
        raise CheckpointError(
            "the tensor scale is not a finite positive number",
            where=where,
            found=float(arrays[TENSOR_SCALE]),
        )
    for parameter in fmt.code.program.parameters:
        _refuse_specials(parameter.operand, arrays[TABLE], TABLE, where)
    _refuse_special_codes(fmt.code, arrays[CODES], where)


def _refuse_special_codes(code: Code, codes: np.ndarray, where: str) -> None:
    """E4M3 and E5M2 as they are have patterns that are no numbers; most codes have none."""
    bad_states = _special_states(code)
    if not bad_states.any():
        return
    for down, strip in enumerate(codes):
        bad = bad_states[unpack(strip, code)]
        if bad.any():
            across, step = (int(i) for i in np.argwhere(bad)[0])
            raise CheckpointError(
                f"'{CODES}' decodes to a {code.operand.name} that is not finite",
                where=f"{where} tile [{down}, {across}] step {step}".strip(),
            )


@functools.lru_cache(maxsize=64)
def _special_states(code: Code) -> np.ndarray:
    """Which states decode to something that is not finite; none where operands are parameters."""
    if code.program.parameters:
        return np.zeros(1, bool)
    return ~np.isfinite(state_values(code)).all(axis=1)


def _refuse_specials(operand: Operand, bits: np.ndarray, name: str, where: str) -> None:
    if operand.bits < 8 * bits.dtype.itemsize and bits.size and bits.max() >> operand.bits:
        raise CheckpointError(f"'{name}' holds more than {operand.bits} bits", where=where)
    bad = ~np.isfinite(operand.values())[bits]
    if np.any(bad):
        position = tuple(int(i) for i in np.argwhere(bad)[0])
        raise CheckpointError(
            f"'{name}' is not finite ({operand.name} bit pattern {bits[position]:#x})",
            where=f"{where} at {list(position)}",
        )
