"""A checkpoint of ours timed in a process of its own: prints one JSON document.

`python bench/model_process.py FOLDER --threads 2 --prompts 128 512 --tokens 32 --repeats 2`. With
`--make JSON` it writes the checkpoint first instead: a Llama of those sizes, random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import generation
import torch
import transformers

BEFORE = generation.memory()
"""With torch and transformers imported, nothing of ours."""

SEED = 0


class Ours:
    """A loaded checkpoint and its cache: a `generation.Model`."""

    def __init__(self, folder: Path) -> None:
        """Loads it."""
        import unspool

        self.model = unspool.load(folder)
        self.vocabulary = self.model.config.vocab_size
        self._cache: Any = None

    def start(self, prompt: Sequence[int]) -> int:
        """Forgets what was before, reads a prompt, returns the most likely token after it."""
        self._cache = None
        return self._read(prompt)

    def step(self, token: int) -> int:
        """Reads one more token, returns the most likely one after it."""
        return self._read([token])

    def _read(self, tokens: Sequence[int]) -> int:
        with torch.inference_mode():
            output = self.model(
                torch.tensor([tokens]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self._cache = output.past_key_values
            return int(output.logits[0, -1].argmax())


def make(folder: Path, sizes: Mapping[str, Any], name: str, head: str) -> None:
    """Quantizes a Llama of random weights and saves it."""
    import unspool

    known = {key: value for key, value in sizes.items() if key != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": sizes["rope_theta"]}
    config = transformers.LlamaConfig(**known, rope_parameters=rope, tie_word_embeddings=True)
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    unspool.quantize(model, name, head=head)
    unspool.save(model, folder)


def time_in_kernels(model: Ours, prompt: Sequence[int], tokens: int) -> dict[str, float]:
    """Seconds per token, and of them those spent in our compiled products; medians."""
    inside: list[float] = []
    with _timed(inside):
        token, steps, shares = model.start(prompt), [], []
        for _ in range(tokens):
            inside.clear()
            start = time.perf_counter()
            token = model.step(token)
            steps.append(time.perf_counter() - start)
            shares.append(sum(inside))
    place = sorted(range(tokens), key=steps.__getitem__)[tokens // 2]
    return {"token_seconds": steps[place], "kernel_seconds": shares[place]}


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    """Lets every compiled product leave its seconds, whoever calls it."""
    from unspool.matmul import kernel

    multiply: Callable[..., None] = kernel.multiply

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        multiply(*arguments)
        seconds.append(time.perf_counter() - start)

    homes = [
        module
        for name, module in sys.modules.items()
        if name.startswith("unspool.") and getattr(module, "multiply", None) is multiply
    ]
    for home in homes:
        home.multiply = timed
    try:
        yield
    finally:
        for home in homes:
            home.multiply = multiply


def main() -> None:
    """Makes the checkpoint, or loads and measures it."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--make", type=json.loads, metavar="SIZES")
    options.add_argument("--format")
    options.add_argument("--head")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--prompts", type=int, nargs="+", default=[128])
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--repeats", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.make:
        make(given.folder, given.make, given.format, given.head)
        return
    model = Ours(given.folder)
    loaded = generation.memory()
    found = generation.measure(model, model.vocabulary, given.prompts, given.tokens, given.repeats)
    found["memory"] = {"before": BEFORE, "loaded": loaded, "after": generation.memory()}
    found["kernels"] = time_in_kernels(model, range(min(given.prompts)), given.tokens)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
