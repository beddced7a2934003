"""Tokens per second: prompt processing, and decoding one token at a time with a KV cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from unspool.errors import EvaluationError


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Medians over the repeats, and the share by which the repeats differ."""

    #: generated tokens per second, greedy, batch 1
    decode: float
    #: prompt tokens per second
    prompt: float
    #: (slowest - fastest) / median of the decode times
    spread: float
    prompt_tokens: int
    decode_tokens: int
    repeats: int


def measure_speed(
    model: nn.Module,
    tokens: torch.Tensor,
    *,
    prompt_tokens: int = 128,
    decode_tokens: int = 32,
    repeats: int = 3,
) -> Speed:
    """The speed of a causal model whose prompt is the start of `tokens` `[count]`.

    One more run warms up and is dropped. Raises EvaluationError for fewer tokens than the prompt's.
    """
    if len(tokens) < prompt_tokens:
        raise EvaluationError(
            "the text is shorter than the prompt", found=len(tokens), allowed=prompt_tokens
        )
    if min(prompt_tokens, decode_tokens, repeats) < 1:
        raise EvaluationError("prompt, decoded tokens and repeats are at least 1")
    runs = [_run(model, tokens[:prompt_tokens], decode_tokens) for _ in range(repeats + 1)][1:]
    prompts, decodes = zip(*runs, strict=True)
    return Speed(
        decode=decode_tokens / median(decodes),
        prompt=prompt_tokens / median(prompts),
        spread=(max(decodes) - min(decodes)) / median(decodes),
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        repeats=repeats,
    )


def _run(model: nn.Module, prompt: torch.Tensor, count: int) -> tuple[float, float]:
    """(seconds of the prompt, seconds of `count` greedy steps after it)."""
    with torch.no_grad():  # as transformers generates
        start = time.perf_counter()
        output = model(prompt[None], use_cache=True)
        ready = time.perf_counter()
        for _ in range(count):
            following = output.logits[:, -1:].argmax(-1)
            output = model(following, past_key_values=output.past_key_values, use_cache=True)
        return ready - start, time.perf_counter() - ready
