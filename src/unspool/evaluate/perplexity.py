"""Perplexity by the convention of the quantization papers, and how text becomes windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from unspool.errors import EvaluationError

DEFAULT_WINDOW = 2048
"""Tokens per window; what GPTQ and its successors report."""

POSITIONS = 256
"""Positions whose logits are float32 at a time: 128 MiB at a vocabulary of 128 k."""


def tokenize(text: str, tokenizer: Any) -> torch.Tensor:
    """The text's token ids `[count]`, tokenized once, special tokens as the tokenizer adds."""
    ids = tokenizer(text, verbose=False, return_attention_mask=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def default_window(model: nn.Module) -> int:
    """2048, or the longest sequence the model knows if that is shorter."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    longest = getattr(text, "max_position_embeddings", None)
    return min(DEFAULT_WINDOW, longest) if isinstance(longest, int) else DEFAULT_WINDOW


def windows(tokens: torch.Tensor, window: int, max_tokens: int | None = None) -> torch.Tensor:
    """Non-overlapping windows `[count, window]`; what is left at the end is dropped.

    `max_tokens` limits their total. Raises EvaluationError where not one window fits.
    """
    if window < 2:
        raise EvaluationError("a window needs two tokens", found=window)
    limit = len(tokens) if max_tokens is None else min(len(tokens), max_tokens)
    count = limit // window
    if not count:
        raise EvaluationError(
            "the text is shorter than a window",
            found=f"{limit} tokens",
            allowed=f"{window} or more, or a shorter window",
        )
    return tokens[: count * window].reshape(count, window)


def convention(window: int) -> str:
    """The convention in a sentence, to be printed beside every perplexity."""
    return (
        f"exp of the mean negative log-likelihood per token; text joined and tokenized once, "
        f"non-overlapping windows of {window} tokens, {window - 1} predictions in each"
    )


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits `[window, vocabulary]` of one window, in the model's dtype."""
    with torch.inference_mode():
        return model(ids[None], use_cache=False).logits[0]


def spans(ids: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """(positions, the tokens that follow them), a few positions at a time."""
    for start in range(0, len(ids) - 1, POSITIONS):
        stop = min(start + POSITIONS, len(ids) - 1)
        yield slice(start, stop), ids[start + 1 : stop + 1]


def losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target, in nats."""
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def to_perplexity(mean_loss: float) -> float:
    """exp of a mean loss in nats; infinite beyond what a double holds."""
    if mean_loss != mean_loss:
        raise EvaluationError("the model's loss is not a number (NaN logits)")
    return float(torch.tensor(mean_loss, dtype=torch.float64).exp())
