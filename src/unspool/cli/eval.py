"""`unspool eval`: perplexity, distance to the original, and speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli.bundled import Activations, ModelPath, read_text, resolve
from unspool.cli.terminal import (
    AsJson,
    Quiet,
    byte_count,
    print_json,
    print_table,
    progress,
)
from unspool.errors import EvaluationError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unspool.evaluate.divergence import Row
    from unspool.model.progress import Progress

PROMPT_TOKENS = 128
"""Prompt of the speed measurement; less where the text is shorter."""


def evaluate(
    path: ModelPath,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="PATH", help="The original, for KL.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="UTF-8; the bundled model has its own."),
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens; default 2048 or the model's limit.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the text.")] = None,
    activations: Activations = "auto",
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Measure perplexity and, against a baseline, KL divergence and top-1 agreement."""
    import unspool
    from unspool.evaluate.perplexity import tokenize

    content = read_text(text, path, baseline)
    model = unspool.load(resolve(path), activations=activations)
    original = unspool.load(resolve(baseline)) if baseline is not None else None
    check_windows(window, model)
    if original is not None:
        check_pair(model, original)
    tokens = tokenize(content, unspool.load_tokenizer(resolve(path)))
    with progress("evaluating", quiet=quiet) as advance:
        found = measure(model, original, tokens, window, max_tokens, advance)
    found = {"model": path, "baseline": baseline, "activations": activations, **found}
    if json:
        print_json(found)
    else:
        _show(found)


def measure(
    model: nn.Module,
    baseline: nn.Module | None,
    tokens: torch.Tensor,
    window: int | None,
    max_tokens: int | None,
    advance: Progress,
) -> dict[str, Any]:
    """Quality, size and speed of a model on token ids `[count]`."""
    from unspool.cli.machine import machine
    from unspool.evaluate.divergence import evaluate_models
    from unspool.evaluate.perplexity import convention

    rows = evaluate_models(
        {"model": model}, baseline, tokens, window, max_tokens=max_tokens, progress=advance
    )
    row = rows[-1]
    return {
        **quality(row),
        "baseline_perplexity": None if baseline is None else rows[0].perplexity,
        **size_and_speed(model, tokens),
        "convention": convention(row.window),
        "machine": machine(),
    }


def quality(row: Row) -> dict[str, Any]:
    """The quality figures of one model, by their public names."""
    return {
        "perplexity": row.perplexity,
        "kl": row.kl,
        "kl_stderr": row.kl_error,
        "top1": row.top1,
        "tokens": row.tokens,
        "window": row.window,
    }


def size_and_speed(model: nn.Module, tokens: torch.Tensor) -> dict[str, Any]:
    """Bits, bytes and tokens per second of one model."""
    from unspool.cli.sizes import sizes_of
    from unspool.evaluate.speed import measure_speed

    speed = measure_speed(model, tokens, prompt_tokens=min(PROMPT_TOKENS, len(tokens)))
    return {
        **sizes_of(model).to_json(),
        "tokens_per_second": speed.decode,
        "prompt_tokens_per_second": speed.prompt,
        "speed": vars(speed),
    }


def check_windows(window: int | None, model: Any) -> None:
    """Raises EvaluationError for a window that is longer than the model's positions."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if window is not None and isinstance(longest, int) and window > longest:
        raise EvaluationError(
            "the window is longer than the model's positions",
            where="--window",
            found=window,
            allowed=f"2 to {longest}",
        )


def check_pair(model: Any, baseline: Any) -> None:
    """Raises EvaluationError for two models that do not predict the same tokens."""
    sizes = [m.config.get_text_config().vocab_size for m in (model, baseline)]
    if sizes[0] != sizes[1]:
        raise EvaluationError(
            "the baseline has another vocabulary", found=f"{sizes[1]} tokens", allowed=sizes[0]
        )


def _show(found: dict[str, Any]) -> None:
    rows = [
        ("perplexity", f"{found['perplexity']:.4f}"),
        ("bits per weight", f"{found['bits_per_weight']:.4f}"),
        ("bits per weight, whole model", f"{found['model_bits_per_weight']:.4f}"),
        ("bytes, whole model", byte_count(found["model_bytes"])),
        ("tokens/s", f"{found['tokens_per_second']:.1f}"),
        ("prompt tokens/s", f"{found['prompt_tokens_per_second']:.1f}"),
    ]
    if found["kl"] is not None:
        rows[1:1] = [
            ("perplexity of the baseline", f"{found['baseline_perplexity']:.4f}"),
            ("KL divergence, nats", f"{found['kl']:.5f} ± {found['kl_stderr']:.5f}"),
            ("top-1 agreement", f"{found['top1']:.2%}"),
        ]
    print_table(f"{found['model']} on {found['tokens']:,} tokens", ("figure", "value"), rows)
    print(f"convention: {found['convention']}")
