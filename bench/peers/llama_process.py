"""llama.cpp timed on a GGUF, in its own environment: prints one JSON document.

`python -m peers.llama_process FILE --threads 2 --prompts 128 512 --tokens 32 --repeats 2`. The C
functions are called as they are, through llama-cpp-python's bindings: no sampler, no text.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

import generation
import llama_cpp
import numpy as np


class Llama:
    """A model and a context of llama.cpp: a `generation.Model`."""

    def __init__(self, path: Path, threads: int, room: int) -> None:
        """Loads the file, for at most `room` tokens; all else is llama.cpp's own choice."""
        self.model = llama_cpp.llama_model_load_from_file(
            bytes(path), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch = room, room
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )

    def start(self, prompt: Sequence[int]) -> int:
        """Forgets what was before, reads a prompt, returns the most likely token after it."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        return self._read(prompt)

    def step(self, token: int) -> int:
        """Reads one more token, returns the most likely one after it."""
        return self._read([token])

    def _read(self, tokens: Sequence[int]) -> int:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        if llama_cpp.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp refused the tokens")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())


def main() -> None:
    """Loads, measures, prints."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("file", type=Path)
    options.add_argument("--threads", type=int, required=True)
    options.add_argument("--prompts", type=int, nargs="+", required=True)
    options.add_argument("--tokens", type=int, required=True)
    options.add_argument("--repeats", type=int, required=True)
    given = options.parse_args()
    llama_cpp.llama_backend_init()
    before = generation.memory()
    model = Llama(given.file, given.threads, max(given.prompts) + given.tokens)
    loaded = generation.memory()
    found = generation.measure(model, model.vocabulary, given.prompts, given.tokens, given.repeats)
    found["memory"] = {"before": before, "loaded": loaded, "after": generation.memory()}
    found["version"] = llama_cpp.__version__
    print(json.dumps(found))


if __name__ == "__main__":
    main()
