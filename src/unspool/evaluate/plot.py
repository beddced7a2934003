"""Quality over size as a picture; needs matplotlib, the extra `plot`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unspool.errors import EvaluationError


@dataclass(frozen=True, kw_only=True)
class Point:
    """One format: bits per weight with all overheads, and KL divergence in nats."""

    name: str
    bits_per_weight: float
    kl: float
    kl_stderr: float
    #: whether the code has trellis memory; the others are plain formats
    coded: bool


def check_matplotlib(path: Path | None = None) -> None:
    """Raises EvaluationError where matplotlib is missing, or does not write files of such a name.
    Call it before long work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EvaluationError("plots need matplotlib", allowed="pip install 'unspool[plot]'")
    if path is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise EvaluationError("no such kind of picture", found=str(path), allowed=sorted(kinds))


def plot_divergence(points: Sequence[Point], title: str, path: str | Path) -> None:
    """Writes a PNG: KL divergence over bits per weight, logarithmic, every format labelled.

    Points that agree exactly have no place on a logarithmic axis and are left out. Raises
    EvaluationError without matplotlib, or where the file cannot be written.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    shown = [point for point in points if point.kl > 0]
    for coded, marker, line, label in (
        (True, "o", "-", "coded: a trellis with memory"),
        (False, "s", "", "plain: each weight alone"),
    ):
        family = sorted((p for p in shown if p.coded is coded), key=lambda p: p.bits_per_weight)
        axes.errorbar(
            [p.bits_per_weight for p in family],
            [p.kl for p in family],
            yerr=[p.kl_stderr for p in family],
            marker=marker, linestyle=line, markersize=7, capsize=3, label=label,
        )  # fmt: skip
    for point in shown:
        axes.annotate(
            point.name, (point.bits_per_weight, point.kl), (8, 6), textcoords="offset points"
        )
    axes.set_yscale("log")
    axes.margins(x=0.12, y=0.12)
    axes.set_title(title)
    axes.set_xlabel("bits per weight, scales, tables and padding included")
    axes.set_ylabel("KL divergence from the original, nats per token")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise EvaluationError(
            "the plot cannot be written", where=str(path), found=error.strerror
        ) from error
