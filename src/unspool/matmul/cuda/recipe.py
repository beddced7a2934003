"""How a format is multiplied on a GPU: operands, activations, where scales go. Pure choices.

activations   what each activation becomes                           kept of it
float16       binary16, a power of two per token                     11 bits
fp8x2         the sum of two E4M3 terms, a scale per token           8 bits
fp8x3         of three                                               12 bits
fp8           one E4M3                                               4 bits
fp4           NVFP4: one E2M1, an E4M3 scale per 16 columns          2 bits
int8          one INT8, a scale per token                            7 bits

fp4 is for what the matrix units of sm100 and sm120 scale themselves: weights that are exactly E2M1
with a scale per row, or per block in E4M3 (or E8M0, where the scales of a row span at most the 18
powers of two that are E4M3; `arrange` refuses others). So MXFP4 weights share the NVFP4 product:
the unit's own for E8M0 wants activations with powers of two for scales as well, which are coarser.

int8 is for codes whose values are small integers up to a power of two. Its sums are whole numbers,
exact in 32 bits, and become FP32 once: the result does not depend on who summed what. Of the GPUs
of sm100's kernels 10.3 has no such products.

MXFP4 goes by a decoder whose table moves with a block's scale (TABLE, `decode.lower_scaled`) where
the powers of two of a row's blocks are near enough: that is for a matrix to say, so `arrange`
refuses others, and `arrange.recipe_of` finds what fits.

The terms of an activation are columns of one product: two FP8 products cost as much as one of
binary16, and decoding to FP8 stays one instruction per register.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from unspool.decode.lower import cost, lower_each, slots
from unspool.decode.lower_scaled import scaled, scaled_slots, takes_scales
from unspool.decode.machine import BYTES, Machine, Slot
from unspool.errors import DeclarationError
from unspool.matmul.cuda.geometry import (
    BLOCK_ROWS,
    ROWS,
    SLICE_BYTES,
    STAGE_COLUMNS,
    Geometry,
    geometry,
)
from unspool.matmul.cuda.layouts import SCALE_ALIGNMENT
from unspool.spec.format import Format
from unspool.spec.operand import E2M1, E2M3, E3M2, E4M3, E5M2, E8M0, FP16, INT8, Operand

TERMS: Mapping[str, int] = {"float16": 1, "fp8": 1, "fp8x2": 2, "fp8x3": 3, "fp4": 1, "int8": 1}
"""Activations by name, and columns of the product per token."""

ACTIVATIONS = ("auto", *TERMS)

BFLOAT16 = "bfloat16"
"""Activations of a library's product alone (`library.py`): rounded, and scaled by nothing."""

KINDS: Mapping[Slot, str] = {
    Slot(FP16): "f16",
    Slot(E4M3): "e4m3",
    Slot(E5M2): "e5m2",
    Slot(E2M1, BYTES): "f8f6f4_e2m1",
    Slot(E2M3, BYTES): "f8f6f4_e2m3",
    Slot(E3M2, BYTES): "f8f6f4_e3m2",
    Slot(E2M1): "mxf4nvf4",
    Slot(INT8): "s8",
}
"""Slot of the weights -> kind of product, as the hardware wrappers name them."""

_READ: Mapping[str, str] = {"float16": "binary16", "fp4": "packed E2M1", "int8": "INT8"}
"""Activations -> what weights have to be beside them; 8-bit floats beside all others."""

SLICES_OF_THREE_TERMS = 2
"""The most slices of a step beside which wgmma takes three terms: with 4, of E4M3 in tiles of 32
columns, sums and operand A leave too few registers (2 to 10 spills)."""

LOOPS: Mapping[str, str] = {
    "sm80": "mma_sync", "sm89": "mma_sync", "sm90": "wgmma", "sm100": "tcgen05", "sm120": "mma_sync"
}  # fmt: skip
"""Machine -> main loop. FP8 mma.sync is emulated on sm90 and sm100 (12 conversions, 2 products)."""

ROW, SUMS, REGISTERS, UNIT, TABLE = "row", "sums", "registers", "unit", "table"
"""Where scales are applied: to the result; to the sums of each block, in FP32; to the decoded
binary16, for blocks that end inside a step; by the matrix unit: of sm100 and sm120 to FP4, and to
8-bit operands with E8M0 scales; to the decoder's table."""

OWNED = (REGISTERS, TABLE)
"""Where a thread has whole blocks to itself: it fetches a scale once per block of a row."""

UNIT_BLOCK = 16
"""Operands side by side in a slice of FP4 that the matrix unit gives one scale; of 8-bit operands
all of a slice have one."""

