"""Coded matrices in the order in which a GPU reads them.

    unit      [row block][stage]: codes, scales of its blocks, tables of its tiles; one copy
    codes     [step][vector][thread][word]: a warp's load of a vector is 512 (256, 128) bytes
    scales    binary16 [block][row of the row block]; where a thread has whole blocks to itself
              [span][thread][row of its ring], binary16 or (TABLE) bytes, `lower_scaled`'s level
              times STEP; where the matrix unit applies them E4M3 or E8M0, see `_unit_blocks`
    tables    [tile][ring][register]: of parameters per tile
    row scale float32 [row]: what multiplies the finished sum

All are bijections of what is stored, except that scales are turned into binary16 times a power of
two per row: exact for E4M3 and FP16 scales, and for E8M0 down to 2**-39 of a row's largest. E8M0
as E4M3 has to be exact: down to 2**-17 of a row's largest. So has E8M0 as a level: down to 2**-26
of the largest of a row's blocks that are not zeros throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.lower_scaled import LEVELS, STEP
from unspool.decode.lowering import reorder
from unspool.decode.machine import Machine
from unspool.encode.rotate import signs
from unspool.errors import WeightError
from unspool.matmul.cuda.geometry import BLOCK_ROWS, QUARTER, ROWS, THREADS, Geometry
from unspool.matmul.cuda.recipe import REGISTERS, ROW, TABLE, UNIT, UNIT_BYTES, Recipe, recipe
from unspool.pack.matrix import CodedMatrix
from unspool.spec.format import Format
from unspool.spec.operand import E4M3, E8M0

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8, UInt32

WARPS = THREADS // 32
_MAGNITUDES = 0x77777777
"""Of eight E2M1, all bits but the signs."""

UNIT_TOP = 2.0**8
"""The largest power of two that is E4M3: of scales of FP4 that the matrix unit reads."""

TOP = 15
"""Scales are at most 2**15 as binary16, and so are weights multiplied with them."""


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """A matrix as a kernel takes it."""

    recipe: Recipe
    shape: tuple[int, int]
    units: UInt8[np.ndarray, "row_blocks stages bytes"]
    row_scales: Float32[np.ndarray, " rows"]
    #: registers of a parameter for every ring down, where they are the same all along its rows
    levels: UInt32[np.ndarray, "row_blocks levels rings"]

    @property
    def row_blocks(self) -> int:
        """Blocks of 256 rows."""
        return self.units.shape[0]

    @property
    def stages(self) -> int:
        """Stages along k."""
        return self.units.shape[1]


def recipe_of(
    matrices: Sequence[CodedMatrix], machine: Machine, activations: str = "auto"
) -> Recipe:
    """The cheapest recipe that all these matrices, of one format, can have.

    Raises DeclarationError as `recipe` does.
    """
    made = recipe(matrices[0].format, machine, activations)
    if made.scales == TABLE and any(_far(matrix).any() for matrix in matrices):
        return recipe(matrices[0].format, machine, activations, moved=False)
    return made


def arrange(matrix: CodedMatrix, made: Recipe) -> Arranged:
    """A coded matrix in a recipe's order, padded to row blocks and stages.

    Raises WeightError for scales that the recipe cannot hold: `recipe_of` finds one that can.
    """
    codes = _padded(matrix.codes, made.geometry)
    rows, columns = codes.shape[0] * ROWS, codes.shape[1] * made.geometry.tile_columns
    row_scales, blocks = _scales(matrix, made, rows, columns)
    tables = _tables(matrix, made, rows, columns)
    parts = [_codes(codes, made.geometry)]
    parts += [part for part in (blocks, tables if made.level_steps else None) if part is not None]
    return Arranged(
        recipe=made,
        shape=matrix.shape,
        units=np.concatenate(parts, axis=-1),
        row_scales=row_scales,
        levels=_levels(tables, made, rows),
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
    split = stored.reshape(down // rings, rings, -1, made.across().size, words)
    dealt = split[:, :, :, made.across()]  # row block, ring, span, step of it, ring of it, thread
    threads = dealt.transpose(0, 2, 3, 1, 5, 4, 6).reshape(
        down // rings, stages, made.steps, rings * QUARTER, made.step_words
    )[..., made.words()]
    vectors = [
        threads[..., first : first + width].reshape(*threads.shape[:3], -1)
        for first, width in made.vectors
    ]
    flat = np.concatenate(vectors, axis=-1).reshape(down // rings, stages, -1)
    return np.ascontiguousarray(flat, "<u4").view(np.uint8)


def _scales(
    matrix: CodedMatrix, made: Recipe, rows: int, columns: int
) -> tuple[Float32[np.ndarray, " rows"], np.ndarray | None]:
    """What multiplies a row, and the scales of its blocks `[row blocks, stages, bytes]`."""
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
    if made.scales == TABLE:
        levels, lowest = _block_levels(matrix)
        row[:stored] = np.ldexp(emitted, lowest)
        return row.astype(np.float32), _owned(levels, made, rows, columns)
    factor = _factors(scales, made)
    row[:stored] = tensor * emitted / factor
    if made.scales == UNIT:
        patterns = _unit_patterns(scales * factor[:, None], made)
        return row.astype(np.float32), _unit_blocks(patterns, made, rows, columns)
    halves = (scales * factor[:, None]).astype(np.float16)
    order = _owned if made.scales == REGISTERS else _blocks
    return row.astype(np.float32), order(halves, made, rows, columns)


def _exponents(matrix: CodedMatrix) -> tuple[np.ndarray, np.ndarray]:
    """Of MXFP4: the power of two of every block, and the largest of each row `[rows, 1]`.

    A block of zeros may have any scale, so it takes that: 0 where a row has no other.
    """
    code, block = matrix.format.code, matrix.format.scale.block
    assert matrix.scale is not None
    assert block is not None
    words = (matrix.codes & np.uint32(_MAGNITUDES)).reshape(*matrix.codes.shape[:2], ROWS, -1)
    rows = words.transpose(0, 2, 1, 3).reshape(len(matrix.scale), -1)
    zeros = ~rows.reshape(*matrix.scale.shape, block * code.operand.bits // 32).any(axis=2)
    power = np.where(zeros, -E8M0.bias, matrix.scale.astype(np.int64) - E8M0.bias)
    largest = power.max(axis=1, keepdims=True)
    return np.where(zeros, largest, power), largest


def _far(matrix: CodedMatrix) -> np.ndarray:
    """Blocks whose scales are too small beside the largest of their row to move a table."""
    power, largest = _exponents(matrix)
    return power - largest + LEVELS[-1] < 0


def _block_levels(matrix: CodedMatrix) -> tuple[UInt8[np.ndarray, "rows blocks"], np.ndarray]:
    """Levels times STEP, and every row's exponent of level 0; WeightError where there is none."""
    if (far := _far(matrix)).any():
        raise WeightError(
            "the scales of a row are too far apart for its table",
            where=f"row {int(np.argmax(far.any(axis=1)))}",
            allowed=f"within a factor of 2**{LEVELS[-1]} (arrange.recipe_of)",
        )
    power, largest = _exponents(matrix)
    lowest = largest - LEVELS[-1]
    return ((power - lowest) * STEP).astype(np.uint8), lowest[:, 0]


