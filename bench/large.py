"""Quantizing a model of Llama-3.2-1B's shape: seconds and memory, with calibration and without.

`python bench/large.py [--json [FILE]] [--only plain calibrated] [--blocks N] [--format NAME ...]`.
Weights are random, the tokenizer is the bundled one, each run a process of its own. With --blocks
the model has so many of its 16 blocks: the rows say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from timing import facts, parser, write

from model import SIZES
from unspool.cli import bundled

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TOKENS = 32768


def make(folder: Path, blocks: int) -> None:
    """Writes a Llama of random bfloat16 weights."""
    known = {key: value for key, value in SIZES.items() if key != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": SIZES["rope_theta"]}
    config = transformers.LlamaConfig(
        **{**known, "num_hidden_layers": blocks}, rope_parameters=rope, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(bundled.folder() / name, folder / name)


def quantized(source: Path, out: Path, options: Sequence[str]) -> tuple[float, int]:
    """(seconds, most bytes of memory) of a process that quantizes."""
    words = ["quantize", str(source), "-o", str(out), *options, "--overwrite", "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "unspool", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"unspool {' '.join(words)} failed")
    return time.perf_counter() - start, 1024 * used.ru_maxrss


def main() -> None:
    """Prints the rows; with --json writes them too."""
    options = parser(__doc__, "large.json")
    options.add_argument("--format", nargs="*", default=["t2-e2m1"])
    options.add_argument("--blocks", type=int, default=SIZES["num_hidden_layers"])
    options.add_argument("--calibration-tokens", type=int, default=TOKENS)
    options.add_argument("--calibration-dtype", default="float32")
    chosen = options.parse_args()
    given = {
        "plain": [],
        "calibrated": ["--calibration", "demo", "--calibration-tokens",
                       str(chosen.calibration_tokens),
                       "--calibration-dtype", chosen.calibration_dtype],
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        make(source, chosen.blocks)
        for name in chosen.format:
            for method, more in given.items():
                if chosen.only and method not in chosen.only:
                    continue
                asked = ["--format", name, *more]
                seconds, memory = quantized(source, Path(folder) / "out", asked)
                rows.append({
                    "format": name, "method": method, "blocks": chosen.blocks,
                    "command": f"unspool quantize MODEL -o OUT {' '.join(asked)}",
                    "seconds": round(seconds, 1), "peak_bytes": memory,
                })  # fmt: skip
                print(rows[-1], flush=True)
    write(chosen.json, facts(), rows)


if __name__ == "__main__":
    main()
