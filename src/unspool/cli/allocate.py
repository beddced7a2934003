"""`unspool allocate`: a format for every layer, the least loss within a number of bytes."""

from __future__ import annotations

import functools
import json as encode_json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool import __version__
from unspool.cli.bundled import ModelPath, resolve
from unspool.cli.inputs import byte_size, calibration_windows, check_place, model_files, portable
from unspool.cli.quantize_options import Exclude, Include, Threads
from unspool.cli.terminal import AsJson, Quiet, byte_count, print_json, print_table, progress
from unspool.errors import CheckpointError, DeclarationError

if TYPE_CHECKING:
    from unspool.explore.allocate import Budget, Group
    from unspool.explore.plans import Allocation
    from unspool.explore.times import Step

TOKENS = 16384
"""Calibration tokens by default: a loss is measured some ten times per group of layers."""

COLUMNS = ("layers", "format", "bytes", "us at least")

Time = Annotated[
    str | None,
    typer.Option(
        metavar="GPU:BATCH[=US]",
        help="Microseconds that a step's quantized layers may need at least (unspool bound); "
        "without a number those of the uniform format.",
    ),
]


def allocate(
    path: ModelPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="The plan's file.")],
    bits: Annotated[
        float | None, typer.Option("--bits", "-b", help="As many bytes as that rate: 1 to 4.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Bytes of the quantized layers: 60MB, 4GiB.")
    ] = None,
    time: Time = None,
    formats: Annotated[
        str | None, typer.Option(help="Formats to choose from, with commas between.")
    ] = None,
    calibration: Annotated[
        str, typer.Option(metavar="FILE", help="The text that losses are measured on.")
    ] = "demo",
    calibration_tokens: Annotated[int, typer.Option(min=2)] = TOKENS,
    rounds: Annotated[int, typer.Option(min=1, help="Measure, solve; then again around it.")] = 3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan at OUT.")] = False,
    include: Include = None,
    exclude: Exclude = None,
    threads: Threads = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Choose a format per layer: least KL on a calibration text within budgets of bytes and time.

    What was measured stays in OUT.measured, so that a run that was stopped goes on. The plan is for
    `unspool quantize --plan OUT`. The whole model is held in float32.
    """
    from unspool.explore.allocate import check_scipy

    check_scipy()
    _check_out(out, overwrite)
    _check_size(bits, size)
    step, microseconds = (None, None) if time is None else _step(time)
    names = _names(formats)
    source = resolve(path)
    groups = _groups(source, names, include or (), exclude or ())
    groups = groups if step is None else step.timed(groups)
    budget = _budget(groups, bits, size, step, microseconds)
    windows = calibration_windows(calibration, source, calibration_tokens)
    plan = _allocated(source, groups, budget, windows, out, rounds, threads, quiet)
    found = _document(plan, path, budget, step)
    _write(found, out)
    print_json(found) if json else _show(plan, found)


def _check_out(out: Path, overwrite: bool) -> None:
    check_place(out)
    if out.exists() and not overwrite:
        raise DeclarationError("a plan is there", where=str(out), allowed="another, --overwrite")


def _check_size(bits: float | None, size: str | None) -> None:
    if (bits is None) == (size is None):
        raise DeclarationError("one of --bits and --size says how large")
    if bits is not None:
        _check_rate(bits)
    if size is not None:
        byte_size(size, "--size")


def _write(found: dict[str, Any], out: Path) -> None:
    """The plan's file; raises CheckpointError."""
    try:
        out.write_text(encode_json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            "the plan cannot be written", where=str(out), found=error.strerror
        ) from error


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
    chosen = selection.selected(model, include, exclude)
    shapes = {name: model.get_submodule(name).weight.shape for name in chosen}
    layers = [Layer(name=name, shape=(shape[0], shape[1])) for name, shape in shapes.items()]
    return grouped(layers, names)


def _step(given: str) -> tuple[Step, float | None]:
    """GPU and tokens, and microseconds if there are any; raises DeclarationError."""
    from unspool.explore.times import Step
    from unspool.perf.device import device

    asked = re.fullmatch(r"([^:=]+):0*([1-9]\d*)(?:=(\d+(?:\.\d*)?))?", given.strip())
    if asked is None:
        raise DeclarationError(
            "not a budget of time", where="--time", found=given, allowed="h200:1, h200:16=120.5"
        )
    step = Step(device=device(asked[1]), tokens=int(asked[2]))
    return step, None if asked[3] is None else float(asked[3])