UNIT_BYTES = 8
"""Scales of a row that the threads of a quad hold at a time: two pairs, four bytes each."""

SCALE_LANES, SCALE_ROW_BYTES = 32, 16
"""Tensor memory: tokens whose scales stand below each other, and bytes of each that are copied at
once, four words. A slice's scales take whole pairs of columns of words (`layouts`)."""

RUN_COLUMNS = 128
"""Columns of which a warp of the kernel that makes activations has all at hand."""

TILE_COLUMNS = 64
"""The most columns of a tile: two sums each in registers of a thread (tcgen05: at the end)."""

NARROW_COLUMNS = 32
"""The same where more registers are needed: for tables of a row's or tile's own, for look-ups and
for conversions to binary16. 2 to 15 spills at 64."""

SUM_REGISTERS = 160
"""What a tile's sums and a step's operand A may take of a thread's 255: with 192, 2 to 15 spills.
Sums are two per column, and twice that where they are held as they are and added up in FP32; a
slice takes 16, so binary16 twice those of bytes, and tiles of 32 columns twice those of 16."""

STAGES = (STAGE_COLUMNS, STAGE_COLUMNS // 2, STAGE_COLUMNS // 4)
"""Columns of a stage: the first of which two stages fit into shared memory. Of 8-bit codes on
consumer GPUs these are 128."""

BLOCK_SHARED: Mapping[str, int] = {"mma_sync": 99 << 10, "wgmma": 227 << 10, "tcgen05": 227 << 10}
"""Bytes of shared memory that a block can have (CUDA programming guide, compute capabilities): of
8.6, 8.9 and 12.0, whose main loop 8.0 shares, with 163 KiB; of 9.0 and 10.0."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A format, a machine, and all choices that its kernels depend on."""

    format: Format
    machine: Machine
    activations: str
    geometry: Geometry
    #: ROW, SUMS, REGISTERS, UNIT or TABLE
    scales: str

    @property
    def kind(self) -> str:
        """The kind of product."""
        return KINDS[self.geometry.lowering.slot]

    @property
    def loop(self) -> str:
        """The main loop."""
        return LOOPS[self.machine.name]

    @property
    def terms(self) -> int:
        """Columns of the product per token."""
        return TERMS.get(self.activations, 1)

    @property
    def scale_blocks(self) -> int:
        """Blocks of scales that a stage brings along, as they are counted in columns."""
        block, stage = self.format.scale.block, self.geometry.stage_columns
        return 0 if self.scales == ROW or block is None else max(1, stage // block)

    @property
    def level_steps(self) -> int:
        """Steps after which the parameter's table changes; 0: never within a row."""
        tiles = [p.tile for p in self.format.code.program.parameters if p.tile]
        return tiles[0][1] // self.geometry.step_columns if tiles else 0

    @property
    def whole_row_levels(self) -> int:
        """Registers of a ring's table that are the same all along its rows."""
        changing = self.level_steps or self.scales == TABLE
        return 0 if changing else self.geometry.lowering.levels

    @property
    def stage_tables(self) -> int:
        """Tables of a ring of rows that a stage brings along."""
        return max(1, self.geometry.steps // self.level_steps) if self.level_steps else 0

    @property
    def table_bytes(self) -> int:
        """Bytes of a stage's tables."""
        return self.stage_tables * (BLOCK_ROWS // ROWS) * 4 * self.geometry.lowering.levels

    @property
    def scale_bytes(self) -> int:
        """Bytes of a stage's scales for one row: binary16, a level, what the matrix unit reads."""
        if self.scales == UNIT:
            return -(-self.geometry.stage_columns // self.unit_columns // UNIT_BYTES) * UNIT_BYTES
        return self.scale_blocks * (1 if self.scales == TABLE else 2)

    @property
    def unit_columns(self) -> int:
        """Operands side by side that the matrix unit gives one scale."""
        return UNIT_BLOCK if self.block_scaled else SLICE_BYTES

    @property
    def unit_bytes(self) -> int:
        """Stored bytes of a stage of a row block: codes, scales, tables (`arrange`)."""
        return self.geometry.code_bytes + self.scale_bytes * BLOCK_ROWS + self.table_bytes

    @property
    def block_scaled(self) -> bool:
        """Whether activations have a scale per UNIT_BLOCK columns."""
        return self.activations == "fp4"

    @property
    def whole(self) -> bool:
        """Whether operands and sums are whole numbers."""
        return self.activations == "int8"

    @property
    def most_columns(self) -> int:
        """The most columns of a tile of tokens."""
        held_twice = self.scales == SUMS or (self.loop == "wgmma" and self.terms > 1)
        lowering = self.geometry.lowering
        more = lowering.levels or lowering.table or self.kind == "f16"
        free = SUM_REGISTERS - 16 * self.geometry.slices
        return min(NARROW_COLUMNS if more else TILE_COLUMNS, free // (4 if held_twice else 2))

    @property
    def fits(self) -> bool:
        """Whether two stages fit into a block's shared memory, with the largest tile's tokens."""
        tokens = 8
        while 2 * tokens * self.terms <= self.most_columns:
            tokens *= 2
        return self.shared_bytes(tokens, 2) <= BLOCK_SHARED[self.loop]

    def shared_bytes(self, tokens: int, slots: int) -> int:
        """Dynamic shared memory of the fused product: stages in flight, barriers, a table."""
        stage = self.unit_bytes + self.activation_bytes(tokens)
        barriers = 0 if self.loop == "mma_sync" else 16 * slots
        hands = 48 + 16 if self.loop == "tcgen05" else 0
        return slots * stage + barriers + hands + 16 + 4 * len(self.geometry.lowering.table)

    def activation_bytes(self, tokens: int) -> int:
        """Bytes of a tile's activations for one stage."""
        operands = self._stage_slices * SLICE_BYTES * tokens * self.terms
        return operands + self.token_scale_bytes(tokens)

    def scale_rows(self, tokens: int) -> int:
        """Tokens of a tile whose scales stand below each other."""
        return SCALE_LANES if self.loop == "tcgen05" else tokens * self.terms

    def scale_words(self, tokens: int) -> int:
        """Words of scales that a slice takes side by side."""
        words = -(-tokens * self.terms // self.scale_rows(tokens))
        together = SCALE_ALIGNMENT if self.loop == "tcgen05" else 1
        return -(-words // together) * together

    def token_scale_bytes(self, tokens: int) -> int:
        """Bytes of the scales of a tile's activations for one stage; 0: their rows have them."""
        words = self._stage_slices * self.scale_words(tokens) * self.block_scaled
        return -(-4 * words // SCALE_ROW_BYTES) * SCALE_ROW_BYTES * self.scale_rows(tokens)

    @property
    def _stage_slices(self) -> int:
        return self.geometry.steps * self.geometry.slices


def check_activations(name: str) -> None:
    """Raises DeclarationError unless that is a name of activations."""
    if name not in ACTIVATIONS:
        raise DeclarationError("no such activations on a GPU", found=name, allowed=ACTIVATIONS)


def recipe(
    fmt: Format, machine: Machine, activations: str = "auto", *, moved: bool = True
) -> Recipe:
    """The cheapest way to multiply a format with such activations.

    `moved`: also by tables that move with the blocks' scales, which not every matrix can have.
    Raises DeclarationError for activations that do not exist or that the machine or the format's
    values or scales do not allow.
    """
    check_activations(activations)
    reasons = {}
    for name in ("fp8x2", "float16") if activations == "auto" else (activations,):
        found, reasons[name] = _recipe(fmt, machine, name, moved)
        if found is not None:
            return found
    able = [name for name in TERMS if _recipe(fmt, machine, name, moved)[0] is not None]
    raise DeclarationError(
        f"no product of {fmt.name} on {machine.name}: {'; '.join(reasons.values())}",
        found=activations,
        allowed=able or "nothing on this target",
    )


@functools.lru_cache(maxsize=256)
def _recipe(
    fmt: Format, machine: Machine, activations: str, moved: bool
) -> tuple[Recipe | None, str]:
    """The recipe with exactly these activations, or the reason why there is none."""
    if activations == "int8" and Slot(INT8) not in machine.slots:
        return None, f"{machine.architecture} has no matrix unit for INT8"
    wanted = _READ.get(activations, "8-bit floats")
    able = [slot for slot in slots(fmt.code, machine) if slot in KINDS and _read(slot) == wanted]
    if not able:
        return None, f"its matrix units do not multiply the code's values as {wanted}"
    tables = [slot for slot in scaled_slots(machine) if _read(slot) == wanted]
    if moved and takes_scales(fmt) and tables and not _by_unit(fmt, machine, activations):
        by_table = geometry(fmt.code, scaled(fmt.code, tables[0]))
        made, _ = _fitting(fmt, machine, activations, by_table, TABLE)
        if made is not None:
            return made, ""
    found = [geometry(fmt.code, lowering) for lowering in lower_each(fmt.code, able, machine)]
    best = min(found, key=lambda g: cost(g.lowering))
    three = LOOPS[machine.name] == "wgmma" and TERMS[activations] == 3
    if three and best.slices > SLICES_OF_THREE_TERMS:
        return None, f"three terms leave steps of {best.step_columns} columns too few registers"
    return _fitting(fmt, machine, activations, best)


def _fitting(
    fmt: Format, machine: Machine, activations: str, best: Geometry, where: str = ""
) -> tuple[Recipe | None, str]:
    """The recipe with the longest stages of which two fit into shared memory.

    `where` the scales go, if not wherever they can.
    """
    for columns in STAGES:
        short = replace(best, most_columns=columns)
        scales, reason = (where, "") if where else _scales_of(fmt, short, machine, activations)
        if scales in OWNED and not reason:
            short, reason = _owned(fmt, short)
        if reason:
            return None, reason
        made = Recipe(
            format=fmt, machine=machine, activations=activations, geometry=short, scales=scales
        )
        if made.fits:
            return made, ""
    return None, f"two stages of {columns} columns do not fit into a block's shared memory"


def _owned(fmt: Format, made: Geometry) -> tuple[Geometry, str]:
    """The geometry with whole blocks in one thread, and the reason where there is none."""
    block, each = fmt.scale.block or 0, made.rings * made.tile_columns
    together = max(1, block // each)
    if block % each or made.steps % together:
        return made, f"blocks of {block} columns are not whole in a thread's {made.steps} steps"
    return replace(made, together=together), ""


def _scales_of(fmt: Format, made: Geometry, machine: Machine, activations: str) -> tuple[str, str]:
    """Where the scales go, and the reason where they can go nowhere."""
    if activations == "fp4":
        return _unit_scales(fmt, made)
    if _by_unit(fmt, machine, activations) and _alike(fmt, made, SLICE_BYTES):
        return UNIT, ""
    return _scales(fmt, made, wide=activations == "float16")


def _by_unit(fmt: Format, machine: Machine, activations: str) -> bool:
    """Whether a matrix unit scales 8-bit operands: by E8M0, beside FP8 activations."""
    return Slot(E2M1) in machine.slots and fmt.scale.operand is E8M0 and activations not in _READ


def _alike(fmt: Format, made: Geometry, together: int) -> bool:
    """Whether so many operands side by side always belong to one block."""
    block, step = fmt.scale.block or 0, made.step_columns
    if fmt.scale.operand is None or not block:
        return False
    blocks = made.columns().reshape(-1, together) // math.gcd(block, step)
    return bool((blocks == blocks[:, :1]).all())


def _read(slot: Slot) -> str:
    """What operands in a slot are multiplied as."""
    packed: dict[Operand, str] = {
        FP16: _READ["float16"], E2M1: _READ["fp4"], INT8: _READ["int8"]
    }  # fmt: skip
    return "8-bit floats" if slot.container == BYTES else packed.get(slot.operand, "8-bit floats")


def _unit_scales(fmt: Format, made: Geometry) -> tuple[str, str]:
    """The same for operands that the matrix unit scales."""
    where, reason = _scales(fmt, made, wide=True)
    if not reason and RUN_COLUMNS % made.step_columns:
        reason = f"steps of {made.step_columns} columns are not whole in {RUN_COLUMNS}"
    if reason or where == ROW:
        return where, reason
    if fmt.scale.operand not in (E4M3, E8M0):
        return "", "its scales of blocks are not E4M3, as the matrix unit reads them"
    if not _alike(fmt, made, UNIT_BLOCK):
        reason = f"blocks of {fmt.scale.block} columns end among {UNIT_BLOCK} operands of one scale"
        return "", reason
    return UNIT, ""


def _scales(fmt: Format, made: Geometry, wide: bool) -> tuple[str, str]:
    """The same for operands whose scales the kernel applies."""
    block, step, stage = fmt.scale.block, made.step_columns, made.stage_columns
    widths = [p.tile[1] for p in fmt.code.program.parameters if p.tile]
    if made.lowering.shared or any(w % step or (w % stage and stage % w) for w in widths):
        return "", "its tables change inside a step, or are too long for registers"
    if block is None or fmt.scale.operand is None:
        return ROW, ""
    if block % step == 0 and (stage % block == 0 or block % stage == 0):
        return SUMS, ""
    if block % made.tile_columns or stage % block:
        return "", f"blocks of {block} columns cut its tiles of {made.tile_columns}"
    return REGISTERS, "" if wide else f"blocks of {block} columns end inside a step of {step}"
