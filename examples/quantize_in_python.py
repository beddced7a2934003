"""Quantizes the bundled model from Python, saves it, loads it back, and compares.

    python examples/quantize_in_python.py OUT

OUT is a folder to write; any Hugging Face model folder can stand in the place of the bundled one.
"""

from __future__ import annotations

import sys
from importlib import resources

import torch

import unspool


def main(out: str) -> None:
    """Prints the worst layer, the size, and whether the checkpoint gives the same logits."""
    with resources.as_file(resources.files("unspool") / "data" / "demo-model") as source:
        model, tokenizer = unspool.load(source), unspool.load_tokenizer(source)
        report = unspool.quantize(model, "t3-e2m3")
        unspool.save(model, out, source=source)

    worst = max(report.layers, key=lambda layer: layer.relative_error)
    print(f"{len(report.layers)} layers, {report.bits_per_weight:.3f} bits per weight")
    print(f"largest error {worst.relative_error:.4f}: {worst.name}")

    tokens = tokenizer("The function returns", return_tensors="pt").input_ids
    with torch.inference_mode():
        same = torch.equal(model(tokens).logits, unspool.load(out)(tokens).logits)
    print(f"the checkpoint gives the same logits: {same}")


if __name__ == "__main__":
    main(sys.argv[1])
