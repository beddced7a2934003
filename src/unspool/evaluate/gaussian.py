"""Distortion on a unit Gaussian: what a format costs in quality before any model is at hand.

The figures are measured, never typed in: `data/distortion.json` is written by `measure_all` (the
command `unspool formats --measure`) and keyed by the content hash of the declaration, so that a
format that changed is measured again instead of keeping a figure that is no longer its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import resources

import numpy as np
from jaxtyping import Float32

from unspool import __version__
from unspool.encode.encode import PASSES, encode
from unspool.matmul.reference import decode
from unspool.spec.format import Format

SHAPE = (64, 4096)
"""262,144 weights: the standard error of the mean squared error is 0.3 % or less."""

SEED = 20261123

_FILE = resources.files("unspool") / "data" / "distortion.json"


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """A measured mean squared error on unit Gaussian weights, and how it was measured."""

    format: str
    gaussian_mse: float
    weights: int = SHAPE[0] * SHAPE[1]
    seed: int = SEED
    passes: int = PASSES
    version: str = __version__


def gaussian(shape: tuple[int, int], seed: int = SEED) -> Float32[np.ndarray, "n k"]:
    """Independent unit Gaussian weights, the same on every machine."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def measure(fmt: Format) -> Distortion:
    """Encodes unit Gaussian weights as models are encoded: rings, stored scales, tables and all.

    The mean squared error is over the sample's own mean square, which takes out its 0.3 % of
    chance.
    """
    weight = gaussian(SHAPE)
    difference = (weight - decode(encode(weight, fmt))).astype(np.float64)
    mse = np.mean(difference**2) / np.mean(weight.astype(np.float64) ** 2)
    return Distortion(format=fmt.name, gaussian_mse=float(f"{mse:.5g}"))


def distortion(fmt: Format) -> Distortion:
    """The recorded distortion of a format, or one measured now where none is recorded."""
    return _recorded().get(fmt.content_hash) or _measured_once(fmt)


def measure_all(
    formats: Iterable[Format], progress: Callable[[Distortion], None] = lambda measured: None
) -> list[Distortion]:
    """Measures every format and rewrites the record with what was found."""
    found = {}
    for fmt in formats:
        found[fmt.content_hash] = measure(fmt)
        progress(found[fmt.content_hash])
    text = json.dumps({key: asdict(entry) for key, entry in found.items()}, indent=1)
    with resources.as_file(_FILE) as path:
        path.write_text(text + "\n", encoding="utf-8")
    _recorded.cache_clear()
    return list(found.values())


def recorded_hashes() -> set[str]:
    """Content hashes of all formats with a recorded distortion."""
    return set(_recorded())


@functools.cache
def _recorded() -> dict[str, Distortion]:
    entries = json.loads(_FILE.read_text(encoding="utf-8")) if _FILE.is_file() else {}
    return {key: Distortion(**entry) for key, entry in entries.items()}


@functools.lru_cache(maxsize=256)
def _measured_once(fmt: Format) -> Distortion:
    return measure(fmt)
