"""`unspool demo`: the whole product on the bundled model, in minutes."""

from __future__ import annotations

import json as json_text
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli import bundled
from unspool.cli.terminal import (
    AsJson,
    Quiet,
    byte_count,
    plain,
    print_json,
    print_table,
    progress,
)
from unspool.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMATS = ("t4-e2m3", "t3-e2m3", "t2-e2m1", "nvfp4", "mxfp4")
ORIGINAL = "bf16"

SPEAKER = "t3-e2m3"
"""The format whose model writes a paragraph."""

PARAGRAPH = 120
"""Tokens it writes."""

WINDOW = 512
"""Tokens per window: what the bundled model was trained on."""

TOKENS = 12288
"""Tokens of the held-out text that are evaluated, by all six models."""

COLUMNS = ("format", "bits/w", "linears", "model", "ppl", "KL, nats", "top-1", "tok/s")


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder; what an earlier demo wrote is replaced.")
    ] = Path("demo-out"),
    max_tokens: Annotated[int, typer.Option(min=WINDOW, help="Tokens evaluated.")] = TOKENS,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Quantize the bundled model at 4, 3 and 2 bits, measure it, plot it, let it write."""
    from unspool.evaluate.plot import check_matplotlib

    check_matplotlib()
    start = time.perf_counter()
    _make_folder(out)
    write_checkpoints(out, quiet)
    models = load_all(out)
    found = measure(models, max_tokens, quiet)
    found["paragraph"] = paragraph(models[SPEAKER])
    found["plot"] = str(draw(found, out / "kl-over-bits.png"))
    found["seconds"] = time.perf_counter() - start
    _write(out / "results.json", found)
    if json:
        print_json(found)
    else:
        _show(found, out)


def write_checkpoints(out: Path, quiet: bool) -> None:
    """One checkpoint per format, each from a fresh copy of the bundled model."""
    import unspool

    source = bundled.folder()
    for place, name in enumerate(FORMATS, start=1):
        model = unspool.load(source)
        with progress(f"[{place}/{len(FORMATS)}] quantizing to {name}", quiet=quiet) as advance:
            unspool.quantize(model, name, progress=advance)
        unspool.save(model, out / name, source=source, overwrite=True)


def load_all(out: Path) -> dict[str, nn.Module]:
    """The original and every checkpoint, read back from its files."""
    import unspool

    checkpoints = {name: unspool.load(out / name) for name in FORMATS}
    return {ORIGINAL: unspool.load(bundled.folder()), **checkpoints}


def measure(models: Mapping[str, nn.Module], max_tokens: int, quiet: bool) -> dict[str, Any]:
    """Quality, size and speed of every model, and what they were measured with."""
    from unspool.cli.machine import machine
    from unspool.evaluate.divergence import evaluate_models
    from unspool.evaluate.perplexity import convention

    tokens = _tokens()
    coded = {name: model for name, model in models.items() if name != ORIGINAL}
    with progress("evaluating", quiet=quiet) as advance:
        rows = evaluate_models(
            coded, models[ORIGINAL], tokens, WINDOW, max_tokens=max_tokens, progress=advance
        )
    # The baseline comes first, by its own name; the others keep theirs.
    named = dict(zip(models, rows, strict=True))
    return {
        "formats": [_row(name, models[name], row, tokens) for name, row in named.items()],
        "convention": convention(WINDOW),
        "text": "held-out part of the Python documentation (bundled)",
        "machine": machine(),
    }


def paragraph(model: nn.Module) -> dict[str, str]:
    """What a model writes."""
    import unspool
    from unspool.cli.generate import PROMPT, prompt_ids
    from unspool.cli.sampling import Sampling, generate_tokens, stream_text

    tokenizer = unspool.load_tokenizer(bundled.folder())
    ids = prompt_ids(PROMPT, tokenizer)
    tokens = generate_tokens(model, ids, PARAGRAPH, Sampling())
    return {"format": SPEAKER, "prompt": PROMPT, "text": "".join(stream_text(tokens, tokenizer))}


def draw(found: Mapping[str, Any], path: Path) -> Path:
    """The plot of KL divergence over bits per weight."""
    from unspool.evaluate.plot import Point, plot_divergence
    from unspool.spec.catalog import FORMATS as CATALOG

    points = [
        Point(
            name=row["format"],
            bits_per_weight=row["bits_per_weight"],
            kl=row["kl"],
            kl_stderr=row["kl_stderr"],
            coded=CATALOG[row["format"]].code.memory > 0,
        )
        for row in found["formats"]
        if row["format"] != ORIGINAL
    ]
    plot_divergence(points, f"Bundled model, {found['formats'][0]['tokens']:,} tokens", path)
    return path


def _tokens() -> torch.Tensor:
    import unspool
    from unspool.evaluate.perplexity import tokenize

    text = bundled.read_text(None, bundled.NAME)
    return tokenize(text, unspool.load_tokenizer(bundled.folder()))


def _row(name: str, model: nn.Module, row: Any, tokens: torch.Tensor) -> dict[str, Any]:
    from unspool.cli.eval import quality, size_and_speed

    return {"format": name, **quality(row), **size_and_speed(model, tokens)}


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            "cannot be made a folder", where=str(out), found=error.strerror
        ) from error


def _write(path: Path, found: Mapping[str, Any]) -> None:
    try:
        path.write_text(json_text.dumps(plain(found), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError("cannot be written", where=str(path), found=error.strerror) from error


def _show(found: Mapping[str, Any], out: Path) -> None:
    rows = found["formats"]
    print_table(f"The bundled model, {rows[0]['tokens']:,} predictions", COLUMNS, map(_cells, rows))
    worst = max(row["kl_stderr"] / row["kl"] for row in rows if row["kl"])
    print("bits/w: bits per weight of the linear layers, all overheads included")
    print(f"ppl: perplexity, {found['convention']}")
    print(f"KL: from the original, per token; standard errors at most {worst:.1%}")
    said = found["paragraph"]
    print(f"\n{said['format']} goes on from its first words:\n\n{said['prompt']}{said['text']}\n")
    print(f"checkpoints, results.json and {Path(found['plot']).name} are in {out}")
    print(f"{found['seconds']:.0f} s in all")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["format"],
        f"{row['bits_per_weight']:.3f}",
        byte_count(row["bytes"]),
        byte_count(row["model_bytes"]),
        f"{row['perplexity']:.3f}",
        f"{row['kl']:.4f}",
        f"{row['top1']:.2%}",
        f"{row['tokens_per_second']:.0f}",
    )
