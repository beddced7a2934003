"""Inner loops of the CPU kernels, counted: `python bench/loops.py [--json [FILE]] [--targets ...]`.

Compiles the strip kernel for few rows of activations to assembly with g++, finds the loop that
decodes and multiplies, and counts its instructions per 64 weights: a figure of the machine code,
whatever the machine. With LLVM's llvm-mca installed (16 or newer) it also gives the cycles per 64
weights that its models of processors predict, with all data in the L1: simulated, not run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timing import facts, parser, write

SOURCE = Path(__file__).parent.parent / "src" / "unspool"
CPU = "matmul/cpu"

#: shape of a code as strip_codes.hpp spells it -> the formats that have it
SHAPES = {
    "Table<6, 0, 1>": "t1-e2m1",
    "Table<4, 2, 2>": "t1.5-e2m1",
    "Table<5, 1, 1>": "t2-e2m1",
    "Table<3, 4, 2>": "t2.5-e2m3",
    "Table<5, 2, 1>": "t3-e2m3",
    "Table<4, 3, 1>": "t4-e2m3",
    "Table<0, 4, 1>": "mxfp4 nvfp4 int4",
    "Multiplied": "m2-e2m1",
}
AVX512 = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni"

#: target -> (instruction set, how tables are looked up, bytes of a register)
TARGETS = {
    "avx512": (f"arch=x86-64-v3,{AVX512}", "merged", 64),
    "avx2": ("arch=x86-64-v3", "split", 32),
}
MODELS = {
    "avx512": ("znver4", "icelake-server", "sapphirerapids"),
    "avx2": ("znver3", "skylake", "alderlake"),
}
DOTS = ("vpdpbusd", "vpmaddubsw")
ITERATIONS = 200


def program(target: str, shape: str, m: int) -> str:
    """A translation unit whose one function is the kernel of a code for m rows."""
    features, tables, _ = TARGETS[target]
    kernel = (f"lanes_{target}", f"table_{tables}", "strip_codes", "strip_kernel")
    return "\n".join((
        "#include <immintrin.h>",
        "#include <new>",
        f'#include "{CPU}/features.hpp"',
        f'#include "{CPU}/integer.hpp"',
        "#define UNSPOOL_INLINE inline __attribute__((always_inline))",
        '#define UNSPOOL_UNROLL _Pragma("GCC unroll 16")',
        f'#pragma GCC target("{features}")',
        "namespace unspool { namespace kernels {",
        *(f'#include "{CPU}/{name}.hpp"' for name in kernel),
        "}",
        "void counted(const StripJob& job, int64_t strip, float* out) {",
        f"  kernels::few<kernels::{shape}, {m}, kNoScale>(job, strip, out);",
        "} }",
    ))  # fmt: skip


def assembly(source: str) -> list[str]:
    """The lines that g++ makes of a translation unit, with the options of the library."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernel.s"
        command = ["g++", "-std=c++17", "-O3", "-ffp-contract=off", f"-I{SOURCE}", "-w", "-S"]
        subprocess.run(
            [*command, "-x", "c++", "-", "-o", made], input=source, text=True, check=True
        )
        return made.read_text().splitlines()


def inner_loop(lines: list[str]) -> list[str]:
    """The instructions of the shortest loop that has a dot product."""
    found = [part for part in _loops(lines) if any(dot in line for dot in DOTS for line in part)]
    return [line for line in min(found, key=len) if not re.match(r"\s*[.#]", line)]


def _loops(body: list[str]) -> Iterator[list[str]]:
    labels = {line[:-1]: i for i, line in enumerate(body) if re.match(r"\.L\d+:", line)}
    for i, line in enumerate(body):
        jump = re.match(r"\s+j\w+\s+(\.L\d+)", line)
        if jump and labels.get(jump[1], i) < i:
            yield body[labels[jump[1]] + 1 : i + 1]


def simulated(loop: list[str], model: str) -> float | None:
    """Cycles of one iteration by llvm-mca's model of a processor; None without it."""
    names = [*(f"llvm-mca-{version}" for version in range(22, 15, -1)), "llvm-mca"]
    tool = next(filter(None, map(shutil.which, names)), None)
    if tool is None:
        return None
    command = [tool, "-mtriple=x86_64", f"-mcpu={model}", f"-iterations={ITERATIONS}"]
    text = "\n".join(loop) + "\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    cycles = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    return int(cycles[1]) / ITERATIONS if cycles else None


def row(target: str, shape: str, m: int) -> dict[str, Any]:
    """Counts of one loop; `registers` are those of weights that an iteration multiplies."""
    loop = inner_loop(assembly(program(target, shape, m)))
    width = TARGETS[target][2]
    registers = sum(any(dot in line for dot in DOTS) for line in loop) // m
    per_64 = 64 / (width * registers)
    cycles = {model: simulated(loop, model) for model in MODELS[target]}
    return {
        "target": target,
        "formats": SHAPES[shape],
        "m": m,
        "instructions_per_64_weights": round(len(loop) * per_64, 2),
        "simulated_cycles_per_64_weights": {
            model: round(found * per_64, 2) for model, found in cycles.items() if found is not None
        },
    }


def main() -> None:
    """Prints the rows; with --json writes them too."""
    options = parser(__doc__, "loops.json")
    options.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    chosen = options.parse_args()
    if shutil.which("g++") is None:
        sys.exit("g++ is needed to compile the kernels")
    rows = []
    for target in chosen.targets:
        for shape in SHAPES:
            for m in (1, 4) if target == "avx512" else (1, 2):
                rows.append(row(target, shape, m))
                counted = rows[-1]
                cycles = ", ".join(
                    f"{model} {found}"
                    for model, found in counted["simulated_cycles_per_64_weights"].items()
                )
                print(
                    f"{target:7} {counted['formats']:18} m {m}  "
                    f"{counted['instructions_per_64_weights']:6.2f} instructions per 64 weights; "
                    f"simulated cycles: {cycles or 'llvm-mca is not installed'}",
                    flush=True,
                )
    write(chosen.json, facts(), rows)


if __name__ == "__main__":
    main()
