"""Which kernel multiplies: a pure function of format, batch and target.

numpy                 the slow twin, where there is no library or no table
panel-portable        decodes panels of rows into the cache; any format, any machine
panel-avx2            the same, compiled for x86-64-v3, with FMA
look-up-avx2          one row of activations; tables of up to 128 int8 levels in registers
look-up-avx512        the same with the instructions it was designed for. Compiled, and its source
                      run through the twin; native execution is yet to be recorded
look-up-avx512-twin   that kernel against plain C++ stand-ins of its instructions; for tests

All but the portable panels use FMA in one order of additions and give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from unspool.decode.target import TWIN
from unspool.matmul.tables import int8_unit, levels, why_no_entries
from unspool.spec.code import Code
from unspool.spec.format import Format

#: path -> its number in the C++ library
PATHS = {
    "panel-portable": 0,
    "panel-avx2": 1,
    "look-up-avx2": 2,
    "look-up-avx512": 3,
    "look-up-avx512-twin": 4,
}

LOOK_UP_ROWS = 1
"""Rows of activations up to which looking up anew for each is quicker than decoding into the cache.

AVX2, 2048 x 4096, one thread, one and two rows: t2-e2m1 2.6 and 4.0 ms against 5.5 and 4.5 ms,
t3-e2m3 3.1 and 6.2 against 4.8 and 5.6, mxfp4 2.9 and 5.9 against 4.0 and 4.7.
"""

LOOK_UP_BITS = 7
"""VPERMI2B picks one of 128 bytes."""

LOOK_UP_STRIDES = ((1,), (1, 1), (1, 2), (1, 3), (1, 4), (2,), (3,), (4,))
"""Strides of the planes that the look-up kernel was compiled for."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A path and the reason for it."""

    path: str
    why: str


def choose(fmt: Format, m: int, target: str) -> Choice:
    """The kernel for `m` rows of activations on a target of `decode.target`."""
    if target == "numpy":
        return Choice(path="numpy", why="no compiled library in use")
    untabulated = why_no_entries(fmt.code)
    if untabulated:
        return Choice(path="numpy", why=untabulated)
    if target == "portable":
        return Choice(path="panel-portable", why="the only kernel of target portable")
    panel = "panel-portable" if target == TWIN else "panel-avx2"
    reason = f"{m} rows share a decode" if m > LOOK_UP_ROWS else why_no_look_up(fmt)
    if reason:
        return Choice(path=panel, why=f"not the look-up kernel: {reason}")
    return Choice(path=f"look-up-{target}", why="one row, and a table that fits registers")


def why_no_look_up(fmt: Format) -> str:
    """Why the look-up kernel does not fit a format; empty where it does."""
    code = fmt.code
    checks = (
        (not code.program.parameters, "the table is a parameter"),
        (code.lanes <= 2 and code.tile == (8, 8 * code.lanes), f"a tile of {code.tile}"),
        (code.state_bits <= LOOK_UP_BITS, f"{1 << code.state_bits} table entries, not 128"),
        (_one_ring(code), "planes that are not a 64-bit ring with plain bits beside it"),
        (fmt.scale.block is None or fmt.scale.block % 16 == 0, "blocks not of whole 16 columns"),
    )
    for holds, otherwise in checks:
        if not holds:
            return otherwise
    table = levels(code)
    if table is None or int8_unit(table.table) is None:
        return "values that are not int8 times a power of two"
    return ""


def _one_ring(code: Code) -> bool:
    strides = tuple(plane.stride for plane in code.planes)
    first, *others = code.planes
    plain = all(plane.memory == 0 for plane in others)
    return strides in LOOK_UP_STRIDES and plain and (first.stride == 1 or first.memory == 0)
