"""What a quantization will take: time from rates measured here and now, memory by calculation.

Encoding is timed on Gaussian weights at small sizes; calibration's own passes on the model's first
block and a few windows of the text, or of random tokens.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unspool import native
from unspool.encode.encode import PASSES, STRIP, encode
from unspool.encode.ldlq import Calibration, encode_calibrated
from unspool.encode.moments import Moments
from unspool.encode.viterbi import Search, viterbi
from unspool.matmul.reference import decode
from unspool.model.blocks import Stored, block_names
from unspool.model.calibrate import SUMS_BYTES, both_streams, pass_block, workers
from unspool.model.device_search import search_on
from unspool.model.expert_names import projection_of
from unspool.model.importance import Tail, backward, forward
from unspool.model.load import unfilled_model
from unspool.model.sums import CHUNKS, TOGETHER, sums_bytes
from unspool.model.tune_block import BATCH
from unspool.spec.format import Format

if TYPE_CHECKING:
    import torch
    from torch import nn

ENOUGH = 0.3
"""Seconds after which a rate is taken as measured."""

WIDTHS = (256, 1024)
"""Columns of the calibrated layers that are timed: what goes with k and with its powers differs."""

FEW_ROWS, MANY_ROWS = 64, 512

STRIP_BYTES = 50 * STRIP
"""Beside a strip of weights, as the encoder's own documentation has it."""

MOMENT_BYTES = 24
"""Times k x k while a layer is encoded: its moments in float32 (and, of weighed tokens, others),
turned twice in float64, then what was turned in float32, and the feedback in both."""

LOGIT_COPIES = 5
"""Of a window's float32 logits at a time: they, logarithms of probabilities, gradients of both."""

