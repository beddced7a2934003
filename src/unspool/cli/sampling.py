"""Text from a causal language model, token by token as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unspool.errors import EvaluationError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; a temperature of zero takes the most likely one."""

    temperature: float = 0.8
    #: tokens to choose from, the most likely ones; 0: all
    top_k: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:  # NaN compares with nothing
            raise EvaluationError(
                "no temperature", found=self.temperature, allowed="0 (the most likely) or more"
            )


def generate_tokens(
    model: nn.Module, prompt: torch.Tensor, count: int, sampling: Sampling
) -> Iterator[int]:
    """Up to `count` tokens that follow token ids `[length]`; ends at the model's end of text."""
    import torch

    random = torch.Generator().manual_seed(sampling.seed)
    ends = end_tokens(model)
    step, past = prompt[None], None
    for _ in range(count):
        with torch.inference_mode():
            output = model(step, past_key_values=past, use_cache=True)
        token = choose(output.logits[0, -1].float(), sampling, random)
        if token in ends:
            return
        yield token
        step, past = torch.tensor([[token]]), output.past_key_values


def choose(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """A token drawn from logits `[vocabulary]`."""
    import torch

    if sampling.temperature == 0:
        return int(logits.argmax())
    count = min(sampling.top_k or len(logits), len(logits))
    best, tokens = logits.topk(count)
    # Largest first, and in double: a temperature of 1e-40 must not divide zero by zero.
    shares = torch.softmax(((best - best[0]).double() / sampling.temperature).float(), -1)
    return int(tokens[torch.multinomial(shares, 1, generator=random)])


def end_tokens(model: Any) -> frozenset[int]:
    """The tokens that end a text, by the model's generation settings."""
    settings = getattr(model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    if ends is None:
        return frozenset()
    return frozenset((ends,) if isinstance(ends, int) else ends)


def stream_text(tokens: Iterator[int], tokenizer: Any) -> Iterator[str]:
    """The text of tokens in pieces as they come; a character split over tokens comes whole."""
    seen: list[int] = []
    shown = ""
    for token in tokens:
        seen.append(token)
        text = tokenizer.decode(seen, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(seen, skip_special_tokens=True)[len(shown) :] if seen else ""
