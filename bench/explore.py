"""Runs of the explorer: codes that a search of so many minutes finds from a seed.

`python bench/explore.py [--json] [--only 2-e4m3 ...] [--jobs N]`. A run is `unspool explore`; its
rows go to results/explore-BITS-OPERAND-TARGET.json, its log of all scored codes is thrown away.
Those without a file there were not made yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from timing import HERE, facts, parser, write

RUNS: tuple[tuple[float, str, str, float, dict[str, float | str]], ...] = (
    # bits, operand, target, minutes, other options
    (2, "e4m3", "sm90", 14, {}),
    (3, "e4m3", "sm90", 12, {}),
    (2, "e4m3", "sm90", 8, {"within": 1.08}),
    (2, "e2m1", "sm120", 8, {"within": 0.64}),
    (1.5, "e2m1", "sm120", 8, {"lanes": 8, "within": 0.5}),
    (3, "e4m3", "sm90", 12, {"lanes": 4, "end": "tail", "within": 2.4}),
    (3, "e4m3", "sm90", 12, {"lanes": 4, "end": "tail", "within": 2.0, "seed": 1}),
    (3, "e4m3", "sm90", 9, {"lanes": 4, "end": "tail", "within": 2.0, "seed": 2}),
    (3, "e4m3", "sm90", 8, {"lanes": 4, "within": 1.2}),
    (4, "e4m3", "sm90", 12, {"lanes": 4, "end": "tail", "within": 1.62}),
    (4, "e4m3", "sm90", 12, {"lanes": 2, "end": "tail", "within": 2.9}),
    (2, "e4m3", "sm90", 8, {"memory": 10, "lanes": 4, "end": "table"}),
    (2, "e2m1", "sm120", 8, {}),
    (4, "e4m3", "sm90", 8, {}),
    (3.5, "e4m3", "sm90", 6, {}),
    (2, "e4m3", "sm90", 6, {"memory": 12, "lanes": 4, "end": "table"}),
    (2, "e2m1", "sm120", 6, {"lanes": 4, "end": "table"}),
    (3, "e4m3", "sm90", 8, {"lanes": 4, "end": "table"}),
    (4, "e4m3", "sm90", 6, {"lanes": 2, "end": "table"}),
    (1, "e2m1", "sm120", 5, {"memory": 10}),
    (2.5, "e4m3", "sm90", 6, {}),
    (1.5, "e2m1", "sm120", 6, {}),
    (2, "int8", "sm90", 6, {}),
    (2, "e4m3", "sm90", 10, {"seed": 1}),
    (2, "int8", "sm80", 6, {}),
    (2, "fp16", "sm80", 6, {}),
    (2, "e3m2", "sm120", 5, {}),
    (2, "int8", "avx512", 4, {}),
    (2, "e2m3", "avx512", 4, {}),
    (3, "int8", "avx512", 5, {}),
    (3, "e2m3", "avx512", 4, {}),
)

STATUS = {
    "avx512": "loops of the kernels compiled and counted; cycles are in loops.json",
    "": "compiled and counted, not run on a GPU",
}


def command(
    bits: float, operand: str, target: str, minutes: float, options: Mapping[str, float | str]
) -> list[str]:
    """The command line of a run."""
    words = ["unspool", "explore", "--bits", f"{bits:g}", "--operand", operand, "--target", target,
             "--minutes", f"{minutes:g}"]  # fmt: skip
    for name, value in ({"seed": 0} | dict(options)).items():
        words += [f"--{name}", str(value)]
    return [*words, "--json"]


def explored(words: list[str]) -> dict[str, Any]:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", *words, "-q"], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    for row in found["rows"]:
        if not row["found"]:
            row["code"] = None  # it stands in explore/published.py
    return found


def main() -> None:
    """Prints the fronts; with --json writes each to its file."""
    options = parser(__doc__, "explore")
    options.add_argument("--jobs", type=int, help="processes; default: one per core")
    options.add_argument("--minutes", type=float, help="for every run, instead of its own")
    chosen = options.parse_args()
    for bits, operand, target, minutes, options_of in RUNS:
        name = f"{bits:g}-{operand}-{target}"
        name += "".join(f"-{option}-{value}" for option, value in options_of.items())
        if chosen.only and not any(part in name for part in chosen.only):
            continue
        words = command(bits, operand, target, chosen.minutes or minutes, options_of)
        about = facts()
        found = explored([*words, *(["--jobs", str(chosen.jobs)] if chosen.jobs else [])])
        rows = found.pop("rows")
        status = STATUS.get(target, STATUS[""])
        path = HERE / "results" / f"explore-{name}.json" if chosen.json else None
        write(path, {**about, "command": " ".join(words), "status": status, **found}, rows)
        for row in rows:
            if row["found"]:
                print(name, f"{row['mse']:.5f} at {row['total']:.3f}", flush=True)


if __name__ == "__main__":
    main()
