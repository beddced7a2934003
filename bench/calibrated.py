"""KL of the bundled model after calibrated and plain quantization, ours and others'.

`python bench/calibrated.py [--ggml FOLDER] [--json [FILE]] [--only PART ...]`. Every weight is
decoded to float32 and multiplied with float32 activations; embeddings and head stay as they are on
both sides. Bits are those of the linear layers, everything included. The same calibration text
gives our moments and ggml's importance. Folder: `peers/README.md`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.ggml_library import Ggml
from peers.ggml_quality import rounded
from timing import facts, parser, write
from torch import nn

import unspool
from unspool.cli import bundled
from unspool.cli.inputs import calibration_windows
from unspool.encode.encode import encode
from unspool.evaluate.divergence import evaluate_models
from unspool.evaluate.perplexity import tokenize
from unspool.matmul.reference import decode
from unspool.model.blocks import blocks_of
from unspool.model.calibrate import Plan, both_streams, calibrate_block, weigh
from unspool.model.selection import plan
from unspool.spec.catalog import parse

CALIBRATED = ("t2-e2m1", "t3-e2m3", "t4-e2m3", "lut-b", "nvfp4", "int4", "mxfp4", "m2-e2m1")
PLAIN = (*CALIBRATED, "nf4")
WEIGHED = ("t2-e2m1", "t3-e2m3")
TUNE_BLOCKS = 40
VARIED: dict[str, dict[str, Any]] = {
    "bfloat16 passes": {"dtype": torch.bfloat16},
    "tuned blocks": {"tune": TUNE_BLOCKS},
}
"""Other ways to calibrate, of the formats WEIGHED: by the method's name, fields of `Plan`."""

PEERS = ("Q2_K", "IQ2_XS", "IQ2_XXS", "Q3_K", "IQ3_S", "Q4_K", "IQ4_XS")
WINDOW = 512

Weights = dict[str, np.ndarray]


def original() -> nn.Module:
    """The bundled model in float32."""
    return unspool.load(bundled.folder()).float()


def layers(model: nn.Module) -> Weights:
    """The weights that are quantized, by name."""
    return {name: model.get_submodule(name).weight.numpy() for name in plan(model, "int8")}


def plain(name: str, model: nn.Module) -> tuple[Weights, int]:
    """(weights, bytes) without calibration."""
    coded = {layer: encode(w, parse(name)) for layer, w in layers(model).items()}
    return {layer: decode(m) for layer, m in coded.items()}, sum(m.nbytes for m in coded.values())


def calibrated(
    name: str, model: nn.Module, windows: torch.Tensor, *, weighed: bool = False, **more: Any
) -> tuple[Weights, int]:
    """(weights, bytes) with LDLQ and drift correction, tokens weighed by importance or alike."""
    blocks, steps = blocks_of(model), Plan(formats=plan(model, name), **more)
    first = model.get_submodule(blocks.names[0])
    streams = both_streams(model, first, windows, dtype=steps.dtype)
    if weighed:
        weigh(streams, model, blocks, windows, None)
    found, nbytes = {}, 0
    for place, prefix in enumerate(blocks.names):
        for layer in calibrate_block(blocks.read(place), prefix, streams, steps):
            found[layer.name] = decode(layer.matrix)
            nbytes += layer.matrix.nbytes
    return found, nbytes


def importance(model: nn.Module, windows: torch.Tensor) -> Weights:
    """Mean squares of every layer's inputs: what an importance matrix holds."""
    sums: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            sums[name] = sums.get(name, 0) + rows.double().square().sum(0)

        return add

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in layers(model)]
    with torch.no_grad():
        for ids in windows:
            model(ids[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: (each / windows.numel()).numpy() for name, each in sums.items()}


def peer(ggml: Ggml, name: str, model: nn.Module, weighed: Weights) -> tuple[Weights, int]:
    """(weights, bytes) of one of ggml's types."""
    both = {n: rounded(ggml, name, w, weighed[n]) for n, w in layers(model).items()}
    return {n: w for n, (w, _) in both.items()}, sum(size for _, size in both.values())


def cases(
    model: nn.Module, windows: torch.Tensor, ggml: Ggml | None
) -> Iterator[tuple[str, str, Callable[[], tuple[Weights, int]]]]:
    """(name, method, how to make it)."""
    weighed = importance(model, windows) if ggml else {}
    for name in PEERS if ggml else ():
        yield f"ggml {name}", "importance", lambda name=name: peer(ggml, name, model, weighed)
    for name in PLAIN:
        yield name, "plain", lambda name=name: plain(name, model)
    for name in CALIBRATED:
        yield name, "calibrated", lambda name=name: calibrated(name, model, windows)
    for name in WEIGHED:
        make = partial(calibrated, name, model, windows, weighed=True)
        yield name, "weighed", make
        for method, more in VARIED.items():
            yield name, method, partial(calibrated, name, model, windows, **more)


def row(label: str, method: str, made: Weights, nbytes: int, tokens: Any, count: int) -> dict:
    """Bits and divergence of one quantized model."""
    base, model = original(), original()
    for layer, weight in made.items():
        model.get_submodule(layer).weight.data = torch.from_numpy(np.asarray(weight, np.float32))
    _, found = evaluate_models({"q": model}, base, tokens, WINDOW, max_tokens=count)
    bits = 8 * nbytes / sum(w.size for w in made.values())
    return {
        "format": label, "method": method, "bits_per_weight": bits, "kl": found.kl,
        "kl_stderr": found.kl_error, "perplexity": found.perplexity, "top1": found.top1,
    }  # fmt: skip


def main() -> None:
    """Prints the rows; with --json writes them too."""
    options = parser(__doc__, "calibrated.json")
    options.add_argument("--ggml", type=Path, metavar="FOLDER")
    options.add_argument("--calibration-tokens", type=int, default=65536)
    options.add_argument("--max-tokens", type=int, default=12288)
    chosen, source = options.parse_args(), str(bundled.folder())
    windows = calibration_windows("demo", source, chosen.calibration_tokens)
    text = bundled.read_text(None, bundled.NAME)
    tokens, model = tokenize(text, unspool.load_tokenizer(source)), original()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    rows = []
    for label, method, make in cases(model, windows, Ggml(chosen.ggml) if chosen.ggml else None):
        if chosen.only and not any(part in f"{label} {method}" for part in chosen.only):
            continue
        start = time.perf_counter()
        made, nbytes = make()
        found = row(label, method, made, nbytes, tokens, chosen.max_tokens)
        used = 0 if method == "plain" else windows.numel()
        seconds = round(time.perf_counter() - start, 1)
        rows.append({**found, "calibration_tokens": used, "seconds": seconds})
        kl, error = found["kl"], found["kl_stderr"]
        print(f"{label:14} {method:11} {found['bits_per_weight']:.3f} bits  KL {kl:.4f} "
              f"± {error:.4f}", flush=True)  # fmt: skip
        write(chosen.json, {**facts(), "tokens": chosen.max_tokens}, rows)


if __name__ == "__main__":
    main()
