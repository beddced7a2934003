"""A format for every layer by name: what `unspool allocate` writes and `quantize --plan` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unspool.errors import ModelError
from unspool.model.shards import read_json
from unspool.spec.catalog import parse
from unspool.spec.format import Format, digest


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Formats by the layers' names; `name` is what tables and errors call them together."""

    name: str
    formats: Mapping[str, Format]

    @property
    def content_hash(self) -> str:
        """16 hexadecimal digits of SHA-256 over layers and declarations, in any order."""
        return digest({layer: fmt.content_hash for layer, fmt in self.formats.items()})


def read_plan(path: Path) -> Mixed:
    """The formats of a plan file: its key `formats`, `{layer: name of a format}`.

    Raises ModelError for a file that is none, DeclarationError for a name that is no format.
    """
    formats = read_json(path, ModelError).get("formats")
    if not isinstance(formats, dict) or not formats:
        raise ModelError(
            "not a plan", where=str(path), allowed='{"formats": {layer: format}}, as unspool '
            "allocate writes it",
        )  # fmt: skip
    return Mixed(
        name=path.name, formats={layer: parse(str(name)) for layer, name in formats.items()}
    )
