"""Inner loops of the CPU kernels, counted: `python bench/loops.py [--json [FILE]] [--targets ...]`.

Instructions per 64 weights of the loop that decodes and multiplies few rows of activations, in what
g++ makes of it (`unspool.perf.strip_loop`): a figure of the machine code, whatever the machine.
Cycles per 64 weights with all data in the L1 are measured where the target runs (l1_cycles.py), and
with LLVM's llvm-mca installed (16 or newer) those that its models of processors predict stand
beside them: simulated, not run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

from l1_cycles import measured
from timing import facts, parser, write

from unspool.perf.strip_loop import COMPILER, TARGETS, StripCount, count_strip

#: shape of a code as C++ spells it -> the formats that have it
SHAPES = {
    "Table<6, 0, 1>": "t1-e2m1",
    "Table<4, 2, 2>": "t1.5-e2m1",
    "Table<5, 1, 1>": "t2-e2m1",
    "Table<6, 1, 1>": "found, 6 + 1 bits",
    "Table<7, 0, 1, 2>": "found, 7 bits",
    "Table<3, 4, 2>": "t2.5-e2m3",
    "Table<5, 2, 1>": "t3-e2m3",
    "Table<4, 3, 1>": "t4-e2m3",
    "Table<0, 4, 1>": "mxfp4 nvfp4 int4",
    "Multiplied": "m2-e2m1",
}
NOT_ON = {"avx2": ("Table<7, 0, 1, 2>",)}
"""Shapes that a target reads by their table."""

MODELS = {
    "avx512": ("znver4", "icelake-server", "sapphirerapids"),
    "avx2": ("znver3", "skylake", "alderlake"),
}
ITERATIONS = 200


def simulated(counted: StripCount, model: str) -> float | None:
    """Cycles per 64 weights by llvm-mca's model of a processor; None without it."""
    names = [*(f"llvm-mca-{version}" for version in range(22, 15, -1)), "llvm-mca"]
    tool = next(filter(None, map(shutil.which, names)), None)
    if tool is None:
        return None
    command = [tool, "-mtriple=x86_64", f"-mcpu={model}", f"-iterations={ITERATIONS}"]
    text = "\n".join(counted.loop) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    cycles = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(cycles[1]) / ITERATIONS * counted.of_line if cycles else None


def row(target: str, shape: str, m: int) -> dict[str, Any]:
    """Counts of one loop, and its cycles."""
    counted = count_strip(target, shape, m)
    cycles = {model: simulated(counted, model) for model in MODELS[target]}
    return {
        "target": target,
        "shape": shape,
        "formats": SHAPES[shape],
        "m": m,
        "instructions_per_64_weights": round(counted.instructions, 2),
        **(measured(target, shape, m) or {"cycles_measured": None}),
        "simulated_cycles_per_64_weights": {
            model: round(found, 2) for model, found in cycles.items() if found is not None
        },
    }


def main() -> None:
    """Prints the rows; with --json writes them too."""
    options = parser(__doc__, "loops.json")
    options.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    chosen = options.parse_args()
    if shutil.which(COMPILER) is None:
        sys.exit(f"{COMPILER} is needed to compile the kernels")
    about, rows = facts(), []
    for target in chosen.targets:
        for shape in SHAPES:
            if shape in NOT_ON.get(target, ()):
                continue
            for m in (1, 4) if target == "avx512" else (1, 2):
                rows.append(row(target, shape, m))
                print(_line(rows[-1]), flush=True)
    write(chosen.json, about, rows)


def _line(found: dict[str, Any]) -> str:
    models = found["simulated_cycles_per_64_weights"].items()
    cycles = ", ".join(f"{model} {number}" for model, number in models)
    run = found["cycles_measured"]
    return (
        f"{found['target']:7} {found['formats']:18} m {found['m']}  "
        f"{found['instructions_per_64_weights']:6.2f} instructions per 64 weights; "
        + (f"{run:.2f} cycles here; " if run is not None else "not run here; ")
        + f"simulated cycles: {cycles or 'llvm-mca is not installed'}"
    )


if __name__ == "__main__":
    main()
