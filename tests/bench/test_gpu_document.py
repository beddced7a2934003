"""docs/gpu.md says what the program does."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")


def cells(column: int) -> set[str]:
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return {row[column].strip("`") for row in rows if len(row) > column}


def test_stages_and_their_shares_are_on_the_page():
    from gpu import benchmark, conformance, correctness, probe, sanitizer, search

    stages = [
        conformance.STAGE, correctness.stage(()), search.STAGE, sanitizer.STAGE, probe.STAGE,
        benchmark.stage(()),
    ]  # fmt: skip
    for stage in stages:
        (line,) = re.findall(rf"^\| `{stage.name}` \|.*$", PAGE, re.MULTILINE)
        assert line.endswith(f"| {stage.seconds} s |")


def test_exit_codes_are_on_the_page():
    from gpu import run

    every = run.ALL_RIGHT, run.SOMETHING_FAILED, run.WRONG, run.NO_GPU, run.NO_TIME
    assert set(map(str, every)) <= cells(0)


def test_how_many_formats_multiply_is_on_the_page_and_in_readme():
    from gpu.ours import FORMATS_OF_OURS

    number = len(set(FORMATS_OF_OURS))
    assert f"of {number} formats" in PAGE
    assert f"with {number} of them" in (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def test_statuses_rows_and_peers_are_on_the_page():
    from gpu.entrants import PEERS
    from gpu.stage import STATUSES

    assert all(f"`{status}`" in PAGE for status in STATUSES)
    for peer in PEERS:
        family, kind, *_ = peer.name.split()
        assert re.search(rf"^\| {family}.*\b{kind}\b", PAGE, re.MULTILINE), peer.name


def test_instructions_and_capabilities_are_on_the_page():
    from gpu.probe_source import PROBES

    from unspool.matmul.cuda.device import _NAMED

    assert all(name.split(".")[0] in PAGE for name in PROBES)
    assert all(f"{major}.{minor}" in PAGE for major, minor in _NAMED)
