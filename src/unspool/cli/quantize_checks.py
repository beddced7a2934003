"""What options of `unspool quantize` go together, and what the model card says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unspool.cli import launch
from unspool.cli.quantize_options import PassType
from unspool.errors import CheckpointError


def check_together(
    calibration: str | None,
    importance: bool,
    tune: int,
    tune_blocks: int,
    work: Path | None,
    resume: bool,
    head: str | None,
    dry_run: bool,
    device: str | None,
) -> None:
    """Raises CheckpointError for options that do not go together, ModelError for a device that is
    not there."""
    needing = {"--tune": tune, "--tune-blocks": tune_blocks, "--importance": importance}
    where = next((option for option, given in needing.items() if given), "")
    if calibration is None and where:
        what = "importance" if where == "--importance" else "tuning"
        raise CheckpointError(f"{what} needs a text", where=where, allowed="--calibration FILE")
    if resume and work is None:
        raise CheckpointError("nothing to go on with", where="--resume", allowed="--work DIR")
    found = "--tune" if tune else "--head" if head is not None else ""
    if work is not None and found:
        raise CheckpointError("--work keeps blocks alone", found=found, allowed="one of the two")
    if launch.several() and dry_run:
        raise CheckpointError("an estimate is of one process", where="--dry-run")
    if launch.several() and found:
        raise CheckpointError("several processes divide blocks alone", found=found)
    if device is not None:
        if calibration is not None and not found:
            raise CheckpointError(
                "calibration runs on the CPU", where="--device", allowed="with --tune or --head"
            )
        _check_device(launch.device_each(device))


def _check_device(device: str | None) -> None:
    from unspool.model.device_search import available

    available(device or "cpu")


def how_hard(passes: int | None, threads: int | None, device: str | None) -> dict[str, Any]:
    """How much is done, and by what: this process's share of cores and its device."""
    threads, device = launch.threads_each(threads), launch.device_each(device)
    return {"passes": passes, "threads": threads, "device": device}


def how_made(tokens: int, importance: bool, tune: int, tune_blocks: int) -> str:
    """A sentence for the model card; "" without calibration."""
    weighed = ", each weighed by the squared gradients of the model's loss" if importance else ""
    blocks = f"; scales of each block tuned in {tune_blocks} steps" if tune_blocks else ""
    tuned = f"; scales and norms tuned in {tune} steps" if tune else ""
    return f"Calibrated on {tokens:,} tokens of a text{weighed}{blocks}{tuned}." if tokens else ""


def how_calibrated(dtype: PassType, importance: bool, tune_blocks: int) -> dict[str, Any]:
    """Those of the options that calibration has beside its text, as a run's settings name them."""
    return {
        "importance": importance,
        "calibration_dtype": dtype.value,
        "tune_blocks": tune_blocks,
    }
