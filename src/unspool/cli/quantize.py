"""`unspool quantize`: a model in, a few-bit checkpoint out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspool import __version__
from unspool.cli import launch
from unspool.cli.bundled import ModelPath, resolve
from unspool.cli.inputs import byte_size, calibration_windows, model_files, parse_name
from unspool.cli.layer_rows import rows_of
from unspool.cli.quantize_checks import check_together, how_calibrated, how_hard, how_made
from unspool.cli.quantize_options import (
    TOKENS,
    Bits,
    CalibrationFile,
    CalibrationTokens,
    CalibrationType,
    Device,
    DryRun,
    Exclude,
    Fate,
    FormatName,
    Head,
    Importance,
    Include,
    Out,
    Overwrite,
    Passes,
    PassType,
    PlanFile,
    Resume,
    ShardSize,
    Threads,
    Tune,
    TuneBlocks,
    Unreached,
    Work,
)
from unspool.cli.sizes import Sizes
from unspool.cli.terminal import AsJson, Quiet, byte_count, print_json, print_table, progress
from unspool.errors import CheckpointError, DeclarationError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unspool.checkpoint.journal import Journal
    from unspool.model.coverage import Coverage
    from unspool.model.mixed import Mixed
    from unspool.spec.format import Format

COLUMNS = ("layer", "format", "n x k", "bits/weight", "bytes", "error")


def quantize(
    path: ModelPath,
    out: Out = None,
    format: FormatName = None,
    bits: Bits = None,
    plan_file: PlanFile = None,
    head: Head = None,
    include: Include = None,
    exclude: Exclude = None,
    calibration: CalibrationFile = None,
    calibration_tokens: CalibrationTokens = TOKENS,
    calibration_dtype: CalibrationType = PassType.FLOAT32,
    importance: Importance = False,
    unreached: Unreached = Fate.ERROR,
    tune: Tune = 0,
    tune_blocks: TuneBlocks = 0,
    work: Work = None,
    resume: Resume = False,
    passes: Passes = None,
    device: Device = None,
    threads: Threads = None,
    shard_size: ShardSize = "5GB",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Quantize a model's linear layers and write a checkpoint."""
    body, limit = chosen_format(format, bits, plan_file), byte_size(shard_size, "--shard-size")
    source, head, start = resolve(path), head and parse_name(head), time.perf_counter()
    asked = how_calibrated(passes, calibration_dtype, importance, unreached, tune_blocks)
    check_together(calibration, asked, tune, work, resume, head, dry_run, device)
    windows = calibration_windows(calibration, source, calibration_tokens)
    place = None if dry_run else _output(out, source, overwrite)
    found: dict[str, Any] = {"model": path, "format": body.name, "head": head, "dry_run": dry_run}
    found["calibration_tokens"] = tokens = 0 if windows is None else windows.numel()
    selection = {"include": include or (), "exclude": exclude or (), "head": head}
    effort = how_hard(threads, device) | asked
    made = how_made(tokens, asked, tune)
    saving = {"overwrite": overwrite, "max_shard_bytes": limit, "made": made}
    by_block = streamed(work, windows, tune, head)
    if place is None:
        found |= foretold(source, body, selection, windows, effort, by_block)
    elif by_block:
        journal = partial(open_journal, work, resume, source, body, windows, selection | asked)
        found |= stream(source, place, body, selection, effort, windows, journal, saving, quiet)
    else:
        found |= write(source, place, body, selection, effort, windows, saving, quiet, tune)
    found |= {"out": place, "device": device, **asked, "seconds": time.perf_counter() - start}
    print_json(found) if json else _show(found)


def chosen_format(name: str | None, bits: float | None, plan: Path | None) -> Format | Mixed:
    """The format of a name, the default one of a rate, or those of a plan; exactly one is given."""
    from unspool.model.mixed import read_plan
    from unspool.spec.catalog import DEFAULTS, parse

    if [name, bits, plan].count(None) != 2:
        raise DeclarationError("one of --format, --bits and --plan says how to quantize")
    if plan is not None:
        return read_plan(plan)
    if name is not None:
        return parse(name)
    if bits is None or bits not in DEFAULTS:
        rates = ", ".join(f"{rate:g}" for rate in DEFAULTS)
        allowed = f"{rates}; unspool allocate plans others"
        raise DeclarationError(
            "no default format for that rate", where="--bits", found=bits, allowed=allowed
        )
    return parse(DEFAULTS[bits])


def streamed(work: Path | None, windows: torch.Tensor | None, tune: int, head: str | None) -> bool:
    """Whether to go block by block from file to file; the other way holds the whole model."""
    asked = work is not None or launch.several()
    return asked or (windows is not None and not tune and head is None)