KIB = 1024
"""The unit in which Linux tells a process's largest memory so far."""

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of a run on this machine, by that many threads.

    encoding_seconds    of all layers
    passes_seconds      of the calibration text through the model's blocks; 0 without one
    importance_seconds  of the sweep through all blocks and back; 0 where tokens are not weighed
    tuning_seconds      of training the scales of blocks; 0 without steps
    peak_bytes          of the process's memory, what Python and torch take themselves included
    weights_per_second  of encoding
    tokens_per_second   of those passes, through all blocks
    threads
    """

    encoding_seconds: float
    passes_seconds: float
    importance_seconds: float
    tuning_seconds: float
    peak_bytes: int
    weights_per_second: float
    tokens_per_second: float | None
    threads: int

    def to_json(self) -> dict[str, float | None]:
        """All fields and the sum of the seconds."""
        seconds = sum(each for name, each in vars(self).items() if name.endswith("_seconds"))
        return {"seconds": seconds, **vars(self)}


def estimate(
    source: Path,
    model: nn.Module,
    formats: Mapping[str, Format],
    windows: torch.Tensor | None,
    *,
    streamed: bool,
    passes: int = PASSES,
    threads: int | None = None,
    importance: bool = False,
    calibration_dtype: str = "float32",
    tune_blocks: int = 0,
    device: str | None = None,
) -> Estimate:
    """The estimate for layers of a model that has its parameters on the meta device.

    `windows`: calibration token ids `[count, tokens]`; `streamed`: a block at a time in memory;
    `device`: where the trellises of layers that are not calibrated are searched.
    """
    count, before = native.threads(threads), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    by_format, search = _by_format(model, formats), search_on(device)
    seconds = sum(
        sum(n * k for n, k in shapes) * plain_seconds(fmt, passes, count, search)
        if windows is None
        else calibrated_seconds(fmt, shapes, passes, count)
        for fmt, shapes in by_format.items()
    )
    walked = 0.0
    if windows is not None:
        walked = pass_seconds(source, windows, count, calibration_dtype)
    added = added_bytes(model, formats, windows, streamed=streamed, importance=importance)
    swept, sweep_bytes = 0.0, 0
    if windows is not None and importance:
        swept = importance_seconds(source, windows, count)
        sweep_bytes = importance_bytes(model, windows, count)
    tuned = 0.0
    if windows is not None and tune_blocks:
        tuned = tuning_seconds(source, windows, count, tune_blocks)
    weights = sum(n * k for shapes in by_format.values() for n, k in shapes)
    return Estimate(
        encoding_seconds=seconds,
        passes_seconds=walked,
        importance_seconds=swept,
        tuning_seconds=tuned,
        peak_bytes=before * KIB + max(added, sweep_bytes),
        weights_per_second=weights / seconds,
        tokens_per_second=windows.numel() / walked if windows is not None else None,
        threads=count,
    )


def _by_format(model: nn.Module, formats: Mapping[str, Format]) -> dict[Format, Shapes]:
    found: dict[Format, list[tuple[int, int]]] = {}
    for name, fmt in formats.items():
        n, k = model.get_submodule(name).weight.shape
        found.setdefault(fmt, []).append((n, k))
    return dict(found)


def plain_seconds(fmt: Format, passes: int, threads: int, search: Search = viterbi) -> float:
    """Seconds per weight of encoding without calibration, tried on more weights until it lasts."""
    dice, rows = np.random.default_rng(0), FEW_ROWS
    how = {"passes": passes, "threads": threads, "search": search}
    weight = dice.standard_normal((fmt.row_unit, WIDTHS[0]), np.float32)
    _there_and_back(weight, fmt, **how)  # tables and devices that are set up once
    while True:
        weight = dice.standard_normal((rows, WIDTHS[-1]), np.float32)
        seconds = _seconds(partial(_there_and_back, weight, fmt, **how))
        if seconds > ENOUGH or weight.size >= STRIP:
            return seconds / weight.size
        rows *= 4


def _there_and_back(weight: np.ndarray, fmt: Format, **how: Any) -> None:
    """What becomes of a layer: it is encoded, and decoded to see how far off it is."""
    decode(encode(weight, fmt, **how))


def calibrated_seconds(fmt: Format, shapes: Shapes, passes: int, threads: int) -> float:
    """Seconds of encoding layers `[n, k]` with calibration.

    A layer takes a k + b k^3 (tables, factorization) + c n k + d n k^2 (search, feedback); the
    four come from two heights at two widths, none of them below zero.
    """
    how = Calibration(passes=passes)
    calibrated_time(fmt, FEW_ROWS, WIDTHS[0], how, threads)  # tables that are made once
    few = [calibrated_time(fmt, FEW_ROWS, k, how, threads) for k in WIDTHS]
    slow = few[1] > 3 * ENOUGH
    if slow:  # so the search is nearly all of it
        per_weight = few[1] / (FEW_ROWS * WIDTHS[1])
        return sum(n * k for n, k in shapes) * per_weight
    many = [calibrated_time(fmt, MANY_ROWS, k, how, threads) for k in WIDTHS]
    rows = [max(0.0, (m - f) / (MANY_ROWS - FEW_ROWS)) for f, m in zip(few, many, strict=True)]
    fixed = [max(0.0, f - FEW_ROWS * r) for f, r in zip(few, rows, strict=True)]
    a, b = _powers(fixed, 3)
    c, d = _powers(rows, 2)
    return sum(a * k + b * k**3 + n * (c * k + d * k**2) for n, k in shapes)


def _powers(times: Sequence[float], power: int) -> tuple[float, float]:
    """The a, b >= 0 with a k + b k^power nearest to the times at both widths."""
    (first, last), (short, long) = WIDTHS, times
    b = max(0.0, (long / last - short / first) / (last ** (power - 1) - first ** (power - 1)))
    return max(0.0, long / last - b * last ** (power - 1)), b


def calibrated_time(fmt: Format, n: int, k: int, how: Calibration, threads: int) -> float:
    """Seconds of one calibrated layer of Gaussian weights and inputs, with drift."""
    dice = np.random.default_rng(0)
    inputs = dice.standard_normal((2 * k, k))
    weight = dice.standard_normal((n, k), np.float32)
    moments = Moments(inputs=inputs.T @ inputs, drift=np.zeros((n, k)))

    def run() -> None:
        matrix = encode_calibrated(weight, fmt, moments, how=how, threads=threads)
        decode(matrix)  # for the layers after it
        decode(matrix)  # to see how far off it is

    return _seconds(run)


def pass_seconds(source: Path, windows: torch.Tensor, threads: int, dtype: str) -> float:
    """Seconds of the passes of all windows through all blocks, from one block and few windows."""
    import torch

    model = unfilled_model(source)
    stored = Stored(model, source)
    blocks, few = stored.blocks(), windows[: 2 * threads]
    with stored.without_blocks():
        first = model.get_submodule(blocks.names[0])
        streams = both_streams(model, first, few, dtype=getattr(torch, dtype))
    block = blocks.read(0)
    pass_block(block, streams, threads)  # torch sets itself up
    seconds = _seconds(lambda: pass_block(block, streams, threads))
    return seconds * len(windows) / len(few) * len(blocks.names)


def importance_seconds(source: Path, windows: torch.Tensor, threads: int) -> float:
    """Seconds of finding the tokens' importance, from one block and few windows."""
    few, model = windows[: 2 * threads], unfilled_model(source)
    stored = Stored(model, source)
    names, seconds = stored.blocks().names, both_ways_seconds(source, few, threads)
    with stored.without_blocks(), workers(threads) as each:
        hidden = both_streams(model, model.get_submodule(names[0]), few).original
        with Tail(model, names) as tail:
            seconds = seconds * len(names) + _seconds(
                lambda: list(each(lambda i: tail.gradient(hidden[i], few[i]), range(len(few))))
            )
    return seconds * len(windows) / len(few)