def _budget(
    groups: tuple[Group, ...],
    bits: float | None,
    size: str | None,
    step: Step | None,
    microseconds: float | None,
) -> Budget:
    """Bytes of the quantized layers and, with a step, nanoseconds of it."""
    from unspool.explore.allocate import BYTES, NANOSECONDS, TIME
    from unspool.explore.plans import start
    from unspool.spec.catalog import parse

    shapes = [shape for group in groups for shape in group.shapes]
    if size is not None:
        found = {BYTES: byte_size(size, "--size")}
    else:
        assert bits is not None
        found = {
            BYTES: _between(bits, lambda f: sum(parse(f).stored_bits(*s) // 8 for s in shapes))
        }
    if step is None:
        return found
    if microseconds is not None:
        return {**found, TIME: round(microseconds * NANOSECONDS / 1e6)}
    if bits is not None:
        of = functools.partial(_nanoseconds, step, shapes)
        # the format below may take longer than that above, and its plan has to stay possible
        time = max(_between(bits, of), of(_default_below(bits)))
    else:
        begin = start(groups, found)
        time = TIME.total([group.option(begin[group.name]) for group in groups])
    return {**found, TIME: time}


def _nanoseconds(step: Step, shapes: Sequence[tuple[int, int]], fmt: str) -> int:
    from unspool.explore.allocate import NANOSECONDS

    return round(step.seconds(fmt, shapes) * NANOSECONDS)


def _default_below(bits: float) -> str:
    """The default format of the largest rate that is not above."""
    from unspool.spec.catalog import DEFAULTS

    return DEFAULTS[max(rate for rate in DEFAULTS if rate <= bits)]


def _check_rate(bits: float) -> None:
    from unspool.spec.catalog import DEFAULTS

    rates = sorted(DEFAULTS)
    if not rates[0] <= bits <= rates[-1]:
        raise DeclarationError("no such rate", where="--bits", found=bits,
                               allowed=f"{rates[0]:g} to {rates[-1]:g}")  # fmt: skip


def _between(bits: float, of: Callable[[str], int]) -> int:
    """What uniform formats of a rate need; of one between two rates, on the line between."""
    from unspool.spec.catalog import DEFAULTS

    rates = sorted(DEFAULTS)
    low = max(rate for rate in rates if rate <= bits)
    high = min(rate for rate in rates if rate >= bits)
    ends = of(_default_below(bits)), of(DEFAULTS[high])
    share = 0.0 if low == high else (bits - low) / (high - low)
    return int(ends[0] + share * (ends[1] - ends[0]))


def _allocated(
    source: str,
    groups: tuple[Group, ...],
    budget: Budget,
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


def _document(plan: Allocation, path: str, budget: Budget, step: Step | None) -> dict[str, Any]:
    from unspool.explore.allocate import BYTES

    weights = sum(group.weights for group in plan.groups)
    return {
        "model": path,
        "budget": budget[BYTES],
        "bytes": plan.total(BYTES),
        "bits_per_weight": 8 * plan.total(BYTES) / weights,
        "time": None if step is None else _time(plan, budget, step),
        "loss": plan.loss,
        "losses": plan.losses,
        "price_per_byte": plan.prices[BYTES],
        "worth": [{**vars(each), "words": str(each)} for each in plan.worth],
        "formats": plan.layers(),
    }


def _time(plan: Allocation, budget: Budget, step: Step) -> dict[str, Any]:
    """The predicted time of a plan: microseconds, and what one more is worth."""
    from unspool.explore.allocate import TIME
    from unspool.perf.bound import STATUS

    return {
        "gpu": step.device.name,
        "batch": step.tokens,
        "status": STATUS,
        "budget_us": budget[TIME] / 1000,
        "us": plan.total(TIME) / 1000,
        "price_per_us": 1000 * plan.prices[TIME],
    }


def _worth(amount: str, price: float) -> str:
    """What the next units of a budget save; nothing where the plan leaves some of it."""
    saved = f"worth {-price:.2g} of it" if price else "worth nothing: that budget does not bind"
    return f"{amount} more is {saved}"


def _show(plan: Allocation, found: dict[str, Any]) -> None:
    chosen = [(group, group.option(plan.formats[group.name])) for group in plan.groups]
    rows = [
        (group.name, option.format, f"{option.bytes:,}", f"{1e6 * option.seconds:.3f}")
        for group, option in chosen
    ]
    shown = len(COLUMNS) if found["time"] else len(COLUMNS) - 1
    title = f"{found['model']} in {byte_count(found['budget'])}"
    print_table(title, COLUMNS[:shown], (row[:shown] for row in rows), left=2)
    print(
        f"{found['bits_per_weight']:.4f} bits per weight, {byte_count(found['bytes'])}; "
        f"KL on the calibration text {plan.loss:.5f}, of the start {plan.losses[0]:.5f}"
    )
    print(_worth("a kilobyte", 1000 * found["price_per_byte"]))
    if time := found["time"]:
        print(
            f"at least {time['us']:,.3f} us of {time['budget_us']:,.3f} us a step of "
            f"{time['batch']} tokens on {time['gpu']} ({time['status']}), launches among them; "
            + _worth("a nanosecond", time["price_per_us"] / 1000)
        )
    for each in plan.worth[:3]:
        print(each)
