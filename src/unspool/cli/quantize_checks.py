"""What options of `unspool quantize` go together, and what the model card says of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unspool.cli import launch
from unspool.cli.quantize_options import Fate, PassType
from unspool.errors import CheckpointError


def check_together(
    calibration: str | None,
    calibrating: Mapping[str, Any],
    tune: int,
    work: Path | None,
    resume: bool,
    head: str | None,
    dry_run: bool,
    device: str | None,
) -> None:
    """Raises CheckpointError for options that do not go together, ModelError for a device that is
    not there; `calibrating` is `how_calibrated`'s."""
    needing = {
        "--tune": tune,
        "--tune-blocks": calibrating["tune_blocks"],
        "--importance": calibrating["importance"],
        "--unreached": calibrating["unreached"] != Fate.ERROR,
    }
    where = next((option for option, given in needing.items() if given), "")
    if calibration is None and where:
        what = {"--importance": "importance", "--unreached": "reach"}.get(where, "tuning")
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


def how_hard(threads: int | None, device: str | None) -> dict[str, Any]:
    """By what it is done: this process's share of cores and its device."""
    return {"threads": launch.threads_each(threads), "device": launch.device_each(device)}


def how_made(tokens: int, calibrating: Mapping[str, Any], tune: int) -> str:
    """A sentence for the model card; "" without calibration."""
    steps, importance = calibrating["tune_blocks"], calibrating["importance"]
    weighed = ", each weighed by the squared gradients of the model's loss" if importance else ""
    blocks = f"; scales of each block tuned in {steps} steps" if steps else ""
    tuned = f"; scales and norms tuned in {tune} steps" if tune else ""
    return f"Calibrated on {tokens:,} tokens of a text{weighed}{blocks}{tuned}." if tokens else ""


def how_calibrated(
    passes: int | None, dtype: PassType, importance: bool, unreached: Fate, tune_blocks: int
) -> dict[str, Any]:
    """Those of the options that encoding and calibration have beside the text, as a run's settings
    name them."""
    return {
        "passes": passes,
        "importance": importance,
        "calibration_dtype": dtype.value,
        "unreached": unreached.value,
        "tune_blocks": tune_blocks,
    }
