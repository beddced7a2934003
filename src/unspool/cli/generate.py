"""`unspool generate`: text from a model or a checkpoint."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli.bundled import Activations, ModelPath, resolve
from unspool.cli.sampling import Sampling, generate_tokens, stream_text
from unspool.cli.terminal import AsJson, print_json, say
from unspool.errors import EvaluationError

if TYPE_CHECKING:
    import torch

PROMPT = "The :mod:`json` module"
"""In the style of the texts that the bundled model was trained on."""

MAX_SEED = (1 << 32) - 1


def generate(
    path: ModelPath,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to go on from.")] = PROMPT,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0: the most likely token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Tokens to choose from; 0: all.")] = 40,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="The same seed, the same text.")
    ] = 0,
    activations: Activations = "auto",
    json: AsJson = False,
) -> None:
    """Generate text; it streams to stdout, tokens per second go to stderr at the end."""
    import unspool

    model = unspool.load(resolve(path), activations=activations)
    tokenizer = unspool.load_tokenizer(resolve(path))
    ids = prompt_ids(prompt, tokenizer)
    sampling = Sampling(temperature=temperature, top_k=top_k, seed=seed)
    counted = _Counted(generate_tokens(model, ids, max_new_tokens, sampling))
    pieces = []
    if not json:
        print(prompt, end="", flush=True)
    for piece in stream_text(iter(counted), tokenizer):
        pieces.append(piece)
        if not json:
            print(piece, end="", flush=True)
    if json:
        print_json({
            "model": path, "prompt": prompt, "text": "".join(pieces), "tokens": counted.tokens,
            "tokens_per_second": counted.rate, **vars(sampling),
        })  # fmt: skip
        return
    print()
    say(f"{counted.tokens} tokens, {counted.rate:.1f} tokens/s")


def prompt_ids(prompt: str, tokenizer: Any) -> torch.Tensor:
    """Token ids `[length]` of a prompt; raises EvaluationError for an empty one."""
    from unspool.evaluate.perplexity import tokenize

    ids = tokenize(prompt, tokenizer)
    if not len(ids):
        raise EvaluationError("the prompt has no tokens", where="--prompt")
    return ids


class _Counted:
    """Tokens as they pass, and the rate at which they came."""

    def __init__(self, tokens: Any) -> None:
        self._source, self.tokens, self._start = tokens, 0, time.perf_counter()
        self._seconds = 0.0

    def __iter__(self) -> Any:
        for token in self._source:
            self.tokens += 1
            self._seconds = time.perf_counter() - self._start
            yield token

    @property
    def rate(self) -> float:
        """Tokens per second, the prompt's time included."""
        return self.tokens / self._seconds if self._seconds else 0.0
