"""Committed counts: `data/counts.json`, written by `unspool count --all`, checked by the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from unspool.errors import UnspoolError
from unspool.perf.count import Count, Counted

_FILE = resources.files("unspool") / "data" / "counts.json"

STATUS = "compiled, counted, simulated; not run on a GPU"


def update(counted: Sequence[Counted], compiler: str) -> None:
    """Replaces what is recorded of the counted formats and targets.

    Raises UnspoolError where the record is of another compiler: then all must be counted anew.
    """
    recorded, known = load()
    if known and recorded != compiler:
        raise UnspoolError(
            "the record is of another compiler", found=compiler, allowed=f"{recorded}, or --all"
        )
    anew = {(entry.format, entry.target) for entry in counted}
    kept = [entry for entry in known if (entry.format, entry.target) not in anew]
    save([*kept, *counted], compiler)


def save(counted: Sequence[Counted], compiler: str) -> None:
    """Rewrites the record, in the order of names."""
    document = {
        "status": STATUS,
        "unit": "machine instructions per weight",
        "compiler": compiler,
        "counts": [flat(entry) for entry in sorted(counted, key=lambda e: (e.format, e.target))],
    }
    rows = ",\n ".join(json.dumps(row) for row in document.pop("counts"))
    head = json.dumps(document, indent=1).removesuffix("\n}")
    with resources.as_file(_FILE) as path:
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(f'{head},\n "counts": [\n {rows}\n ]\n}}\n', encoding="utf-8")
        part.replace(path)


def load() -> tuple[str, list[Counted]]:
    """The compiler's version and the counts; nothing counted before `save` was called."""
    if not _FILE.is_file():
        return "", []
    document = json.loads(_FILE.read_text(encoding="utf-8"))
    return document["compiler"], [_counted(row) for row in document["counts"]]


def flat(entry: Counted) -> dict[str, Any]:
    """A count as one row: who, where, how, and the figures."""
    row = asdict(entry)
    figures = row.pop("count")
    return {**row, **figures, "traps": list(entry.count.traps)}


def _counted(row: dict[str, Any]) -> Counted:
    names = Count.__dataclass_fields__
    figures = {name: row.pop(name) for name in names}
    return Counted(**row, count=Count(**{**figures, "traps": tuple(figures["traps"])}))