def open_journal(
    work: Path | None,
    resume: bool,
    source: str,
    fmt: Format | Mixed,
    windows: torch.Tensor | None,
    settings: dict[str, Any],
) -> Journal | None:
    """The journal in a work folder, if there is one; a run of anything else is refused there."""
    if work is None:
        return None
    from unspool.checkpoint.journal import Journal

    files = model_files(source)
    text = None if windows is None else hashlib.sha256(windows.numpy().tobytes()).hexdigest()[:16]
    asked = {**settings, "format": fmt.name, "declaration": fmt.content_hash, "files": files}
    return Journal(work, {**asked, "text": text, "version": __version__}, resume=resume)


def plan(source: str, fmt: Format | Mixed, selection: dict[str, Any]) -> dict[str, Any]:
    """The table of sizes, by calculation from the declarations."""
    from unspool.cli.sizes import sizes_of
    from unspool.model import selection as select
    from unspool.model.load import empty_model

    model = empty_model(source)
    before = sizes_of(model)
    chosen = select.plan(model, fmt, **selection)
    layers = [_planned(name, planned, model) for name, planned in chosen.items()]
    left_out = [vars(weight) for weight in select.fused_experts(model)]
    sizes = _planned_sizes(model, chosen, layers, before)
    return {"layers": layers, "left_out": left_out, **sizes.to_json()}


def foretold(
    source: str,
    fmt: Format | Mixed,
    selection: dict[str, Any],
    windows: torch.Tensor | None,
    effort: dict[str, Any],
    by_block: bool,
) -> dict[str, Any]:
    """The plan, with seconds and bytes of memory from rates measured now (`model.estimate`)."""
    from unspool.model import selection as select
    from unspool.model.estimate import estimate
    from unspool.model.load import empty_model, locate

    model = empty_model(source)
    chosen = select.plan(model, fmt, **selection)
    given = {n: value for n, value in effort.items() if value is not None and n != "unreached"}
    found = estimate(locate(source), model, chosen, windows, streamed=by_block, **given)
    return {**plan(source, fmt, selection), "estimate": found.to_json()}


def write(
    source: str,
    folder: Path,
    fmt: Format | Mixed,
    selection: dict[str, Any],
    effort: dict[str, Any],
    windows: torch.Tensor | None,
    saving: dict[str, Any],
    quiet: bool,
    tuning: int = 0,
) -> dict[str, Any]:
    """Quantizes the model of a folder or hub id and saves it; the table of layers and the sizes.

    Room for it is checked before the weights are read. An effort of None is the library's own.
    """
    import torch

    import unspool
    from unspool.checkpoint.write import check_room
    from unspool.cli.sizes import sizes_of
    from unspool.model.load import load_model, locate

    check_room(folder, plan(source, fmt, selection)["model_bytes"])
    model = load_model(source)
    given = {name: value for name, value in effort.items() if value is not None}
    given |= {"calibration": windows}
    given["calibration_dtype"] = getattr(torch, effort["calibration_dtype"])
    with progress(f"quantizing to {fmt.name}", quiet=quiet) as advance:
        report = unspool.quantize(model, fmt, progress=advance, **selection, **given)
    tuned = tuned_by(model, source, windows, tuning, effort["device"], quiet) if tuning else None
    unspool.save(model, folder, source=locate(source), **saving)
    layers = [vars(layer) for layer in report.layers]
    left_out = [vars(weight) for weight in report.left_out]
    done = {"layers": layers, "left_out": left_out, "tuned": tuned}
    return {**done, "experts": told(report.coverage), **sizes_of(model).to_json()}


