"""`unspool count --loop`: instructions per weight of a fused product's whole main loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from unspool.cli.terminal import print_json, print_table, progress
from unspool.errors import DeclarationError

if TYPE_CHECKING:
    from unspool.decode.machine import Machine
    from unspool.matmul.cuda.recipe import Recipe
    from unspool.perf.loop import LoopCount

COLUMNS = (
    "format", "target", "activations", "operand", "tokens", "columns", "total", "decode", "beside",
    "registers", "spills",
)  # fmt: skip


def products(
    names: Sequence[str], machines: Sequence[Machine], activations: str, *, all_of_them: bool
) -> list[Recipe]:
    """The products of all formats on all machines.

    Raises DeclarationError where one does not exist, or without `all_of_them` where a format has
    none at all.
    """
    from unspool.matmul.cuda.recipe import recipe
    from unspool.spec.catalog import parse

    made: list[Recipe] = []
    for name in names:
        refused = None
        before = len(made)
        for target in machines:
            try:
                made.append(recipe(parse(name), target, activations))
            except DeclarationError as error:
                refused = error
        if refused and (all_of_them or len(made) == before):
            raise refused
    return made


def count_loops(made: Sequence[Recipe], tokens: int, quiet: bool) -> list[LoopCount]:
    """The main loops of products."""
    from unspool.perf.loop import count_loop
    from unspool.perf.toolchain import toolchain

    tools, found = toolchain(), []
    with progress("counting", quiet=quiet) as advance:
        for done, each in enumerate(made):
            advance(done, len(made), f"{each.format.name} {each.machine.name}")
            found.append(count_loop(each, tokens, tools))
    return found


def print_loops(counted: Sequence[LoopCount], json: bool) -> None:
    """A table, or `{status, compiler, loops: [...]}`."""
    from unspool.perf.record import STATUS
    from unspool.perf.toolchain import toolchain

    if json:
        rows = [{**asdict(each), "beside": each.beside} for each in counted]
        print_json({"status": STATUS, "compiler": toolchain().version, "loops": rows})
        return
    title = f"Instructions per weight of main loops ({STATUS})"
    print_table(title, COLUMNS, map(_cells, counted), left=4)


def _cells(each: LoopCount) -> tuple[str, ...]:
    figures = (f"{value:.3f}" for value in (each.total, each.decode, each.beside))
    return (
        each.format, each.target, each.activations, each.kind, str(each.tokens), str(each.columns),
        *figures, str(each.registers), ", ".join(each.traps) or str(each.spills),
    )  # fmt: skip