def tuning_seconds(source: Path, windows: torch.Tensor, threads: int, steps: int) -> float:
    """Seconds of training the scales of all blocks, from one block and few windows."""
    few = windows[: 2 * threads]
    blocks = len(block_names(unfilled_model(source)))
    batch = min(BATCH, len(windows))
    return both_ways_seconds(source, few, threads) / len(few) * batch * steps * blocks


def both_ways_seconds(source: Path, windows: torch.Tensor, threads: int) -> float:
    """Seconds of windows through the first block and back."""
    model = unfilled_model(source)
    stored = Stored(model, source)
    blocks = stored.blocks()
    block = blocks.read(0)
    with stored.without_blocks(), workers(threads) as each:
        streams = both_streams(model, model.get_submodule(blocks.names[0]), windows)
        hidden, call = streams.original, streams.call

        def there_and_back() -> None:
            forward(block, hidden, call, each)
            backward(block, hidden, call, list(hidden), each)  # any gradients take as long

        there_and_back()  # torch sets itself up
        return _seconds(there_and_back)


def importance_bytes(model: nn.Module, windows: torch.Tensor, threads: int) -> int:
    """Bytes of weights, logits and hidden states of a chunk while importance is found."""
    names, (count, tokens) = block_names(model), windows.shape
    vocabulary, width = model.get_input_embeddings().weight.shape
    inside = [4 * sum(p.numel() for p in model.get_submodule(n).parameters()) for n in names]
    outside = sum(p.numel() * (p.element_size() + 4) for p in model.parameters())
    outside -= sum(
        p.numel() * (p.element_size() + 4)
        for n in names
        for p in model.get_submodule(n).parameters()
    )
    logits = 4 * LOGIT_COPIES * threads * tokens * vocabulary
    hidden = 4 * -(-count // CHUNKS) * tokens * width * (len(names) + 2)
    return outside + max(max(inside), logits) + hidden


def added_bytes(
    model: nn.Module,
    formats: Mapping[str, Format],
    windows: torch.Tensor | None,
    *,
    streamed: bool,
    importance: bool = False,
) -> int:
    """Bytes of weights, hidden states and moments at the worst moment, by calculation."""
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in formats}
    coded = sum(formats[name].stored_bits(*shape) for name, shape in shapes.items()) // 8
    n, k = (max(shape[side] for shape in shapes.values()) for side in (0, 1))
    layer = STRIP_BYTES + 12 * n * k  # in float32, and the error found in float64
    if not streamed:
        return sum(p.nbytes for p in model.parameters()) + coded + layer
    names = block_names(model)
    blocks = [4 * sum(p.numel() for p in model.get_submodule(name).parameters()) for name in names]
    if windows is None:
        return max(blocks) + coded + layer
    width = model.get_input_embeddings().weight.shape[1]
    hidden = 2 * 4 * windows.numel() * width
    moments = k * k * (MOMENT_BYTES + 4 * importance) + 16 * n * k
    moments += 3 * 4 * TOGETHER * k  # what some windows give, one by one and together
    moments += _experts_bytes(shapes, importance)
    outside = sum(p.nbytes for p in model.parameters()) - sum(
        p.nbytes for name in names for p in model.get_submodule(name).parameters()
    )
    return max(outside, 2 * max(blocks) + moments + STRIP_BYTES) + hidden + coded


def _experts_bytes(shapes: Mapping[str, tuple[int, int]], importance: bool) -> int:
    """Bytes of the sums that are made in one pass for the experts of a projection."""
    of_projection: dict[str, int] = {}
    for name, shape in shapes.items():
        projection = projection_of(name)
        if projection is not None:
            total = of_projection.get(projection, 0) + 2 * sums_bytes(shape, importance)
            of_projection[projection] = min(total, SUMS_BYTES)
    return max(of_projection.values(), default=0)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