def stream(
    source: str,
    folder: Path,
    fmt: Format | Mixed,
    selection: dict[str, Any],
    effort: dict[str, Any],
    windows: torch.Tensor | None,
    open_journal: Callable[[], Journal | None],
    saving: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    """Quantizes block by block from file to file; the table of layers and the sizes."""
    import torch

    from unspool.checkpoint.stream import quantize_folder
    from unspool.checkpoint.write import check_room
    from unspool.encode.ldlq import Calibration
    from unspool.model import selection as select
    from unspool.model.calibrate import Plan
    from unspool.model.coverage import Reach, coverage
    from unspool.model.device_search import search_on
    from unspool.model.load import empty_model, locate
    from unspool.model.processes import ALONE, joined

    planned = plan(source, fmt, selection)
    chosen = select.plan(empty_model(source), fmt, **selection)
    passes = {"passes": effort["passes"]} if effort["passes"] else {}
    steps = Plan(
        formats=chosen, how=Calibration(**passes), threads=effort["threads"],
        importance=effort["importance"], dtype=getattr(torch, effort["calibration_dtype"]),
        tune=effort["tune_blocks"], unreached=effort["unreached"],
    )  # fmt: skip
    together = joined() if launch.several() else nullcontext(ALONE)
    with together as processes, progress(f"quantizing to {fmt.name}", quiet=quiet) as advance:
        processes.told(lambda: check_room(folder, planned["model_bytes"]))
        journal = processes.agreed(lambda: open_journal() if processes.first else None)
        done = quantize_folder(
            locate(source), folder, steps, windows=windows, journal=journal,
            progress=advance, processes=processes, search=search_on(effort["device"]), **saving,
        )  # fmt: skip
    known = {o.name: {"relative_error": o.relative_error, "tokens": o.tokens} for o in done}
    layers = [{**layer, **known[layer["name"]]} for layer in planned["layers"]]
    reached = [
        Reach(name=o.name, columns=o.shape[1], tokens=o.tokens)
        for o in done
        if o.tokens is not None
    ]
    return {**planned, "layers": layers, "experts": told(coverage(reached))}


def told(found: Coverage | None) -> dict[str, Any] | None:
    """Tokens per expert, for JSON."""
    return None if found is None else vars(found)


def tuned_by(
    model: nn.Module,
    source: str,
    windows: torch.Tensor | None,
    steps: int,
    device: str | None,
    quiet: bool,
) -> dict[str, Any]:
    """Tunes the model in that many steps; the KL before and after on the calibration text."""
    from unspool.model.load import load_model
    from unspool.model.tune import Effort, tune

    with progress("tuning", quiet=quiet) as advance:
        found = tune(
            model, load_model(source), windows, effort=Effort(steps=steps), progress=advance,
            device=device or "cpu",
        )  # fmt: skip
    return vars(found)


def _output(out: Path | None, source: str, overwrite: bool) -> Path:
    """The checkpoint's folder, refused before any work if it cannot become one."""
    from unspool.checkpoint.write import check_output

    if out is None:
        raise CheckpointError("no output folder", allowed="-o FOLDER, or --dry-run")
    folder = check_output(out, overwrite=overwrite)
    model = Path(source)
    if model.is_dir() and model.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError("the output is the model itself, or contains it", where=str(out))
    return folder


def _planned(name: str, fmt: Format, model: nn.Module) -> dict[str, Any]:
    layer = model.get_submodule(name)
    n, k = layer.out_features, layer.in_features
    bits = fmt.stored_bits(n, k)
    return {
        "name": name,
        "format": fmt.name,
        "shape": (n, k),
        "weights": n * k,
        "bits_per_weight": bits / (n * k),
        "bytes": bits // 8,
        "relative_error": None,
    }


def _planned_sizes(
    model: nn.Module, chosen: dict[str, Format], layers: list[dict[str, Any]], before: Sizes
) -> Sizes:
    """What `sizes_of` will find: the chosen weights coded, all others as they are.

    A tied head stays as the embedding and gets a coded copy beside it.
    """
    owners = [model.get_submodule(name).weight for name in chosen]
    weights = sum(layer["weights"] for layer in layers)
    stored = sum(layer["bytes"] for layer in layers)
    embedding = model.get_input_embeddings().weight
    replaced = [weight for weight in owners if weight is not embedding]
    return Sizes(
        weights=weights,
        bytes=stored,
        model_weights=before.model_weights + weights - sum(w.numel() for w in replaced),
        model_bytes=before.model_bytes + stored - sum(w.nbytes for w in replaced),
    )


def _show(found: dict[str, Any]) -> None:
    title = f"{found['model']} to {found['format']}"
    print_table(title, COLUMNS, map(_cells, rows_of(found["layers"])), left=3)
    print(
        f"quantized layers: {found['bits_per_weight']:.4f} bits per weight, "
        f"{found['weights']:,} weights, {byte_count(found['bytes'])}"
    )
    print(
        f"whole model:      {found['model_bits_per_weight']:.4f} bits per weight, "
        f"{found['model_weights']:,} weights, {byte_count(found['model_bytes'])}"
    )
    if found["left_out"]:
        count, dense = len(found["left_out"]), sum(each["bytes"] for each in found["left_out"])
        why = found["left_out"][0]["why"]
        print(f"left as they are: {count} fused expert weights, {byte_count(dense)} ({why})")
    if found.get("experts"):
        from unspool.model.coverage import Coverage

        print(f"reach of the text: {Coverage(**found['experts'])}")
    if found["dry_run"]:
        guess, device = found["estimate"], found["device"]
        print(
            f"estimate:         {guess['seconds']:.3g} s on {guess['threads']} threads "
            f"{f'and {device} ' if device else ''}"
            f"({guess['encoding_seconds']:.3g} s encoding, {guess['passes_seconds']:.3g} s passes "
            f"of the text, {guess['importance_seconds']:.3g} s its importance, "
            f"{guess['tuning_seconds']:.3g} s tuning of blocks) beside start-up, "
            "reading and writing, from rates measured now; "
            f"{byte_count(guess['peak_bytes'])} of memory"
        )
        print("dry run: nothing was written")
    else:
        print(f"written to {found['out']} in {found['seconds']:.1f} s")


def _cells(layer: dict[str, Any]) -> tuple[str, ...]:
    error = layer["relative_error"]
    return (
        layer["name"],
        layer["format"],
        " x ".join(str(size) for size in layer["shape"]),
        f"{layer['bits_per_weight']:.4f}",
        f"{layer['bytes']:,}",
        "-" if error is None else f"{error:.3g}",
    )
