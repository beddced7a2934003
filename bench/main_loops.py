"""Main loops of the GPU kernels, counted: `python bench/main_loops.py [--json [FILE]]`.

What docs/kernels.md says that loops take beside decoding, per weight: `unspool count --loop` of
each command below. Compiled, counted, simulated; not run on a GPU. Figures of the machine code,
whatever the machine; some 200 kernels, a second and more each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from timing import facts, parser, write

ROWS = "m2-e4m3-quick m2-e4m3 m2-e2m1 t2-e2m1 s2-e4m3 s3-e4m3 m3-e4m3"
INTEGERS = "v1.5-e2m1 s2-e4m3 s3-e4m3 t2-e2m1 t3-e2m3 m2-e2m1 int4 mxfp4"
BLOCKS = "mxfp4 mxfp6-e2m3 mxfp8 int4 lut-b"

LOOPS: tuple[tuple[str, str, str], ...] = (
    # formats, targets, other options
    (f"{ROWS} mxfp4 int4", "sm90 sm100 sm120", "--activations fp8"),
    (ROWS, "sm90 sm100 sm120", "--activations fp8x2"),
    (ROWS, "sm90 sm100 sm120", "--activations fp8x2 --tokens 8"),
    ("x2-e4m3 x2-e4m3-finest x3-e4m3 s4-e4m3 t3.5-e2m3 fp8-e4m3", "sm90 sm100 sm120",
     "--activations fp8"),
    ("v1.5-e2m1 m2-e2m1 m3-e2m1 t2-e2m1 nvfp4 mxfp4", "sm100 sm120", "--activations fp4"),
    (INTEGERS, "sm80 sm89 sm90 sm100 sm120", "--activations int8"),
    (INTEGERS, "sm80", "--activations float16"),
    (BLOCKS, "sm89 sm90 sm100 sm120", "--activations fp8"),
    (BLOCKS, "sm89 sm90 sm120", "--activations fp8 --tokens 8"),
    ("mxfp4 mxfp6-e2m3 mxfp6-e3m2 mxfp8", "sm100 sm120", "--activations fp8x2"),
    ("nvfp4 nf4 mxfp4 int4 lut-b", "sm80 sm90 sm100", "--activations float16"),
    ("nvfp4 nf4 mxfp4 int4", "sm80 sm90", "--activations float16 --tokens 8"),
)  # fmt: skip


def command(formats: str, targets: str, options: str) -> list[str]:
    """The command line of some loops."""
    each = [word for target in targets.split() for word in ("--target", target)]
    return ["unspool", "count", *formats.split(), *each, "--loop", *options.split(), "--json"]


def counted(words: list[str]) -> dict[str, Any]:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", *words, "-q"], check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Prints what each loop takes beside decoding; with --json writes all of it."""
    chosen = parser(__doc__, "main-loops.json").parse_args()
    about, rows = facts(), []
    for loops in LOOPS:
        words = command(*loops)
        found = counted(words)
        for row in found.pop("loops"):
            rows.append({"command": " ".join(words), **row})
            case = (row[name] for name in ("format", "target", "activations", "tokens"))
            print(*case, f"{row['total']:.3f}, beside decoding {row['beside']:.3f}", flush=True)
        about |= found
    write(chosen.json, about, rows)


if __name__ == "__main__":
    main()
