"""Formats in files: `unspool explore --save FILE` writes one, and its path stands for a name.

A file holds what a checkpoint holds of a format, the whole declaration. Nothing in it is run: a
program is integers and names that were checked, and no name of it reaches generated source.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from unspool.errors import DeclarationError
from unspool.spec.code import TABULATED_BITS
from unspool.spec.format import Format

SUFFIX = ".json"
MOST_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read_format(path: Path) -> Format:
    """The format of a file; DeclarationError says what is wrong with it."""
    where = str(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DeclarationError("a format's file is too large", where=where, allowed=MOST_BYTES)
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeclarationError(
            "no such format", where=where, found=error.strerror, allowed="unspool formats lists all"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DeclarationError("not a format's file", where=where, found=str(error)) from error
    if not isinstance(data, dict):
        raise DeclarationError("not a format's file", where=where, found=type(data).__name__)
    source = data.get("source", "")
    if not isinstance(source, str):
        raise DeclarationError("a format's source is a line of text", where=where,
                               found=type(source).__name__)  # fmt: skip
    fmt = replace(Format.from_json(data), source=source)
    if not isinstance(fmt.name, str) or not _NAME.fullmatch(fmt.name):
        raise DeclarationError("a format's name is of letters, digits, . _ -", where=where,
                               found=str(fmt.name)[:80])  # fmt: skip
    if fmt.code.state_bits > TABULATED_BITS:
        raise DeclarationError("a code has too many states", where=where,
                               found=f"2^{fmt.code.state_bits}",
                               allowed=f"2^{TABULATED_BITS}")  # fmt: skip
    return fmt


def write_format(fmt: Format, path: Path) -> None:
    """Writes the declaration and its source; raises DeclarationError where that fails."""
    text = json.dumps({**fmt.to_json(), "source": fmt.source}, separators=(",", ":")) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DeclarationError(
            "the format cannot be written", where=str(path), found=error.strerror
        ) from error
