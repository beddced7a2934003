"""Perplexity of models, and their KL divergence and top-1 agreement with a baseline, by window.

One pass runs the baseline once per window and every candidate on the same window; logits live for
one window only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import nn

from unspool.errors import EvaluationError
from unspool.evaluate.perplexity import (
    default_window,
    logits_of,
    losses,
    spans,
    to_perplexity,
    windows,
)
from unspool.model.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Row:
    """The quality of one model on one text."""

    name: str
    perplexity: float
    #: mean KL(baseline || model) per position, nats; None without a baseline
    kl: float | None
    #: standard error of that mean, positions taken as independent
    kl_error: float | None
    #: share of positions where both models' most likely token is the same
    top1: float | None
    #: predictions made
    tokens: int
    #: tokens per window
    window: int


@dataclass(kw_only=True)
class _Sums:
    """Running sums over positions, in float64."""

    positions: int = 0
    loss: float = 0.0
    kl: float = 0.0
    kl_squared: float = 0.0
    agreed: int = 0
    compared: bool = False

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        self.positions += len(targets)
        self.loss += float(losses(logits, targets).double().sum())

    def compare(self, logits: torch.Tensor, reference: torch.Tensor) -> None:
        each = kl_divergence(reference, logits).double()
        self.kl += float(each.sum())
        self.kl_squared += float((each * each).sum())
        self.agreed += int((logits.argmax(-1) == reference.argmax(-1)).sum())
        self.compared = True


def evaluate_models(
    models: Mapping[str, nn.Module],
    baseline: nn.Module | None,
    tokens: torch.Tensor,
    window: int | None = None,
    *,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """One row per model, and one named "baseline" first if there is one.

    Raises EvaluationError for a text shorter than a window, a loss that is not a number, or a model
    named "baseline".
    """
    if "baseline" in models:
        raise EvaluationError("the name is taken by the baseline", found="baseline")
    everyone = {**({"baseline": baseline} if baseline is not None else {}), **models}
    window = window or min(default_window(model) for model in everyone.values())
    cut = windows(tokens, window, max_tokens)
    sums = {name: _Sums() for name in everyone}
    for done, ids in enumerate(cut):
        if progress is not None:
            progress(done, len(cut), "windows")
        _add_window(everyone, sums, ids)
    return [_row(name, found, window) for name, found in sums.items()]


def kl_divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(reference || model) per position in nats, from float32 logits `[positions, vocabulary]`.

    Rounding can leave a tiny negative number where both agree: cut to zero.
    """
    p = reference.log_softmax(-1)
    q = logits.log_softmax(-1)
    return (p.exp() * (p - q)).double().sum(-1).clamp(min=0)


def _add_window(
    everyone: Mapping[str, nn.Module], sums: Mapping[str, _Sums], ids: torch.Tensor
) -> None:
    reference = logits_of(everyone["baseline"], ids) if "baseline" in everyone else None
    for name, model in everyone.items():
        seen = reference if name == "baseline" else None
        logits = logits_of(model, ids) if seen is None else seen
        for span, targets in spans(ids):
            rows = logits[span].float()
            sums[name].add(rows, targets)
            if reference is not None:
                sums[name].compare(rows, reference[span].float())


def _row(name: str, sums: _Sums, window: int) -> Row:
    count = sums.positions
    mean = sums.kl / count
    variance = max(sums.kl_squared / count - mean * mean, 0.0)
    return Row(
        name=name,
        perplexity=to_perplexity(sums.loss / count),
        kl=mean if sums.compared else None,
        kl_error=sqrt(variance / count) if sums.compared else None,
        top1=sums.agreed / count if sums.compared else None,
        tokens=count,
        window=window,
    )
