"""The text of a kernel: constants and the emitted decoder, then headers that one reads in order.

    instructions, hardware wrappers | constants (made) | decoder (code_0) | arguments ... main loop

Only integers and names of this file reach the text, beside the files of this package.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources

from unspool.decode.emit_cuda import emit, header
from unspool.decode.lower_scaled import unmoved
from unspool.errors import DeclarationError
from unspool.matmul.cuda.activations import TERM_STEP, largest_of, smallest_of
from unspool.matmul.cuda.cubin import frame_bytes
from unspool.matmul.cuda.geometry import THREADS, Geometry
from unspool.matmul.cuda.launch import most_blocks
from unspool.matmul.cuda.library import Expansion
from unspool.matmul.cuda.recipe import (
    BFLOAT16,
    OWNED,
    REGISTERS,
    ROW,
    RUN_COLUMNS,
    SUMS,
    TABLE,
    UNIT,
    Recipe,
)
from unspool.spec.operand import BF16

_FOLDER = resources.files("unspool") / "matmul" / "cuda"

HARDWARE = ("memory", "copies", "numbers", "mma_sync", "wgmma", "tensor_memory")

_LOOP_FILES = {
    "mma_sync": ("mma_sync.cuh",),
    "wgmma": ("pipeline.cuh", "wgmma.cuh"),
    "tcgen05": ("pipeline.cuh", "tcgen05.cuh"),
}

LOOP_THREADS: Mapping[str, int] = {
    "mma_sync": THREADS, "wgmma": THREADS + 32, "tcgen05": THREADS + 64
}  # fmt: skip

BOUNDED = ("tcgen05", "wgmma")
"""Main loops whose registers are kept to what `most_blocks` leaves each. Of tcgen05's 179 to 218,
168 do without spills, of wgmma's 200 to 238 in most formats with one term in tiles of 16: m2-e4m3
beside FP8 has 0.04 instructions per weight less for it. Where they do not (2 to 32 spills) the
kernel is compiled without. mma.sync's take no more where three blocks find shared memory."""

Constant = int | float | str
"""Of a kernel: an integer, a float32, a kind of product."""

SCALE_MODES = (ROW, SUMS, REGISTERS, UNIT, TABLE)

OUTPUTS: Mapping[str, tuple[int, int]] = {
    "float32": (32, 0),
    "float16": (16, 0),
    "bfloat16": (16, 1),
}
"""Type of inputs and outputs -> its bits, and whether it is bfloat16."""

PROMOTED_STAGES = 4
"""wgmma's FP8 sums keep some 14 bits; with several terms they are added in FP32 so often."""

LEAST_UNROLLED, NARROW_TILE = 2, 16
"""Where sums of blocks are held beside those of rows, the steps of a block of scales are unrolled,
at least two in tiles of up to 16 columns. With all of a stage mma.sync and tcgen05 take up to 250
registers, where several blocks of threads have 168 each, and spill in wider tiles; wgmma does
not, but beside look-ups to whole numbers (MXFP6 to INT8: 6 spills), where half of them are."""

ROTATE_WARPS = 16
ROTATE_THREADS = 32 * ROTATE_WARPS
MOST_SEGMENTS = 24
"""Runs of a warp, four registers a thread each: a block of 512 threads leaves it 128."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel's text, and what a launch needs to know."""

    name: str
    source: str
    #: as ptxas spells it
    architecture: str
    threads: int
    #: dynamic shared memory of a block
    shared_bytes: int
    #: the text where registers may be as many as it likes; empty: the same
    loose: str = ""

    def compiled(self, cubin: Callable[[str], bytes]) -> bytes:
        """Machine code by a compiler: of the loose text where the other one's registers spill."""
        made = cubin(self.source)
        return cubin(self.loose) if self.loose and frame_bytes(made).get(self.name) else made


@functools.lru_cache(maxsize=256)
def multiply_kernel(made: Recipe, *, tokens: int, output: str, slots: int) -> Kernel:
    """The fused product for tiles of `tokens` (a multiple of 8), `slots` stages in flight."""
    constants = _constants(made, tokens) | {
        "slots": slots,
        "kind": f"Kind::{made.kind}",
        "output_bits": OUTPUTS[output][0],
        "output_bfloat": OUTPUTS[output][1],
        "promote_stages": promoted_stages(made),
    }
    blocks = most_blocks(made, tokens) if made.loop in BOUNDED else 1
    tight, loose = (_hardware(LOOP_THREADS[made.loop], most) for most in (blocks, 1))
    text = "".join((
        *_decoder(made, constants, made.geometry),
        *(_file(name) for name in ("share.cuh", "finish.cuh")),
        _wgmma(made, tokens * made.terms) if made.loop == "wgmma" else "",
        *(_file(name) for name in _LOOP_FILES[made.loop]),
        _entry("multiply", "Arguments"),
    ))  # fmt: skip
    may_spill = made.loop == "wgmma" and blocks > 1
    return Kernel(
        name="unspool_multiply",
        source="".join((*tight, text)),
        architecture=made.machine.architecture,
        threads=LOOP_THREADS[made.loop],
        shared_bytes=made.shared_bytes(tokens, slots),
        loose="".join((*loose, text)) if may_spill else "",
    )


