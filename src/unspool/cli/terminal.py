"""What every verb shows and how: tables on stdout, progress and errors on stderr, JSON alone."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from unspool.cli import launch
from unspool.model.progress import Progress

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]

PIPE_COLUMNS = 200
"""Width of a table that goes to a file or a pipe: no cell is cut."""


NAME_WIDTH = 20
"""Characters of a layer's name beside a bar, the last ones, which tell layers apart."""


def say(text: str) -> None:
    """One line on stderr; of several processes the first alone speaks."""
    if launch.speaks():
        print(text, file=sys.stderr, flush=True)


def print_json(data: object) -> None:
    """One JSON document on stdout. Infinite and undefined numbers, which JSON lacks, are null."""
    print(json.dumps(plain(data), indent=2, allow_nan=False))


def plain(data: object) -> Any:
    """The same data in types that JSON has."""
    match data:
        case None | bool() | int() | str():
            return data
        case float():
            return data if math.isfinite(data) else None
        case Mapping():
            return {str(key): plain(value) for key, value in data.items()}
        case Iterable():
            return [plain(value) for value in data]
    return str(data)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1
) -> None:
    """A table on stdout: `left` columns of text, the others numbers set to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        side = "left" if place < left else "right"
        table.add_column(Text(column), justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Progress]:
    """A bar on stderr with the time left; nothing where stderr is no terminal, or when quiet."""
    if quiet or not sys.stderr.isatty() or not launch.speaks():
        yield lambda done, total, what: None
        return
    from rich import progress as bars
    from rich.console import Console

    shown = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=16),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[what]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with shown as bar:
        task = bar.add_task(title, total=None, what="")
        yield lambda done, total, what: bar.update(
            task, completed=done, total=total, what=what[-NAME_WIDTH:]
        )


def byte_count(count: int) -> str:
    """A number of bytes to three digits, decimal units: `4.21 MB`."""
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    decimals = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{decimals}f} {unit}"
