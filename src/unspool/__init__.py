"""Few-bit LLM weights that unspool straight into tensor-core floats.

    model = unspool.load("folder-or-hub-id")          any causal language model, or a checkpoint
    report = unspool.quantize(model, "t3")            in place, layer by layer
    unspool.save(model, "out", source="folder")       a checkpoint
    model, tokenizer = unspool.load("out"), unspool.load_tokenizer("out")
    unspool.parse("nvfp4")                            a format, by name

Importing unspool imports nothing else and touches no device; each name above does at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unspool.checkpoint.save import save
    from unspool.integrations.transformers import load, quantize
    from unspool.model.load import load_tokenizer
    from unspool.spec.catalog import parse

__version__ = "0.1.0"

__all__ = ["load", "load_tokenizer", "parse", "quantize", "save"]

_HOMES = {
    "load": "unspool.integrations.transformers",
    "load_tokenizer": "unspool.model.load",
    "parse": "unspool.spec.catalog",
    "quantize": "unspool.integrations.transformers",
    "save": "unspool.checkpoint.save",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unspool' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
