"""What is timed of a language model, and the memory of its process; standard library only.

Processes of ours and of peers, in environments of their own, run this same code.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

WARM_UP = 16
"""Tokens of the prompt, and then tokens generated, before anything is timed."""


class Model(Protocol):
    """A model with a cache of keys and values."""

    def start(self, prompt: Sequence[int]) -> int:
        """Forgets what was before, reads a prompt, returns the most likely token after it."""
        ...

    def step(self, token: int) -> int:
        """Reads one more token, returns the most likely one after it."""
        ...


def generate(model: Model, prompt: Sequence[int], count: int) -> tuple[float, list[float]]:
    """Seconds to the first token after a prompt, and of each of `count` more."""
    start = time.perf_counter()
    token = model.start(prompt)
    first, steps = time.perf_counter() - start, []
    for _ in range(count):
        start = time.perf_counter()
        token = model.step(token)
        steps.append(time.perf_counter() - start)
    return first, steps


def measure(
    model: Model, vocabulary: int, prompts: Sequence[int], tokens: int, repeats: int
) -> dict[str, Any]:
    """Seconds to the first token by length of prompt, and seconds per token after the shortest."""
    draw = random.Random(0)
    texts = {length: draw.choices(range(vocabulary), k=length) for length in sorted(prompts)}
    generate(model, draw.choices(range(vocabulary), k=WARM_UP), WARM_UP)
    first: dict[int, list[float]] = {length: [] for length in texts}
    steps: list[float] = []
    for _ in range(repeats):
        for length, text in texts.items():
            seconds, more = generate(model, text, tokens if length == min(texts) else 0)
            first[length].append(seconds)
            steps += more
    return {"first_token_seconds": first, "token_seconds": steps}


def memory() -> dict[str, int]:
    """Resident bytes of this process now and at most, and its share of what others map too."""
    rollup = _sizes(Path("/proc/self/smaps_rollup"))
    status = _sizes(Path("/proc/self/status"))
    return {"resident": rollup["Rss"], "share": rollup["Pss"], "peak": status["VmHWM"]}


def _sizes(listing: Path) -> dict[str, int]:
    """The lines `name: 123 kB` of a listing, in bytes."""
    found = {}
    for line in listing.read_text().splitlines():
        name, _, value = line.partition(":")
        parts = value.split()
        if len(parts) == 2 and parts[1] == "kB":
            found[name] = int(parts[0]) << 10
    return found
