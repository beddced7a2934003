"""The catalog: every shipped format, and the parser of names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from unspool.errors import DeclarationError
from unspool.spec.catalog.files import SUFFIX, read_format
from unspool.spec.catalog.found import FOUND
from unspool.spec.catalog.levels import LEVELS
from unspool.spec.catalog.multiply import MULTIPLY
from unspool.spec.catalog.plain import PLAIN
from unspool.spec.catalog.trellis import TRELLIS
from unspool.spec.format import Format
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

FORMATS: Mapping[str, Format] = {
    entry.name: entry for entry in (*PLAIN, *LEVELS, *TRELLIS, *MULTIPLY, *FOUND)
}

DEFAULTS: Mapping[float, str] = {
    1: "t1-e2m1",
    1.5: "t1.5-e2m1",
    2: "t2-e2m1",
    2.5: "t2.5-e2m3",
    3: "t3-e2m3",
    3.5: "t3.5-e2m3",
    4: "t4-e2m3",
}
"""The format to use for a rate in bits per weight: a table trellis, quick to encode and decode."""


def parse(name: str) -> Format:
    """The format of a name `ENTRY[:SCALE][:ROTATION]`; or DeclarationError with near names.

    An entry that ends in .json is the path of a format's file.
    """
    base, *parts = name.split(":")
    if base.endswith(SUFFIX):
        fmt = read_format(Path(base))
    elif base in FORMATS:
        fmt = FORMATS[base]
    else:
        near = difflib.get_close_matches(base, FORMATS, n=4, cutoff=0.3)
        raise DeclarationError(
            "no such format",
            found=name,
            allowed=f"{', '.join(near or FORMATS)} (unspool formats lists all)",
        )
    rotations = [part for part in parts if part == "raw" or part.startswith("h")]
    scales = [part for part in parts if part not in rotations]
    if len(scales) > 1 or len(rotations) > 1:
        raise DeclarationError("a part is said twice", where=name, allowed="ENTRY:SCALE:ROTATION")
    return fmt.vary(
        scale=Scale.parse(scales[0]) if scales else None,
        rotation=Rotation.parse(rotations[0]) if rotations else None,
    )