@functools.lru_cache(maxsize=256)
def prepare_kernel(
    made: Recipe, *, tokens: int, columns: int, dtype: str, flat: bool = False
) -> Kernel:
    """Activations of `columns` (k) of that type to operand B for tiles of `tokens`.

    `flat`: to rows of a matrix, for a library.
    """
    size = made.format.rotation.input_size
    segments = segments_of(columns, size)
    constants = _constants(made, tokens) | {
        "segments": segments,
        "stage_columns": made.geometry.stage_columns,
        "span_columns": made.geometry.span_columns,
        "flat": int(flat),
        "operand_bits": {"float16": 16, BFLOAT16: 16, "fp4": 4}.get(made.activations, 8),
        "operand_bfloat": int(made.activations == BFLOAT16),
        "input_bits": OUTPUTS[dtype][0],
        "input_bfloat": OUTPUTS[dtype][1],
        "rotation": size,
        "rotation_factor": 1 / math.sqrt(size or 1),
        "rotate_warps": ROTATE_WARPS,
        "largest_operand": float(largest_of(made)),
        "smallest_row": float(smallest_of(made)),
    }
    text = "".join((
        *_hardware(ROTATE_THREADS), _made(constants), "namespace unspool::code_0 {}\n",
        _file("arguments.cuh"), _file("activations.cuh"), _entry("prepare", "ActivationArguments"),
    ))  # fmt: skip
    return Kernel(
        name="unspool_prepare",
        source=text,
        architecture=made.machine.architecture,
        threads=ROTATE_THREADS,
        shared_bytes=4 * ROTATE_WARPS * (1 + RUN_COLUMNS * made.block_scaled),
    )


@functools.lru_cache(maxsize=64)
def expand_kernel(found: Expansion) -> Kernel:
    """All weights decoded to a row-major matrix of operands, columns in the order of a span."""
    made, stored = found.recipe, found.stored
    shared = stored.unit_bytes + 4 * len(made.geometry.lowering.table)
    constants = _constants(made, 8) | {
        "unit_bytes": stored.unit_bytes,
        "scales_weights": int(found.scaled),
        "output_bfloat": int(found.operand is BF16),
        "scale_factor": 2.0**found.shift,
        "stored_ring_words": stored.geometry.ring_words,
        "stored_four": int(stored.block_scaled),
        "stored_lanes": int(stored.loop == "tcgen05"),
    }
    text = "".join((
        *_hardware(THREADS),
        *_decoder(made, constants, stored.geometry),
        _file("expand.cuh"),
        _entry("expand", "ExpandArguments"),
    ))  # fmt: skip
    return Kernel(
        name="unspool_expand",
        source=text,
        architecture=made.machine.architecture,
        threads=THREADS,
        shared_bytes=shared,
    )


def assembled(
    text: str, *, function: str, arguments: str, threads: int, constants: Mapping[str, Constant]
) -> str:
    """A kernel's source around its own text: the hardware's wrappers, constants, the entry."""
    return "".join((*_hardware(threads), _made(constants), text, _entry(function, arguments)))


