"""`unspool count --loop`: instructions per weight of a fused product's whole main loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from unspool.cli.terminal import print_json, print_table, progress

if TYPE_CHECKING:
    from unspool.decode.machine import Machine
    from unspool.perf.loop import LoopCount

COLUMNS = (
    "format", "target", "activations", "operand", "tokens", "columns", "total", "decode", "beside",
    "registers", "spills",
)  # fmt: skip


def count_loops(
    names: Sequence[str], machines: Sequence[Machine], activations: str, tokens: int, quiet: bool
) -> list[LoopCount]:
    """The main loops of all formats on all machines; DeclarationError where one has none."""
    from unspool.matmul.cuda.recipe import recipe
    from unspool.perf.loop import count_loop
    from unspool.perf.toolchain import toolchain
    from unspool.spec.catalog import parse

    tools, found = toolchain(), []
    made = [recipe(parse(name), target, activations) for name in names for target in machines]
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
