"""Mean squared error of ggml's types on unit Gaussian weights, beside `unspool formats --measure`.

`python bench/ggml_distortion.py --ggml FOLDER [--json [FILE]]`.

ggml quantizes with an importance of one everywhere, which turns its better search on. Folder:
`peers/README.md`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from peers.ggml_library import SAMPLE_ROWS, TYPES, Ggml, dequantized, quantized_rows
from timing import facts, parser, write

K = 4096


def row(ggml: Ggml, name: str) -> dict[str, str | float]:
    """Bits and error of one type, on SAMPLE_ROWS x K weights."""
    weights = np.random.default_rng(0).standard_normal((SAMPLE_ROWS, K), dtype=np.float32)
    stored = quantized_rows(ggml, name, SAMPLE_ROWS, K)  # of the same weights
    error = dequantized(ggml, name, stored, K).astype(np.float64) - weights
    bits = 8 * stored.nbytes / weights.size
    return {"type": name, "bits_per_weight": bits, "mse": float(np.mean(error**2))}


def main() -> None:
    """Prints the rows; with --json writes them too."""
    options = parser(__doc__, "ggml-distortion.json")
    options.add_argument("--ggml", type=Path, required=True, metavar="FOLDER")
    chosen = options.parse_args()
    ggml = Ggml(chosen.ggml)
    rows = [row(ggml, name) for name in TYPES]
    for found in rows:
        print(f"{found['type']:8} {found['bits_per_weight']:.4f} bits  MSE {found['mse']:.5f}")
    write(chosen.json, facts(), rows)


if __name__ == "__main__":
    main()