def _factors(scales: np.ndarray, made: Recipe) -> np.ndarray:
    """A power of two per row that makes the most of binary16, for weights in registers as well."""
    largest = scales.max(axis=1)
    top = np.where(largest > 0, largest, 1.0)
    if made.block_scaled:  # E4M3 as they are, powers of two up to its largest, 2**8
        return np.ones_like(top) if made.format.scale.operand is E4M3 else UNIT_TOP / top
    room = TOP - np.ceil(np.log2(top))
    if made.scales == REGISTERS:
        values = made.format.code.operand.values()
        largest = np.abs(values[np.isfinite(values)]).max()
        weight = largest * 2.0**made.geometry.lowering.exponent
        room -= max(0, np.ceil(np.log2(weight)))
    return np.asarray(2.0**room)


def _blocks(halves: np.ndarray, made: Recipe, rows: int, columns: int) -> np.ndarray:
    """Bytes `[row blocks, stages, blocks x 256 x 2]`; a longer block comes with every stage."""
    block = made.format.scale.block
    assert block is not None
    if block > made.geometry.stage_columns:
        halves = np.repeat(halves, block // made.geometry.stage_columns, axis=1)
    split = _by_stage(halves, made, rows, columns)
    return _bytes(split.transpose(0, 2, 3, 1))


def _owned(scales: np.ndarray, made: Recipe, rows: int, columns: int) -> np.ndarray:
    """Bytes `[row blocks, stages, spans x threads x 8 rows]`, of whatever type scales are."""
    split = _by_stage(scales, made, rows, columns)
    blocks, _, stages, each = split.shape
    dealt = split.reshape(blocks, BLOCK_ROWS // ROWS, ROWS, stages, each // QUARTER, QUARTER)
    return _bytes(dealt.transpose(0, 3, 4, 1, 5, 2))


def _by_stage(scales: np.ndarray, made: Recipe, rows: int, columns: int) -> np.ndarray:
    """`[row blocks, 256 rows, stages, blocks of a stage]`, zeros where there are no blocks."""
    stages = columns // made.geometry.stage_columns
    wanted = stages * made.scale_blocks
    padded = np.pad(scales, ((0, rows - len(scales)), (0, 0)))[:, :wanted]
    padded = np.pad(padded, ((0, 0), (0, wanted - padded.shape[1])))
    return padded.reshape(rows // BLOCK_ROWS, BLOCK_ROWS, stages, made.scale_blocks)


def _bytes(ordered: np.ndarray) -> UInt8[np.ndarray, "row_blocks stages bytes"]:
    return np.ascontiguousarray(ordered).reshape(*ordered.shape[:2], -1).view(np.uint8)


def _unit_patterns(scales: np.ndarray, made: Recipe) -> UInt8[np.ndarray, "rows blocks"]:
    """Scales as the matrix unit reads them: E4M3 beside FP4, else E8M0, 2**-127 for all below."""
    if not made.block_scaled:
        return (np.frexp(scales)[1] - 1 + E8M0.bias).clip(0).astype(np.uint8)
    positive = E4M3.values()[:0x7F]
    patterns = np.searchsorted(positive, scales).clip(max=len(positive) - 1)
    if (wrong := positive[patterns] != scales).any():
        raise WeightError(
            "a scale is no E4M3 without a sign, which FP4 products need",
            where=f"row {int(np.argmax(wrong.any(axis=1)))}",
            found=float(scales[wrong][0]),
            allowed="other activations: fp8x2",
        )
    return patterns.astype(np.uint8)


def _unit_blocks(
    patterns: UInt8[np.ndarray, "rows blocks"], made: Recipe, rows: int, columns: int
) -> UInt8[np.ndarray, "row_blocks stages bytes"]:
    """A stage's scales, of as many operands each as share one, where the matrix unit finds them."""
    geometry, block = made.geometry, made.format.scale.block
    assert block is not None
    stages = columns // geometry.stage_columns
    starts = np.arange(0, columns, geometry.span_columns)[:, None]
    firsts = (starts + geometry.columns().reshape(-1, made.unit_columns)[:, 0]).reshape(-1)
    missing = max(0, int(firsts.max()) // block + 1 - patterns.shape[1])
    padded = np.pad(patterns, ((0, rows - len(patterns)), (0, missing)))[:, firsts // block]
    by_stage = padded.reshape(rows, stages, -1)
    whole = np.pad(by_stage, ((0, 0), (0, 0), (0, -by_stage.shape[2] % UNIT_BYTES)))
    return _bytes(_to_tensor_memory(whole) if made.loop == "tcgen05" else _to_quads(whole))


def _to_quads(scales: UInt8[np.ndarray, "rows stages scales"]) -> np.ndarray:
    """Eight scales of a row at a time: of two slices of FP4, of eight slices of others.

    Thread t of a quad has those of row 2 j + t % 2 of its ring, the lower or upper four by t // 2.
    """
    rows, stages, _ = scales.shape
    split = scales.reshape(
        rows // BLOCK_ROWS, BLOCK_ROWS // ROWS, ROWS // 2, 2, stages, -1, 2, UNIT_BYTES // 2
    )  # row block, ring, j, row of two | stage, eight, four of them, scale
    return split.transpose(0, 4, 5, 1, 6, 3, 2, 7)


def _to_tensor_memory(scales: UInt8[np.ndarray, "rows stages scales"]) -> np.ndarray:
    """Words of four, one per slice of FP4: [slice][tile][row % 32][row // 32] of a tile's 128 rows.

    These are half j % 2, row i % 2 of two, ring g of warp w, as `tcgen05.cuh` puts row
    i = 2 j + i % 2.
    """
    rows, stages, _ = scales.shape
    split = scales.reshape(rows // BLOCK_ROWS, WARPS, ROWS, 2, 2, 2, stages, -1, UNIT_BYTES // 2)
    # row block, warp, g, tile, half, row of two | stage, slice, scale
    return split.transpose(0, 6, 7, 3, 4, 5, 2, 1, 8)


def _tables(
    matrix: CodedMatrix, made: Recipe, rows: int, columns: int
) -> UInt8[np.ndarray, "row_blocks stages bytes"]:
    """A parameter's tables as the decoder's level registers, of every tile and ring of a stage."""
    stages = columns // made.geometry.stage_columns
    if matrix.table is None:
        return np.zeros((rows // BLOCK_ROWS, stages, 0), np.uint8)
    down, across, length = matrix.table.shape
    stored = len(matrix.codes) * ROWS
    per_row = np.repeat(matrix.table, stored // down, axis=0)  # row across entry
    steps = stages * made.geometry.steps
    wanted = -(-steps // made.level_steps) if made.level_steps else across
    per_row = np.pad(per_row, ((0, rows - stored), (0, wanted - across), (0, 0)))
    by_ring = per_row.reshape(rows // ROWS, ROWS, wanted, length).swapaxes(1, 2)
    if made.geometry.lowering.levels * 4 == length:  # one table for all rows of a ring
        by_ring = by_ring[:, :, :1]
    if made.level_steps:  # a tile wider than a stage comes with each of them
        firsts = np.arange(0, steps, min(made.level_steps, made.geometry.steps))
        by_ring = by_ring[:, firsts // made.level_steps]
    parts, each = stages if made.level_steps else 1, by_ring[0, 0].size
    split = np.ascontiguousarray(by_ring, np.uint8).reshape(
        rows // BLOCK_ROWS, BLOCK_ROWS // ROWS, parts, -1, each
    )  # row block, ring | stage, tile, bytes
    return _bytes(split.transpose(0, 2, 3, 1, 4))


def _levels(
    tables: UInt8[np.ndarray, "row_blocks stages bytes"], made: Recipe, rows: int
) -> UInt32[np.ndarray, "row_blocks levels rings"]:
    """Tables that are the same all along a row, register by register; none where they change."""
    shape = rows // BLOCK_ROWS, BLOCK_ROWS // ROWS, made.whole_row_levels
    if not made.whole_row_levels:
        return np.zeros((shape[0], 0, shape[1]), np.uint32)
    return np.ascontiguousarray(tables.view("<u4").reshape(shape).swapaxes(1, 2))


def sign_words(fmt: Format, columns: int) -> UInt32[np.ndarray, " words"]:
    """The signs of a format's input rotation: a bit per column, set where it is minus."""
    minus = np.zeros(columns, bool)
    if fmt.rotation.input_size:
        minus = signs(columns, fmt.rotation.seed, "in") < 0
    padded = np.pad(minus, (0, -columns % 32))
    return np.packbits(padded, bitorder="little").view(np.uint32).copy()
