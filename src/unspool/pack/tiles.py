"""Matrix <-> tiles: which weight is which lane of which step of which ring.

matrix [n, k]                    rings [n / rows, k / columns, steps, lanes]
+---------+---------+            step 0: row 0, columns 0 .. lanes-1
| tile 00 | tile 01 |   <->      step 1: row 0, columns lanes .. 2 lanes-1
+---------+---------+            ...
| tile 10 | tile 11 |            the next row follows when the tile's columns are used up
+---------+---------+
"""

from __future__ import annotations

import numpy as np

from unspool.errors import WeightError
from unspool.spec.code import Code


def pad(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The matrix `[n, k]` with zeros appended to `[rows, columns]`."""
    n, k = matrix.shape
    if (n, k) == (rows, columns):
        return matrix
    return np.pad(matrix, ((0, rows - n), (0, columns - k)))


def to_rings(matrix: np.ndarray, code: Code) -> np.ndarray:
    """`[n, k]` -> `[n / rows, k / columns, steps, lanes]`, C-contiguous; sizes must be whole."""
    rows, columns = code.tile
    n, k = matrix.shape
    if n % rows or k % columns:
        raise WeightError(
            "a matrix is not whole tiles", found=f"{n} x {k}", allowed=f"{rows} x {columns} tiles"
        )
    tiles = matrix.reshape(n // rows, rows, k // columns, columns).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(n // rows, k // columns, code.steps, code.lanes)


def from_rings(rings: np.ndarray, code: Code) -> np.ndarray:
    """The inverse of `to_rings`."""
    down, across = rings.shape[:2]
    rows, columns = code.tile
    tiles = rings.reshape(down, across, rows, columns).swapaxes(1, 2)
    return np.ascontiguousarray(tiles).reshape(down * rows, across * columns)
