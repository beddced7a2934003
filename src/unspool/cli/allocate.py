"""`unspool allocate`: a format for every layer, the least loss within a number of bytes."""

from __future__ import annotations

import json as encode_json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool import __version__
from unspool.cli.bundled import ModelPath, resolve
from unspool.cli.inputs import byte_size, calibration_windows, model_files, portable
from unspool.cli.quantize_options import Exclude, Include, Threads
from unspool.cli.terminal import AsJson, Quiet, byte_count, print_json, print_table, progress
from unspool.errors import CheckpointError, DeclarationError

if TYPE_CHECKING:
    from unspool.explore.allocate import Group
    from unspool.explore.plans import Allocation

TOKENS = 16384
"""Calibration tokens by default: a loss is measured some ten times per group of layers."""

COLUMNS = ("layers", "format", "bytes")


def allocate(
    path: ModelPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="The plan's file.")],
    bits: Annotated[
        float | None, typer.Option("--bits", "-b", help="As many bytes as that rate: 1 to 4.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Bytes of the quantized layers: 60MB, 4GiB.")
    ] = None,
    formats: Annotated[
        str | None, typer.Option(help="Formats to choose from, with commas between.")
    ] = None,
    calibration: Annotated[
        str, typer.Option(metavar="FILE", help="The text that losses are measured on.")
    ] = "demo",
    calibration_tokens: Annotated[int, typer.Option(min=2)] = TOKENS,
    rounds: Annotated[int, typer.Option(min=1, help="Measure, solve; then again around it.")] = 3,
    include: Include = None,
    exclude: Exclude = None,
    threads: Threads = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Choose a format per layer: least KL on a calibration text within a budget of bytes.

    What was measured stays in OUT.measured, so that a run that was stopped goes on. The plan is for
    `unspool quantize --plan OUT`. The whole model is held in float32.
    """
    from unspool.explore.allocate import check_scipy

    check_scipy()
    if (bits is None) == (size is None):
        raise DeclarationError("one of --bits and --size says how large")
    names = _names(formats)
    source = resolve(path)
    groups = _groups(source, names, include or (), exclude or ())
    budget = _budget(groups, bits, size)
    windows = calibration_windows(calibration, source, calibration_tokens)
    plan = _allocated(source, groups, budget, windows, out, rounds, threads, quiet)
    found = _document(plan, path, budget)
    try:
        out.write_text(encode_json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            "the plan cannot be written", where=str(out), found=error.strerror
        ) from error
    print_json(found) if json else _show(plan, found)


def _names(formats: str | None) -> tuple[str, ...]:
    from unspool.spec.catalog import DEFAULTS, parse

    names = DEFAULTS.values() if formats is None else map(portable, formats.split(","))
    found = tuple(dict.fromkeys(names))
    for name in found:
        parse(name)
    return found


def _groups(source: str, names: tuple[str, ...], include: Any, exclude: Any) -> tuple[Group, ...]:
    from unspool.explore.sensitivity import Layer, grouped
    from unspool.model import selection
    from unspool.model.load import empty_model

    model = empty_model(source)
    chosen = selection.plan(model, names[0], include=include, exclude=exclude)
    shapes = {name: model.get_submodule(name).weight.shape for name in chosen}
    layers = [Layer(name=name, shape=(shape[0], shape[1])) for name, shape in shapes.items()]
    return grouped(layers, names)


def _budget(groups: tuple[Group, ...], bits: float | None, size: str | None) -> int:
    """Bytes of the quantized layers. A rate between two uniform formats is on the line between."""
    if size is not None:
        return byte_size(size, "--size")
    from unspool.spec.catalog import DEFAULTS, parse

    assert bits is not None
    rates = sorted(DEFAULTS)
    if not rates[0] <= bits <= rates[-1]:
        raise DeclarationError("no such rate", where="--bits", found=bits,
                               allowed=f"{rates[0]:g} to {rates[-1]:g}")  # fmt: skip
    low = max(rate for rate in rates if rate <= bits)
    high = min(rate for rate in rates if rate >= bits)
    shapes = [shape for group in groups for shape in group.shapes]
    sizes = [sum(parse(DEFAULTS[r]).stored_bits(*s) // 8 for s in shapes) for r in (low, high)]
    share = 0.0 if low == high else (bits - low) / (high - low)
    return int(sizes[0] + share * (sizes[1] - sizes[0]))


def _allocated(
    source: str,
    groups: tuple[Group, ...],
    budget: int,
    windows: Any,
    out: Path,
    rounds: int,
    threads: int | None,
    quiet: bool,
) -> Allocation:
    from unspool.explore.plans import allocated
    from unspool.explore.sensitivity import Gauge, Measured
    from unspool.model.load import load_model
    from unspool.spec.catalog import parse

    settings = {
        "version": __version__,
        "files": model_files(source),
        "windows": windows.tolist(),
        "groups": [
            [group.name, [[o.format, parse(o.format).content_hash] for o in group.options]]
            for group in groups
        ],
    }
    measured = Measured(out.with_name(out.name + ".measured"), settings)
    with progress("measuring", quiet=quiet) as advance:
        gauge = Gauge(load_model(source), groups, windows, threads)
        return allocated(groups, budget, gauge, measured, rounds=rounds, progress=advance)


def _document(plan: Allocation, path: str, budget: int) -> dict[str, Any]:
    weights = sum(group.weights for group in plan.groups)
    return {
        "model": path,
        "budget": budget,
        "bytes": plan.bytes,
        "bits_per_weight": 8 * plan.bytes / weights,
        "loss": plan.loss,
        "losses": plan.losses,
        "price_per_byte": plan.price,
        "worth": [{**vars(each), "words": str(each)} for each in plan.worth],
        "formats": plan.layers(),
    }


def _show(plan: Allocation, found: dict[str, Any]) -> None:
    rows = [
        (group.name, plan.formats[group.name],
         f"{group.option(plan.formats[group.name]).bytes:,}") for group in plan.groups
    ]  # fmt: skip
    print_table(f"{found['model']} in {byte_count(found['budget'])}", COLUMNS, rows, left=2)
    print(
        f"{found['bits_per_weight']:.4f} bits per weight, {byte_count(plan.bytes)}; "
        f"KL on the calibration text {plan.loss:.5f}, of the start {plan.losses[0]:.5f}"
    )
    print(f"a kilobyte more is worth {-1000 * plan.price:.2g} of it")
    for each in plan.worth[:3]:
        print(each)
