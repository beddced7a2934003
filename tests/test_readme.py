"""README lists every format once, with the distortion that is recorded."""

from __future__ import annotations

import re
from pathlib import Path

from unspool.evaluate.gaussian import distortion
from unspool.spec.catalog import FORMATS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([^`]+)` \| [A-Z0-9]+ \| [0-9.]+ \| ([0-9.e-]+) \|", re.MULTILINE)


def test_every_format_has_one_row_with_its_distortion():
    rows = ROW.findall(README)
    assert [name for name, _ in rows] == list(FORMATS)
    for name, told in rows:
        assert told == f"{distortion(FORMATS[name]).gaussian_mse:.4g}", name
