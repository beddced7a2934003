"""Which kernel multiplies: a pure function of format, batch and target, with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.matmul.tables import reads_parameter_directly
from unspool.spec.format import Format

PANEL = 512
"""Columns decoded at a time (kPanel in tile.hpp)."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The path that runs, and why it is this one."""

    path: str
    why: str


def choose(fmt: Format, target: str) -> Choice:
    """The path of a format's products on a target: the target itself, or a slower one."""
    if target == "numpy":
        return Choice(path="numpy", why="the compiled library is not in use")
    refused = _refused(fmt)
    if refused:
        return Choice(path="numpy", why=refused)
    return Choice(path=target, why="the tabulated program")


def _refused(fmt: Format) -> str:
    """Why the compiled kernels cannot hold a format; empty where they can."""
    code, block = fmt.code, fmt.scale.block
    rows, columns = code.tile
    if rows != 8 or columns % 8 or PANEL % columns:
        return f"tiles of {rows} x {columns}; kernels hold 8 rows and 8 to {PANEL} columns"
    if block is not None and (block % 8 or (block % PANEL and PANEL % block)):
        return f"scales per {block} columns; kernels hold 8 times a power of two"
    if len(code.planes) > 4:
        return f"{len(code.planes)} planes; kernels hold 4"
    if code.program.parameters and not reads_parameter_directly(code):
        return "a program that changes what it reads of a stored table"
    return ""
