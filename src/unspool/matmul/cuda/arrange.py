"""Coded matrices in the order in which a GPU reads them.

    unit      [row block][stage]: codes, then the scales of its blocks; one contiguous copy
    codes     [step][vector][thread][word]: a warp's load of a vector is 512 (256, 128) bytes
    scales    binary16 [block][row of the row block]; where the matrix unit applies them words of
              four E4M3, of 16 columns each, in the order of `_unit_words`
    row scale float32 [row]: what multiplies the finished sum

Both are bijections of what is stored, except that scales are turned into binary16 times a power of
two per row: exact for E4M3 and FP16 scales, and for E8M0 down to 2**-39 of a row's largest. E8M0
as E4M3 has to be exact: down to 2**-17 of a row's largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.lowering import reorder
from unspool.encode.rotate import signs
from unspool.errors import WeightError
from unspool.matmul.cuda.geometry import BLOCK_ROWS, QUARTER, ROWS, THREADS, Geometry
from unspool.matmul.cuda.recipe import REGISTERS, ROW, SUMS, UNIT, UNIT_BLOCK, Recipe
from unspool.pack.matrix import CodedMatrix
from unspool.spec.format import Format
from unspool.spec.operand import E4M3

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8, UInt32

WARPS = THREADS // 32
_UNIT_TOP = 2.0**8
_TOP = 15
"""Scales are at most 2**15 as binary16, and so are weights multiplied with them."""


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """A matrix as a kernel takes it."""

    recipe: Recipe
    shape: tuple[int, int]
    units: UInt8[np.ndarray, "row_blocks stages bytes"]
    row_scales: Float32[np.ndarray, " rows"]
    #: registers of a parameter for every ring down, per unit of columns
    levels: UInt32[np.ndarray, "row_blocks across levels rings"]

    @property
    def row_blocks(self) -> int:
        """Blocks of 256 rows."""
        return self.units.shape[0]

    @property
    def stages(self) -> int:
        """Stages along k."""
        return self.units.shape[1]


def arrange(matrix: CodedMatrix, made: Recipe) -> Arranged:
    """A coded matrix in a recipe's order, padded to row blocks and stages."""
    codes = _padded(matrix.codes, made.geometry)
    row_scales, blocks = _scales(matrix, made, codes.shape[0] * ROWS, codes.shape[1])
    parts = [_codes(codes, made.geometry)]
    if blocks is not None:
        parts.append(blocks)
    return Arranged(
        recipe=made,
        shape=matrix.shape,
        units=np.concatenate(parts, axis=-1),
        row_scales=row_scales,
        levels=_levels(matrix, made, codes.shape[0] * ROWS, codes.shape[1]),
    )


def _padded(codes: UInt32[np.ndarray, "down across words"], made: Geometry) -> np.ndarray:
    """Rings added until row blocks and stages are whole; their activations or rows are dropped."""
    down, across, _ = codes.shape
    rings = BLOCK_ROWS // ROWS, made.stage_columns // made.tile_columns
    return np.pad(codes, ((0, -down % rings[0]), (0, -across % rings[1]), (0, 0)))


