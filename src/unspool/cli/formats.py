"""`unspool formats`: the catalog, its measured distortion, and one format in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli.terminal import AsJson, Quiet, print_json, print_table, progress

if TYPE_CHECKING:
    from unspool.spec.format import Format

app = typer.Typer(help="List the formats of the catalog; `formats show NAME` explains one.")

COLUMNS = (
    "name", "operand", "stored beside the codes", "rotation",
    "bits/weight", "Gaussian MSE", "over the bound",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def formats(
    context: typer.Context,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure every distortion anew and record it.")
    ] = False,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """List the formats: bits per weight at k = 4096, all included, and error on a unit Gaussian."""
    if context.invoked_subcommand is not None:
        return
    from unspool.spec.catalog import FORMATS

    if measure:
        _measure(list(FORMATS.values()), quiet)
    rows = [_row(fmt) for fmt in FORMATS.values()]
    if json:
        print_json(rows)
    else:
        print_table("Formats", COLUMNS, map(_cells, rows), left=4)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ENTRY[:SCALE][:ROTATION]")],
    json: AsJson = False,
) -> None:
    """Explain one format: planes, tile, program, bits, operand, scale, rotation, distortion."""
    from unspool.cli.picture import describe
    from unspool.evaluate.gaussian import distortion
    from unspool.spec.catalog import parse

    fmt = parse(name)
    if json:
        print_json({**_row(fmt), "declaration": fmt.to_json()})
    else:
        print(describe(fmt, distortion(fmt).gaussian_mse))


def _measure(every: list[Format], quiet: bool) -> None:
    from unspool.evaluate.gaussian import Distortion, measure_all

    with progress("measuring", quiet=quiet) as advance:
        done: list[str] = []

        def show_next(measured: Distortion) -> None:
            done.append(measured.format)
            advance(len(done), len(every), measured.format)

        advance(0, len(every), "")
        measure_all(every, show_next)


def _row(fmt: Format) -> dict[str, Any]:
    """What is known of a format, measured where no figure is recorded for its content hash."""
    from unspool.evaluate.gaussian import distortion

    code = fmt.code
    return {
        "name": fmt.name,
        "operand": code.operand.name,
        "bits_per_weight": fmt.bits_per_weight(),
        "gaussian_mse": distortion(fmt).gaussian_mse,
        "parameters": fmt.overheads,
        "scale": fmt.scale.name,
        "rotation": fmt.rotation.name,
        "tile": list(code.tile),
        "lanes": code.lanes,
        "planes": [{"window": plane.window, "stride": plane.stride} for plane in code.planes],
        "content_hash": fmt.content_hash,
        "source": fmt.source,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    bits, mse = row["bits_per_weight"], row["gaussian_mse"]
    return (
        row["name"],
        row["operand"],
        "; ".join(row["parameters"].values()),
        row["rotation"],
        f"{bits:.4f}",
        f"{mse:.4g}",
        f"{mse * 4**bits:.2f} x",
    )
