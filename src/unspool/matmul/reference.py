"""The slow, obviously right decode and matmul: what every kernel is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.interpret import operand_bits
from unspool.encode.rotate import unrotate
from unspool.pack.matrix import CodedMatrix
from unspool.pack.tiles import from_rings
from unspool.pack.words import unpack

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt16


def decode_operands(matrix: CodedMatrix) -> UInt16[np.ndarray, "rows columns"]:
    """Operand bit patterns of the stored (padded) matrix, by the interpreter."""
    code = matrix.format.code
    states = unpack(matrix.codes, code)
    parameters = {}
    if matrix.table is not None:
        (parameter,) = code.program.parameters
        parameters[parameter.name] = _per_step(matrix)
    return from_rings(operand_bits(code, states, parameters), code)


def decode_values(matrix: CodedMatrix) -> Float32[np.ndarray, "rows columns"]:
    """Values times scales: the stored (padded, rotated) matrix in float32.

    One float32 rounding per product: value * (scale * tensor scale).
    """
    values = matrix.format.code.operand.values().astype(np.float32)[decode_operands(matrix)]
    return values * scales(matrix)


def scales(matrix: CodedMatrix) -> Float32[np.ndarray, "rows columns"]:
    """The scale of every stored weight, tensor scale included, rounded once to float32."""
    n, k = matrix.format.padded(*matrix.shape)
    tensor = np.float32(1 if matrix.tensor_scale is None else matrix.tensor_scale)
    if matrix.scale is None:
        return np.full((n, k), tensor, np.float32)
    operand = matrix.format.scale.operand
    assert operand is not None
    each = operand.values().astype(np.float32)[matrix.scale] * tensor
    return np.repeat(each, k // each.shape[1], axis=1)


def decode(matrix: CodedMatrix) -> Float32[np.ndarray, "n k"]:
    """The weight that the coded matrix stands for, rotations undone and padding dropped."""
    n, k = matrix.shape
    return unrotate(decode_values(matrix), matrix.format.rotation)[:n, :k]


def matmul(
    activations: Float32[np.ndarray, "m k"], matrix: CodedMatrix
) -> Float32[np.ndarray, "m n"]:
    """activations @ weight.T in float64, rounded to float32 at the end."""
    weight = decode(matrix).astype(np.float64)
    return (activations.astype(np.float64) @ weight.T).astype(np.float32)


def _per_step(matrix: CodedMatrix) -> np.ndarray:
    """The parameter table of every step: `[down, across, steps, length]`."""
    assert matrix.table is not None
    code = matrix.format.code
    rows, columns = matrix.format.padded(*matrix.shape)
    down, across, length = matrix.table.shape
    per_weight = np.repeat(np.repeat(matrix.table, rows // down, 0), columns // across, 1)
    first_lanes = per_weight[:, :: code.lanes]
    tile_rows, tile_columns = code.tile
    per_row = tile_columns // code.lanes
    tiles = first_lanes.reshape(rows // tile_rows, tile_rows, -1, per_row, length).swapaxes(1, 2)
    return tiles.reshape(rows // tile_rows, -1, code.steps, length).astype(np.uint32)
