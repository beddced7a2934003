"""The least time that a fused product can take on a GPU: the resource that it needs longest.

    memory   bytes of the weights as the kernel reads them, of activations and outputs in 16 bits
    tensor   products of whole tiles; every term of an activation is a column (`recipe.TERMS`)
    issue    instructions of all warps: decoding, and mma.sync where that is the main loop
    alu fma cvt   decoding, by pipe
    shared   weights written and read once, activations once per product's rows, look-ups

Decoding repeats with every tile of tokens. Added to the largest: what a launch costs. Left out, so
that no kernel gets below: latency, waves that do not fill the GPU, clocks under load, the rotation
and rounding of activations, and, unless a whole loop was counted, all of it but decoding. So this
is a bound, and good for a ranking; no time is promised. Products from `LIBRARY_ROWS` tokens on,
which the runtime does otherwise, are not what this describes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unspool.decode.lower import LOADS, operations
from unspool.decode.lowering import CONVERSIONS, Lowering
from unspool.decode.machine import machine
from unspool.errors import DeclarationError
from unspool.matmul.cuda.geometry import BLOCK_ROWS, ROWS
from unspool.matmul.cuda.launch import tokens_of
from unspool.matmul.cuda.recipe import TABLE, Recipe, recipe
from unspool.perf.count import Count
from unspool.perf.device import ISSUE_SLOTS, LAUNCH_SECONDS, SHARED_BYTES, WARP, Device
from unspool.perf.loop import LoopCount
from unspool.perf.record import load
from unspool.spec.catalog import FORMATS
from unspool.spec.format import Format

STATUS = "bounds; not run on a GPU"

COUNTED, LOOP, RECORDED, ESTIMATED = "counted", "loop counted", "recorded", "estimated"
"""Whence instructions: this machine code, that of the whole main loop, counts that the package
ships, our own lowering before any compiler."""

PRODUCT_ROWS: Mapping[str, int] = {"mma_sync": 64, "wgmma": 64, "tcgen05": 128}
"""Main loop -> rows for which activations are read from shared memory once: a warp's, or those of
one instruction."""

MMA_ROWS, MMA_COLUMNS = 16, 8
"""Of mma.sync: m16n8, and a slice of columns."""

_ACTIVATION_BYTES = 2
_WORD = 4
_MULTIPLIES = ("mul", "mul-high", "half2-add", "half2-fma")


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Instructions per weight, in all and by pipe."""

    total: float
    alu: float
    fma: float
    cvt: float
    lds: float
    #: COUNTED, LOOP, RECORDED or ESTIMATED
    source: str


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a product of m tokens with an `[n, k]` matrix needs at least, in seconds."""

    format: str
    device: str
    activations: str
    n: int
    k: int
    m: int
    #: by resource: memory, tensor, issue, alu, fma, cvt, shared
    resources: Mapping[str, float]
    launch: float
    instructions: Instructions

    @property
    def binds(self) -> str:
        """The resource that is needed longest."""
        return max(self.resources, key=lambda name: self.resources[name])

    @property
    def seconds(self) -> float:
        """The least time, the launch included."""
        return self.resources[self.binds] + self.launch

    @property
    def fraction(self) -> float:
        """The most of the memory's bandwidth that it can use, the launch aside."""
        return self.resources["memory"] / self.resources[self.binds]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, what is derived included."""
        derived = {"binds": self.binds, "seconds": self.seconds, "fraction": self.fraction}
        return {**asdict(self), **derived}


def bound(
    fmt: Format,
    device: Device,
    *,
    n: int,
    k: int,
    m: int,
    activations: str = "auto",
    instructions: Instructions | None = None,
) -> Bound:
    """The bound of a product: x `[m, k]` with a matrix `[n, k]` of the format.

    instructions: counted ones (`of_count`, `of_loop`); else recorded ones, else estimated ones.
    Raises DeclarationError where no kernel does it, with the reason, or where it does not fit.
    """
    if min(n, k, m) < 1:
        raise DeclarationError("a product of nothing", found=f"n {n}, k {k}, m {m}")
    made = recipe(fmt, machine(device.target), activations)
    each = instructions or known(made)
    needed = weight_bytes(made, n, k)
    if needed > device.memory:
        raise DeclarationError(
            "the weights do not fit on the GPU", where=f"{fmt.name} on {device.title}",
            found=f"{needed:,} bytes", allowed=f"{device.memory:,.0f}",
        )  # fmt: skip
    return Bound(
        format=fmt.name,
        device=device.name,
        activations=made.activations,
        n=n,
        k=k,
        m=m,
        resources=_resources(made, device, each, n, k, m),
        launch=LAUNCH_SECONDS,
        instructions=each,
    )


def weight_bytes(made: Recipe, n: int, k: int) -> int:
    """Bytes of an `[n, k]` matrix as `arrange` makes them: codes, scales, parameters, padding."""
    row_blocks, stages = _units(made, n, k)
    levels = made.whole_row_levels * BLOCK_ROWS // ROWS
    return row_blocks * (stages * made.unit_bytes + _WORD * (BLOCK_ROWS + levels))


def of_count(count: Count, source: str = COUNTED) -> Instructions:
    """What was counted of a decoder."""
    return Instructions(
        total=count.total, alu=count.alu, fma=count.fma, cvt=count.cvt, lds=count.lds, source=source
    )


def of_loop(loop: LoopCount, decoder: Instructions) -> Instructions:
    """What was counted of a whole main loop, for products of its tiles.

    Look-ups are the decoder's: the loop's other loads bring what `shared` counts in bytes.
    """
    return Instructions(**{**loop.pipes, "lds": decoder.lds}, total=loop.total, source=LOOP)


def known(made: Recipe) -> Instructions:
    """What is known of a recipe's decoder without a compiler: recorded, else estimated."""
    return recorded(made) or estimated(made)


