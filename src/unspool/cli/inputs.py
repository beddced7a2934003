"""What several verbs are given: texts, sizes, formats; refused before any work."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from unspool.cli.bundled import CALIBRATION, NAME, folder, read_text
from unspool.errors import CheckpointError, DeclarationError

if TYPE_CHECKING:
    import torch

UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
WINDOW = 512
"""Tokens per window of the calibration text."""


def model_files(source: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a model's files: what is made for one is not for another."""
    from unspool.model.load import locate
    from unspool.model.shards import shard_files

    stats = [(file.name, file.stat()) for file in shard_files(locate(source))]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def calibration_windows(file: str | None, source: str, tokens: int) -> torch.Tensor | None:
    """Windows of token ids `[count, tokens]` of a calibration text; None without one."""
    if file is None:
        return None
    from unspool.evaluate.perplexity import tokenize, windows
    from unspool.model.load import load_tokenizer

    path = folder() / CALIBRATION if file == NAME else Path(file)
    text = read_text(path)
    ids = tokenize(text, load_tokenizer(source))
    return windows(ids, min(WINDOW, tokens), tokens)


def parse_name(name: str) -> str:
    """A format's name or file as given, refused now and not after the model was read."""
    from unspool.spec.catalog import parse

    parse(name)
    return name


def check_place(file: Path | None) -> None:
    """Raises DeclarationError where a file cannot be written later, after long work."""
    if file is None:
        return
    refused = DeclarationError("no file can be written there", where=str(file))
    if file.is_dir():
        raise refused
    try:
        if file.exists():
            file.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise refused from error


def portable(name: str) -> str:
    """The same format from any folder: a file's path made absolute."""
    from unspool.spec.catalog.files import SUFFIX

    base, *parts = name.split(":")
    return ":".join((str(Path(base).resolve()), *parts)) if base.endswith(SUFFIX) else name


def byte_size(text: str, where: str) -> int:
    """Bytes of a size such as 5GB, 500MB or 2GiB; raises CheckpointError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match[2]) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise CheckpointError(
            "not a size", where=where, found=text, allowed="a number with kB, MB, GB, ..."
        )
    return int(float(match[1]) * unit)