def _codes(codes: np.ndarray, made: Geometry) -> UInt8[np.ndarray, "row_blocks stages bytes"]:
    stored = reorder(made.lowering, codes)
    down, across, words = stored.shape
    rings = BLOCK_ROWS // ROWS
    stages = across * made.tile_columns // made.stage_columns
    split = stored.reshape(down // rings, rings, stages, made.steps, made.rings, QUARTER, words)
    threads = split.transpose(0, 2, 3, 1, 5, 4, 6).reshape(
        down // rings, stages, made.steps, rings * QUARTER, made.step_words
    )[..., made.words()]
    vectors = [
        threads[..., first : first + width].reshape(*threads.shape[:3], -1)
        for first, width in made.vectors
    ]
    flat = np.concatenate(vectors, axis=-1).reshape(down // rings, stages, -1)
    return np.ascontiguousarray(flat, "<u4").view(np.uint8)


def _scales(
    matrix: CodedMatrix, made: Recipe, rows: int, across: int
) -> tuple[Float32[np.ndarray, " rows"], np.ndarray | None]:
    """What multiplies a row, and the binary16 of its blocks `[row blocks, stages, bytes]`."""
    tensor = np.float64(1 if matrix.tensor_scale is None else matrix.tensor_scale)
    row = np.zeros(rows)
    stored = matrix.codes.shape[0] * ROWS
    emitted = 2.0**-made.geometry.lowering.exponent
    if matrix.scale is None:
        row[:stored] = tensor * emitted
        return row.astype(np.float32), None
    operand = made.format.scale.operand
    assert operand is not None
    scales = operand.values()[matrix.scale]
    if made.scales == ROW:
        row[:stored] = scales[:, 0] * tensor * emitted
        return row.astype(np.float32), None
    factor = _factors(scales, made)
    row[:stored] = tensor * emitted / factor
    if made.scales == UNIT:
        return row.astype(np.float32), _unit_blocks(scales * factor[:, None], made, rows, across)
    halves = (scales * factor[:, None]).astype(np.float16)
    return row.astype(np.float32), _blocks(halves, made, rows, across)


def _factors(scales: np.ndarray, made: Recipe) -> np.ndarray:
    """A power of two per row that makes the most of binary16, for weights in registers as well."""
    largest = scales.max(axis=1)
    top = np.where(largest > 0, largest, 1.0)
    if made.scales == UNIT:  # E4M3 as they are, powers of two up to its largest, 2**8
        return np.ones_like(top) if made.format.scale.operand is E4M3 else _UNIT_TOP / top
    room = _TOP - np.ceil(np.log2(top))
    if made.scales == REGISTERS:
        values = made.format.code.operand.values()
        largest = np.abs(values[np.isfinite(values)]).max()
        weight = largest * 2.0**made.geometry.lowering.exponent
        room -= max(0, np.ceil(np.log2(weight)))
    return np.asarray(2.0**room)


def _blocks(halves: np.ndarray, made: Recipe, rows: int, across: int) -> np.ndarray:
    """Bytes `[row blocks, stages, blocks x 256 x 2]`; a longer block comes with every stage."""
    columns = across * made.geometry.tile_columns
    stages = columns // made.geometry.stage_columns
    block = made.format.scale.block
    assert block is not None
    if made.scales == SUMS and block > made.geometry.stage_columns:
        halves = np.repeat(halves, block // made.geometry.stage_columns, axis=1)
    wanted = stages * made.scale_blocks
    halves = np.pad(halves, ((0, rows - len(halves)), (0, 0)))[:, :wanted]
    halves = np.pad(halves, ((0, 0), (0, wanted - halves.shape[1])))
    split = halves.reshape(rows // BLOCK_ROWS, BLOCK_ROWS, stages, made.scale_blocks)
    ordered = np.ascontiguousarray(split.transpose(0, 2, 3, 1)).reshape(*split.shape[::2], -1)
    return ordered.view(np.uint8)


def _unit_blocks(scales: np.ndarray, made: Recipe, rows: int, across: int) -> np.ndarray:
    """Bytes `[row blocks, stages, 256 x stage columns / 16]` of scales `[row, block]`."""
    geometry, block = made.geometry, made.format.scale.block
    assert block is not None
    positive = E4M3.values()[:0x7F]
    patterns = np.searchsorted(positive, scales).clip(max=len(positive) - 1)
    if (wrong := positive[patterns] != scales).any():
        raise WeightError(
            "a scale is no E4M3 without a sign, which FP4 products need",
            where=f"row {int(np.argmax(wrong.any(axis=1)))}",
            found=float(scales[wrong][0]),
            allowed="other activations: fp8x2",
        )
    columns = across * geometry.tile_columns
    starts = np.arange(0, columns, geometry.step_columns)[:, None]
    firsts = (starts + geometry.columns().reshape(-1, UNIT_BLOCK)[:, 0]).reshape(-1)
    missing = max(0, int(firsts.max()) // block + 1 - patterns.shape[1])
    padded = np.pad(patterns, ((0, rows - len(patterns)), (0, missing)))
    stages = columns // geometry.stage_columns
    words = padded[:, firsts // block].astype(np.uint8)
    return _unit_words(words.reshape(rows, stages, -1, QUARTER), made)


def _unit_words(
    words: UInt8[np.ndarray, "rows stages slices quarter"], made: Recipe
) -> UInt8[np.ndarray, "row_blocks stages bytes"]:
    """A row's words of scales, one per slice, where the matrix unit finds them.

    mma.sync: [two slices][thread][j], thread t of a quad has row 2 j + t % 2 of its ring for slice
    t // 2 of the pair. tcgen05: [slice][tile][row % 32][row // 32] of the tile's 128 rows, which
    are half j % 2, row i % 2 of two, ring g of warp w, as `tcgen05.cuh` puts row i = 2 j + i % 2.
    """
    stages = words.shape[1]
    blocks = len(words) // BLOCK_ROWS
    if made.loop == "tcgen05":  # row block, warp, g, tile, half, row of two | stage, slice
        split = words.reshape(blocks, WARPS, ROWS, 2, 2, 2, stages, -1, QUARTER)
        ordered = split.transpose(0, 6, 7, 3, 4, 5, 2, 1, 8)
    else:  # row block, ring, j, row of two | stage, pair, slice of two
        split = words.reshape(blocks, -1, ROWS // 2, 2, stages, words.shape[2] // 2, 2, QUARTER)
        ordered = split.transpose(0, 4, 5, 1, 6, 3, 2, 7)
    return np.ascontiguousarray(ordered).reshape(blocks, stages, -1)


def _levels(
    matrix: CodedMatrix, made: Recipe, rows: int, tiles: int
) -> UInt32[np.ndarray, "row_blocks across levels rings"]:
    """A parameter table as the decoder's level registers, for every ring down."""
    rings = rows // ROWS
    if matrix.table is None:
        return np.zeros((rows // BLOCK_ROWS, 1, 0, BLOCK_ROWS // ROWS), np.uint32)
    down, across, length = matrix.table.shape
    stored = len(matrix.codes) * ROWS
    per_row = np.repeat(matrix.table, stored // down, axis=0)  # row across entry
    steps = tiles * made.geometry.tile_columns // made.geometry.step_columns
    wanted = -(-steps // made.level_steps) if made.level_steps else across
    per_row = np.pad(per_row, ((0, rows - stored), (0, wanted - across), (0, 0)))
    across = wanted
    by_ring = per_row.reshape(rings, ROWS, across, length).swapaxes(1, 2)
    if made.geometry.lowering.levels * 4 == length:  # one table for all rows of a ring
        by_ring = by_ring[:, :, :1]
    flat = np.ascontiguousarray(by_ring.reshape(rings, across, -1), np.uint8).view("<u4")
    split = flat.reshape(rows // BLOCK_ROWS, BLOCK_ROWS // ROWS, across, -1)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1))


def sign_words(fmt: Format, columns: int) -> UInt32[np.ndarray, " words"]:
    """The signs of a format's input rotation: a bit per column, set where it is minus."""
    minus = np.zeros(columns, bool)
    if fmt.rotation.input_size:
        minus = signs(columns, fmt.rotation.seed, "in") < 0
    padded = np.pad(minus, (0, -columns % 32))
    return np.packbits(padded, bitorder="little").view(np.uint32).copy()