def recorded(made: Recipe) -> Instructions | None:
    """The shipped count of a recipe's decoder; None where a code or lowering has none."""
    entry, slot = made.format.name.split(":")[0], made.geometry.lowering.slot
    if entry not in FORMATS or FORMATS[entry].code != made.format.code:
        return None
    key = entry, made.machine.name, slot.operand.name, slot.container, made.scales == TABLE
    name, count = _records().get(key, ("", None))
    if count is None or name != made.geometry.lowering.name:
        return None
    return of_count(count, RECORDED)


def estimated(made: Recipe) -> Instructions:
    """What our own lowering has, each of its instructions as one of the machine's."""
    lowering: Lowering = made.geometry.lowering
    found = operations(lowering)
    per = {
        "fma": sum(found[op] for op in _MULTIPLIES) / lowering.weights,
        "cvt": sum(found[op] for op in CONVERSIONS) / lowering.weights,
        "lds": sum(found[op] for op in LOADS) / lowering.weights,
    }
    total = found.total() / lowering.weights
    return Instructions(**per, total=total, alu=total - sum(per.values()), source=ESTIMATED)


@functools.cache
def _records() -> dict[tuple[str, str, str, str, bool], tuple[str, Count]]:
    """(lowering, count) by format, target, operand, container, and whether block scales are in."""
    found = {}
    for entry in load()[1]:
        key = entry.format, entry.target, entry.operand, entry.container, entry.block_scale
        found[key] = entry.lowering, entry.count
    return found


def _units(made: Recipe, n: int, k: int) -> tuple[int, int]:
    """Row blocks and stages of an `[n, k]` matrix."""
    rows, columns = made.format.padded(n, k)
    return -(-rows // BLOCK_ROWS), -(-columns // made.geometry.stage_columns)


def _resources(
    made: Recipe, device: Device, each: Instructions, n: int, k: int, m: int
) -> dict[str, float]:
    tokens = tokens_of(made, m)
    tiles, columns = -(-m // tokens), tokens * made.terms
    row_blocks, stages = _units(made, n, k)
    units = row_blocks * stages
    weights = units * BLOCK_ROWS * made.geometry.stage_columns
    moved = weight_bytes(made, n, k) + _ACTIVATION_BYTES * m * (k + n)
    per_clock, pipes = device.clocks, device.pipes
    issued = each.total + (0.0 if each.source == LOOP else _products_issued(made, columns))
    reads = 1 + BLOCK_ROWS // PRODUCT_ROWS[made.loop]
    staged = units * (2 * made.unit_bytes + reads * made.activation_bytes(tokens))
    return {
        "memory": moved / device.bandwidth,
        "tensor": 2.0 * weights * tiles * columns / device.tensor_rate(_kind(made)),
        "issue": tiles * weights * issued / (ISSUE_SLOTS * WARP * per_clock),
        "alu": tiles * weights * each.alu / (pipes.alu * per_clock),
        "fma": tiles * weights * each.fma / (pipes.fma * per_clock),
        "cvt": tiles * weights * each.cvt / (pipes.cvt * per_clock),
        "shared": tiles * (staged + _WORD * weights * each.lds) / (SHARED_BYTES * per_clock),
    }


def _products_issued(made: Recipe, columns: int) -> float:
    """Instructions per weight that are the products themselves: those of warpgroups are few."""
    if made.loop != "mma_sync":
        return 0.0
    return WARP / (MMA_ROWS * made.geometry.slice_columns) * columns / MMA_COLUMNS


def _kind(made: Recipe) -> str:
    """The matrix unit whose rate a kind of product has."""
    return {"f16": "FP16", "mxf4nvf4": "FP4", "s8": "INT8"}.get(made.kind, "FP8")
