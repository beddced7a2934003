"""Codes that the explorer found, as the files that `unspool explore --save` writes: data/found.

Each is a row of a committed run, bench/results/explore-*.json, under a name of ours; its source is
the run's command, whose file names the commit: another one's draws are others. docs/findings.md
shows the fronts. `unspool formats show NAME` prints the
program: p and h are the low and the high word of a product, r what a step leaves, `word` the
operands side by side.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from unspool.spec.catalog.files import read_format
from unspool.spec.format import Format

RING = 64
"""Steps of a ring. With 32, walks through 256 nodes lose 0.5 % more to having to close."""

MOST_COLUMNS = 32
"""Columns of a tile. The four rings that a GPU's threads decode at a time are a step of a kernel;
wider ones leave a stage of memory with one step, and operands without a second buffer."""

FOLDER = Path(str(resources.files("unspool") / "data" / "found"))


def tile(lanes: int) -> tuple[int, int]:
    """The tile of a code with so many weights a step."""
    return 8, min(RING // 8 * lanes, MOST_COLUMNS)


def _by_rate(fmt: Format) -> tuple[float, str]:
    return fmt.code.bits_per_weight, fmt.name


FOUND = tuple(sorted(map(read_format, FOLDER.glob("*.json")), key=_by_rate))
