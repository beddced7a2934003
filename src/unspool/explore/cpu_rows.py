"""Rows of a search for a CPU: found tables, the catalog's codes of the rate, and others'.

A code whose kernel decodes in registers costs what the kernel's loop has in machine code. All
others have no cost here, and their source says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from unspool.explore import published, score
from unspool.explore.explorer import Settings
from unspool.explore.front import Found
from unspool.explore.row import Row, format_of
from unspool.explore.score import Sample, branches, distortion
from unspool.matmul.tables import integer_levels
from unspool.perf.strip_loop import LINE, count_strip, shape_of
from unspool.spec.catalog import FORMATS
from unspool.spec.code import Code

UNKNOWN = float("inf")
BY_TABLE = "no kernel in registers: decoded by its table, a few steps at a time"
NO_LEVELS = "its values are no int8 multiples of one number: no kernel in registers"
OTHERS = "no kernel here"


def found_row(code: Code, found: Found, target: str) -> Row:
    """The row of a found table."""
    fmt = format_of(code)
    return Row(
        name=fmt.name, operand=code.operand.name, target=target,
        bits_per_weight=code.bits_per_weight, mse=found.mse or 0.0, total=found.cost,
        instructions_per_64_weights=found.cost * LINE, counted=True, found=True,
        edges=branches(code), code=fmt.code,
    )  # fmt: skip


def published_rows(settings: Settings, say: Callable[[str], None]) -> list[Row]:
    """The catalog's trellises of the rate, QTIP's and EXL3's, and figures of others."""
    whole = settings.bits == int(settings.bits)
    ours = [
        fmt.code for fmt in FORMATS.values()
        if fmt.code.bits_per_weight == settings.bits and fmt.code.memory and fmt.code.sigma
    ]  # fmt: skip
    sample = Sample(weights=score.PUBLISHED, seed=settings.seed)
    made = []
    for code in (*ours, *(published.trellis(int(settings.bits)) if whole else ())):
        say(f"measuring {code.name}")
        mse = float(f"{distortion(code, sample, threads=None):.5g}")
        made.append(_counted(code, mse, settings.target))
    made += [
        Row(
            name=point.name, operand="", target=settings.target, bits_per_weight=point.bits,
            mse=point.mse, total=UNKNOWN, counted=False, found=False,
            source=f"{point.source}; {OTHERS}",
        )
        for point in published.points(settings.bits)
    ]  # fmt: skip
    return made


def _counted(code: Code, mse: float, target: str) -> Row:
    row = Row(
        name=code.name, operand=code.operand.name, target=target,
        bits_per_weight=code.bits_per_weight, mse=mse, total=UNKNOWN, counted=False, found=False,
        edges=branches(code), code=code,
    )  # fmt: skip
    shape = shape_of(code)
    if integer_levels(code) is None:
        return replace(row, source=NO_LEVELS)
    if shape is None:
        return replace(row, source=BY_TABLE)
    of_64 = count_strip(target, shape).instructions
    return replace(
        row, total=of_64 / LINE, instructions_per_64_weights=of_64, counted=True,
        source=f"the catalog's, {shape}",
    )  # fmt: skip
