"""`unspool count`: instructions per weight of a format's decoder, from a GPU's machine code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli.loops import count_loops, print_loops, products
from unspool.cli.terminal import AsJson, Quiet, print_json, print_table, progress
from unspool.errors import DeclarationError

if TYPE_CHECKING:
    from unspool.decode.machine import Machine, Slot
    from unspool.perf.count import Counted
    from unspool.spec.format import Format

COLUMNS = (
    "format", "target", "operand", "lowering",
    "ALU", "FMA", "LDS", "CVT", "other", "total", "registers", "spills",
)  # fmt: skip


TOKENS, AUTO = 16, "auto"


def count(
    formats: Annotated[
        list[str] | None, typer.Argument(metavar="[FORMAT]...", help="Formats to count.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="sm80, sm89, sm90, sm100, sm120; several at once.")
    ] = None,
    operand: Annotated[str | None, typer.Option(help="Only this operand: e4m3, e2m1, ...")] = None,
    container: Annotated[
        str | None, typer.Option(help="packed or bytes: how operands sit in a register.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Count the whole catalog on all targets and record it.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--record", help="Replace what is recorded of these formats.")
    ] = False,
    loop: Annotated[
        bool, typer.Option("--loop", help="Count the whole main loop of the fused product instead.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="With --loop: rows of activations.")] = TOKENS,
    activations: Annotated[
        str, typer.Option(help="With --loop: auto, float16, fp8, fp8x2, fp8x3, fp4, int8.")
    ] = AUTO,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Count a decoder's machine instructions per weight, by pipe; no GPU is needed.

    From the stored words of a ring in registers to operands in registers: compiled, disassembled,
    and counted as the difference of three rings and one. Needs the extra `cuda`.
    """
    from unspool.decode.machine import MACHINES, machine
    from unspool.spec.catalog import FORMATS

    if bool(formats) == every:
        raise DeclarationError("nothing to count", allowed="FORMAT... or --all")
    multiplied = tokens != TOKENS or activations != AUTO
    _check_together(write, loop, every or write, bool(operand or container), multiplied)
    names = [*FORMATS] if every else [*(formats or ())]
    asked = target if target and not every else None
    machines = [machine(name) for name in asked or MACHINES]
    if loop:
        made = products(names, machines, activations, all_of_them=asked is not None)
        print_loops(count_loops(made, tokens, quiet), json)
    else:
        machines = machines if asked else _able(machines, operand, container)
        _report(_count(names, machines, (operand, container), quiet), every, write, json)


def _check_together(
    write: bool, loop: bool, recorded: bool, narrowed: bool, multiplied: bool
) -> None:
    if multiplied and not loop:
        raise DeclarationError(
            "a decoder has no activations", where="--tokens, --activations", allowed="--loop"
        )
    if write and narrowed:
        raise DeclarationError("a record is of all operands", where="--record")
    if loop and (recorded or narrowed):
        raise DeclarationError(
            "a main loop has one operand and no record", where="--loop", allowed="FORMAT, --target"
        )


def _able(machines: list[Machine], operand: str | None, container: str | None) -> list[Machine]:
    """The machines with such an operand; all where none has, so that the first is told of."""
    return [each for each in machines if _slots(each, operand, container)] or machines


def _slots(target: Machine, operand: str | None, container: str | None) -> list[Slot]:
    return [
        slot
        for slot in target.slots
        if operand in (None, slot.operand.name.lower()) and container in (None, slot.container)
    ]


def _report(counted: list[Counted], every: bool, write: bool, json: bool) -> None:
    """Records what was counted where that is asked for, and prints it."""
    from unspool.perf.record import STATUS, flat, save, update
    from unspool.perf.toolchain import toolchain

    version = toolchain().version
    if every:
        save(counted, version)
    elif write:
        update(counted, version)
    if json:
        rows = [flat(entry) for entry in counted]
        print_json({"status": STATUS, "compiler": version, "counts": rows})
    else:
        print_table(f"Instructions per weight ({STATUS})", COLUMNS, map(_cells, counted), left=4)


def _count(
    names: list[str], machines: list[Machine], only: tuple[str | None, str | None], quiet: bool
) -> list[Counted]:
    from unspool.perf.count import count_format
    from unspool.perf.toolchain import toolchain
    from unspool.spec.catalog import parse

    tools, found = toolchain(), []
    formats = [parse(name) for name in names]
    with progress("counting", quiet=quiet) as advance:
        for done, fmt in enumerate(formats):
            for place, target in enumerate(machines):
                step = done * len(machines) + place
                advance(step, len(formats) * len(machines), f"{fmt.name} {target.name}")
                found += count_format(fmt, target, tools, _wanted(fmt, target, *only))
    return found


def _wanted(
    fmt: Format, target: Machine, operand: str | None, container: str | None
) -> list[Slot] | None:
    """The slots that the options ask for and that hold the values, or one that tells why none does;
    None: no option asks.
    """
    from unspool.decode.lower import why_not

    if operand is None and container is None:
        return None
    fits = _slots(target, operand, container)
    if not fits:
        raise DeclarationError(
            "the target has no such operand",
            where=target.name,
            found=" ".join(part for part in (operand, container) if part),
            allowed=", ".join(map(str, target.slots)),
        )
    return [slot for slot in fits if not why_not(fmt.code, slot, target)] or fits[:1]


def _cells(entry: Counted) -> tuple[str, ...]:
    from unspool.perf.record import flat

    row: dict[str, Any] = flat(entry)
    holder = row["operand"] + (" in bytes" if row["container"] == "bytes" else "")
    scale = " with block scale" if entry.block_scale else ""
    figures = (f"{row[pipe]:.3f}" for pipe in ("alu", "fma", "lds", "cvt", "other", "total"))
    return (
        row["format"], row["target"], holder, row["lowering"] + scale, *figures,
        str(row["registers"]), ", ".join(row["traps"]) or str(row["spills"]),
    )  # fmt: skip