def segments_of(columns: int, rotation: int) -> int:
    """Runs of 128 columns per warp: whole transforms; DeclarationError where registers run out."""
    each = -(-columns // (RUN_COLUMNS * ROTATE_WARPS))
    unit = max(1, rotation // RUN_COLUMNS)
    segments = -(-each // unit) * unit
    if segments > MOST_SEGMENTS:
        raise DeclarationError(
            "too many columns for the kernel that rotates activations",
            found=columns,
            allowed=f"at most {MOST_SEGMENTS * RUN_COLUMNS * ROTATE_WARPS}",
        )
    return segments


def _constants(made: Recipe, tokens: int) -> dict[str, Constant]:
    geometry, block = made.geometry, made.format.scale.block
    if tokens % 8:
        raise DeclarationError("tokens come in eights", found=tokens)
    low, high = unmoved()
    return {
        "threads": THREADS,
        "token_blocks": tokens // 8,
        "terms": made.terms,
        "term_step": float(TERM_STEP),
        "steps": geometry.steps,
        "slices": geometry.slices,
        "rings": geometry.rings,
        "ring_words": geometry.ring_words,
        "ring_columns": geometry.tile_columns,
        "step_words": geometry.step_words,
        "code_bytes": geometry.code_bytes,
        "unit_bytes": made.unit_bytes,
        "table_bytes": made.table_bytes,
        "level_steps": made.level_steps,
        "block_scaled": int(made.block_scaled),
        "scale_rows": made.scale_rows(tokens),
        "scale_words": made.scale_words(tokens),
        "token_scale_bytes": made.token_scale_bytes(tokens),
        "whole": int(made.whole),
        "scale_mode": SCALE_MODES.index(made.scales),
        "unrolled_steps": unrolled_steps(made, tokens),
        "scale_block": block or 1,
        "scale_steps": scale_steps(made),
        "table_low": low,
        "table_high": high,
        **{f"in_{mode}": number for number, mode in enumerate(SCALE_MODES)},
    }


def promoted_stages(made: Recipe) -> int:
    """Stages after which narrower sums are added up in FP32; 0: never."""
    narrow = made.loop == "wgmma" and made.terms > 1 and made.scales != SUMS
    return PROMOTED_STAGES if narrow else 0


def scale_steps(made: Recipe) -> int:
    """Steps of a stage that share what is fetched or done once per block."""
    geometry, block = made.geometry, made.format.scale.block
    if made.scales in OWNED:
        return geometry.together
    if made.scales != SUMS or block is None:
        return 1
    return min(block // geometry.step_columns, geometry.steps)


def unrolled_steps(made: Recipe, tokens: int) -> int:
    """Steps of a stage that are written out one after another, for tiles of so many."""
    if made.scales != SUMS:
        return made.geometry.steps
    each = scale_steps(made)
    if made.loop == "wgmma":
        looked_up = made.whole and made.geometry.lowering.table
        return max(each, made.geometry.steps // 2) if looked_up else made.geometry.steps
    return max(LEAST_UNROLLED, each) if tokens * made.terms <= NARROW_TILE else each


def _decoder(made: Recipe, constants: Mapping[str, Constant], stored: Geometry) -> tuple[str, ...]:
    """Constants, the emitted decoder, and from words as they are `stored` to operand A."""
    lowering = made.geometry.lowering
    return (
        _made(constants),
        f"#define UNSPOOL_ENTRIES {int(bool(lowering.table))}\n",
        f"#define UNSPOOL_HELD {int(bool(lowering.held))}\n",
        f"#define UNSPOOL_WORDS {', '.join(map(str, stored.words()))}\n",
        emit(lowering),
        *(_file(name) for name in ("arguments.cuh", "weights.cuh")),
    )


def _made(constants: Mapping[str, Constant]) -> str:
    lines = []
    for name, value in constants.items():
        kind = {int: "int", float: "float", str: "Kind"}[type(value)]
        shown = _float(value) if isinstance(value, float) else value
        lines.append(f"constexpr {kind} {name} = {shown};\n")
    return f"namespace unspool::made {{\n{''.join(lines)}}}  // namespace\n\n"


def _wgmma(made: Recipe, columns: int) -> str:
    """The product of a warpgroup, spelled for its columns: a register list has no loop in PTX."""
    wide = made.kind == "f16"
    sums = [f"%{i}" for i in range(columns // 2)]
    operands = [f"%{columns // 2 + i}" for i in range(6)]
    types = {"f16": "f32.f16.f16", "s8": "s32.s8.s8"}.get(made.kind, f"f32.{made.kind}.e4m3")
    spelled = f"wgmma.mma_async.sync.aligned.m64n{columns}k{16 if wide else 32}.{types}"
    outputs = ", ".join(f'"+{"r" if made.whole else "f"}"(d[{i}])' for i in range(columns // 2))
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(4))
    tail = {"f16": "adds, 1, 1, 0", "s8": "adds"}.get(made.kind, "adds, 1, 1")
    return f"""#ifdef __CUDACC__
namespace unspool {{
template <Kind, int>
UNSPOOL_DEVICE void wgmma(
    Part (&d)[{columns // 2}], const word (&a)[4], unsigned long long b, bool adds) {{
    asm volatile("{{ .reg .pred adds; setp.ne.b32 adds, {operands[5]}, 0; "
                 "{spelled} {{{", ".join(sums)}}}, "
                 "{{{", ".join(operands[:4])}}}, {operands[4]}, {tail}; }}"
                 : {outputs} : {inputs}, "l"(b), "r"(int(adds)));
}}
}}  // namespace
#endif
"""


def _entry(function: str, arguments: str) -> str:
    return (
        f"UNSPOOL_KERNEL(unspool_{function}, unspool::{arguments}, arguments) "
        f"{{\n    unspool::{function}(arguments);\n}}\n"
    )


def _float(value: float) -> str:
    """A float of C++ that reads back as the nearest float32 of the value."""
    return f"{value.hex()}f"


def _hardware(threads: int, blocks: int = 1) -> tuple[str, ...]:
    return (
        header(),
        f"#define UNSPOOL_THREADS {threads}\n",
        f"#define UNSPOOL_BLOCKS {blocks}\n",
        *(_file(f"hardware/{name}.cuh") for name in HARDWARE),
    )


def _file(name: str) -> str:
    """A header of this package without the guard's need: each comes once."""
    return (_FOLDER / name).read_text(encoding="utf-8") + "\n"
