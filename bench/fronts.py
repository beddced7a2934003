"""The fronts of the explorer's committed runs as one picture: `python bench/fronts.py [FILE]`.

Reads results/explore-*-sm*.json, draws docs/fronts.png: error over the bound against
instructions per weight, found codes as circles, published ones as squares.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from timing import HERE

PICTURE = HERE.parent / "docs" / "fronts.png"

PANELS = ((1, 1.5, 2), (2.5, 3), (3.5, 4))
"""Rates that share a panel."""

NAMES = {"exl3-mul1": "QTIP, EXL3, {:g} bits", "Humming": "Humming, {:g} bits"}
"""What stands beside published codes; four of them are one group."""


def runs() -> dict[str, dict[str, Any]]:
    """What the files of GPU runs say, by name."""
    files = sorted((HERE / "results").glob("explore-*-sm*.json"))
    return {file.stem.removeprefix("explore-"): json.loads(file.read_text()) for file in files}


def draw(path: Path) -> None:
    """Writes the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    panels = FigureCanvasAgg(figure).figure.subplots(1, len(PANELS), sharey=True)
    shown: set[float] = set()
    for name, run in runs().items():
        asked = run["settings"]
        axes = next(a for a, rates in zip(panels, PANELS, strict=True) if asked["bits"] in rates)
        over = 4.0 ** asked["bits"]
        ours = sorted((r["total"], r["mse"] * over) for r in run["rows"] if r["found"])
        axes.plot(*zip(*ours, strict=True), "o-", markersize=4, label=name.replace("-", " "))
        others = [r for r in run["rows"] if not r["found"] and r["total"] is not None]
        others = [r for r in others if math.isfinite(r["total"])]
        if asked["bits"] not in shown and others:
            shown.add(asked["bits"])
            axes.plot([r["total"] for r in others], [r["mse"] * over for r in others], "ks", ms=4)
            for peer in ("exl3-mul1", "Humming"):
                for row in others:
                    if row["name"].startswith(peer):
                        text = NAMES[peer].format(asked["bits"])
                        axes.annotate(text, (row["total"], row["mse"] * over), (-6, 9), ha="center",
                                      fontsize="small", textcoords="offset points")  # fmt: skip
    for axes in panels:
        axes.set(xlabel="instructions per weight", ylim=(1.05, 1.95))
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="x-small")
    panels[0].set_ylabel("mean squared error over the rate-distortion bound")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE)
