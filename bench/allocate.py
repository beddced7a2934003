"""KL of the bundled model with one format for all layers, and with allocated ones of as many bytes.

`python bench/allocate.py [--json [FILE]] [--only BITS ...]`. Plain rounding, float32 activations,
held-out text; the plan is made on the calibration text alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from calibrated import layers, original, row
from timing import facts, parser, write

import unspool
from unspool.cli import bundled
from unspool.cli.allocate import TOKENS
from unspool.encode.encode import encode
from unspool.evaluate.perplexity import tokenize
from unspool.matmul.reference import decode
from unspool.spec.catalog import DEFAULTS, parse

RATES = (2.5, 3.0)
"""Rates with a uniform format."""

MENUS = {3.0: "t2-e2m1,x2.5-e4m3,t3-e2m3,x3.5-e4m3,t4-e2m3"}
"""Formats to choose from where they are not the defaults: found codes between whole rates."""


def planned(bits: float, tokens: int) -> tuple[dict[str, Any], str]:
    """The plan of `unspool allocate`, and the command."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.json"
        command = ["unspool", "allocate", "demo", "--bits", f"{bits:g}", "-o", "plan.json",
                   "--calibration-tokens", str(tokens)]  # fmt: skip
        command += ["--formats", MENUS[bits]] if bits in MENUS else []
        there = [str(plan) if word == "plan.json" else word for word in command[1:]]
        subprocess.run([sys.executable, "-m", "unspool", *there, "-q"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        return json.loads(plan.read_text(encoding="utf-8")), " ".join(command)


def coded(formats: dict[str, str]) -> tuple[dict[str, np.ndarray], int]:
    """(weights, bytes) with a format per layer."""
    model = original()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    made = {name: encode(w, parse(formats[name])) for name, w in layers(model).items()}
    return {name: decode(m) for name, m in made.items()}, sum(m.nbytes for m in made.values())


def main() -> None:
    """Prints the rows; with --json writes them too."""
    options = parser(__doc__, "allocate.json")
    options.add_argument("--calibration-tokens", type=int, default=TOKENS)
    options.add_argument("--max-tokens", type=int, default=12288)
    chosen = options.parse_args()
    source = str(bundled.folder())
    held = tokenize(bundled.read_text(None, bundled.NAME), unspool.load_tokenizer(source))
    rows = []
    for bits in RATES:
        if chosen.only and f"{bits:g}" not in chosen.only:
            continue
        start = time.perf_counter()
        plan, command = planned(bits, chosen.calibration_tokens)
        seconds = round(time.perf_counter() - start, 1)
        for label, formats in (
            (DEFAULTS[bits], dict.fromkeys(plan["formats"], DEFAULTS[bits])),
            (f"allocated, {bits:g} bits", plan["formats"]),
        ):
            made, nbytes = coded(formats)
            found = row(label, "plain", made, nbytes, held, chosen.max_tokens)
            rows.append({**found, "bytes": nbytes})
            print(rows[-1], flush=True)
        rows[-1] |= {"command": command, "seconds": seconds, "losses": plan["losses"],
                     "formats": plan["formats"],
                     "kl_over_uniform": rows[-1]["kl"] / rows[-2]["kl"]}  # fmt: skip
        print(f"{bits:g} bits: {rows[-1]['kl_over_uniform']:.3f} of the uniform format's KL")
    write(chosen.json, facts() | {"tokens": chosen.max_tokens}, rows)


if __name__ == "__main__":
    main()
