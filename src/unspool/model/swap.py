"""Find the linear layers of a model, those of fused experts too, and replace them by quantized
ones, one at a time.

Layers that read the same activation (query, key and value; gate and up; all experts) share its
rotation by construction: the signs depend on seed, side and index alone (`spec.rotation`), so two
layers of the same rotation and the same padded k rotate that activation alike.
`LayerReport.rotation` names both.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from unspool.encode.encode import PASSES, encode, not_finite
from unspool.encode.ldlq import Calibration
from unspool.encode.viterbi import Search, viterbi
from unspool.errors import ModelError, WeightError
from unspool.model.blocks import blocks_of
from unspool.model.calibrate import ERROR, Plan, both_streams, calibrate_block, weigh
from unspool.model.coverage import Coverage, Reach, coverage
from unspool.model.device_search import search_on
from unspool.model.experts import settle_experts, split_experts
from unspool.model.linear import QuantizedLinear
from unspool.model.mixed import Mixed
from unspool.model.progress import Progress
from unspool.model.selection import LeftOut, fused_experts, plan, untie_head
from unspool.model.siblings import join_siblings
from unspool.pack.matrix import CodedMatrix
from unspool.spec.format import Format

ROWS = 1024
"""Rows of a weight compared at a time: bounds the float64 copies to 8 KiB per column."""


class LeftOutWarning(UserWarning):
    """Weights that look worth quantizing and cannot be, by name and size."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of one layer."""

    name: str
    format: str
    #: (n, k)
    shape: tuple[int, int]
    weights: int
    bits_per_weight: float
    bytes: int
    #: squared error over squared weights
    relative_error: float
    seconds: float
    #: rotation and padded k: layers with the same text share the rotation of their activation
    rotation: str
    #: that it was calibrated on; None without calibration
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All layers that were quantized, and the fused weights that were not."""

    layers: tuple[LayerReport, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def coverage(self) -> Coverage | None:
        """Tokens that the experts were calibrated on; None without experts or calibration."""
        return coverage(
            Reach(name=layer.name, columns=layer.shape[1], tokens=layer.tokens)
            for layer in self.layers
            if layer.tokens is not None
        )

    @property
    def bytes(self) -> int:
        """Stored bytes of all quantized layers."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over all quantized layers."""
        return 8 * self.bytes / sum(layer.weights for layer in self.layers)


def quantize(
    model: nn.Module,
    fmt: Format | str | Mixed,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Format | str | None = None,
    strict: bool = False,
    passes: int = PASSES,
    threads: int | None = None,
    progress: Progress | None = None,
    calibration: torch.Tensor | None = None,
    how: Calibration | None = None,
    importance: bool = False,
    calibration_dtype: torch.dtype = torch.float32,
    tune_blocks: int = 0,
    unreached: str = ERROR,
    device: str | None = None,
) -> Report:
    """Quantizes the linear layers of a model in place; see `selection.plan` for which.

    `calibration`: windows of token ids `[count, tokens]`; errors are then made where these texts
    notice them least (`model.calibrate`), `how` says with which effort; with `importance` tokens
    count by what the loss notices of them (`model.importance`); `calibration_dtype`, float32 or
    bfloat16, is what the text walks through the blocks in; `tune_blocks` steps then train the
    scales of each block together (`model.tune_block`); `unreached`, "error" or "plain", is what
    becomes of layers that no token reaches. The head is not calibrated. `device` is where trellises
    of layers without calibration are searched (`model.device_search`).

    Raises WeightError for a weight that is not finite, before the first layer is touched, and
    ModelError where nothing can be quantized. Fused expert weights that cannot be split into layers
    stay dense and are named in a LeftOutWarning; with `strict` they are an error.
    """
    search, left_out = search_on(device), fused_experts(model)
    _report_left_out(left_out, strict)
    chosen = _planned(model, partial(plan, fmt=fmt, include=include, exclude=exclude, head=head))
    if head is not None:
        untie_head(model)
    told = Told(progress, len(chosen))
    layers: tuple[LayerReport, ...] = ()
    if calibration is not None:
        steps = Plan(
            formats=chosen, how=how or Calibration(passes=passes), threads=threads,
            importance=importance, dtype=calibration_dtype, tune=tune_blocks, unreached=unreached,
        )  # fmt: skip
        layers = apply_calibrated(model, steps, calibration, told)
        chosen = {name: fmt for name, fmt in chosen.items() if name not in told.names}
    layers += apply(model, chosen, told, passes=passes, threads=threads, search=search)
    join_siblings(model)
    return Report(layers=layers, left_out=left_out)


def _planned(
    model: nn.Module, select: Callable[[nn.Module], dict[str, Format]]
) -> dict[str, Format]:
    """What is selected and can be quantized; experts are split where they are selected."""
    fused, chosen = split_experts(model), {}
    try:
        found = select(model)
        for name in found:
            check_weight(_linear(model, name).weight, name)
        chosen = found
    finally:
        settle_experts(model, fused, chosen)
    return chosen


class Told:
    """Progress over layers that several functions share."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        """`progress` is told of every layer, and of the end."""
        self._progress, self._total = progress, total
        self.names: set[str] = set()

    def begin(self, name: str) -> None:
        """A layer is next; "" when all are done."""
        if self._progress is not None:
            self._progress(len(self.names), self._total, name)

    def done(self, name: str) -> None:
        """A layer is finished."""
        self.names.add(name)
        if len(self.names) == self._total:
            self.begin("")


def apply(
    model: nn.Module,
    chosen: Mapping[str, Format],
    told: Told,
    *,
    passes: int = PASSES,
    threads: int | None = None,
    search: Search = viterbi,
) -> tuple[LayerReport, ...]:
    """Replaces the named layers one after the other; each dense weight is freed at once."""
    reports = []
    for name, fmt in chosen.items():
        told.begin(name)
        matrix_of = partial(
            encode, fmt=fmt, passes=passes, threads=threads, where=name, search=search
        )
        reports.append(_replace(model, name, matrix_of))
        told.done(name)
    return tuple(reports)


def apply_calibrated(
    model: nn.Module, steps: Plan, windows: torch.Tensor, told: Told
) -> tuple[LayerReport, ...]:
    """Replaces the layers of all blocks, each calibrated on what those before it give."""
    blocks, reports = blocks_of(model), []
    first = model.get_submodule(blocks.names[0])
    streams = both_streams(model, first, windows, dtype=steps.dtype)
    if steps.importance:
        weigh(streams, model, blocks, windows, steps.threads)
    for place, prefix in enumerate(blocks.names):
        told.begin(prefix)
        for found in calibrate_block(blocks.read(place), prefix, streams, steps):
            report = _replace(model, found.name, partial(_given, found.matrix))
            reports.append(replace(report, tokens=found.tokens))
            told.done(found.name)
            told.begin(found.name)
    return tuple(reports)


def _given(matrix: CodedMatrix, weight: np.ndarray) -> CodedMatrix:
    """A matrix that was made already."""
    return matrix


def _replace(
    model: nn.Module, name: str, matrix_of: Callable[[np.ndarray], CodedMatrix]
) -> LayerReport:
    layer, report = _quantized(_linear(model, name), name, matrix_of)
    model.set_submodule(name, layer)
    return report


def check_weight(weight: torch.Tensor, where: str) -> None:
    """Raises WeightError naming the first element of a weight that is NaN or infinite."""
    if weight.device.type == "meta":
        raise WeightError("the weight is not loaded", where=where, found="device meta")
    weight = weight.detach()
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise not_finite(float(weight[row, column]), row, column, where)


def _quantized(
    linear: nn.Linear, name: str, matrix_of: Callable[[np.ndarray], CodedMatrix]
) -> tuple[QuantizedLinear, LayerReport]:
    start = time.perf_counter()
    weight = np.ascontiguousarray(linear.weight.detach().to("cpu", torch.float32).numpy())
    matrix = matrix_of(weight)
    fmt = matrix.format
    layer = QuantizedLinear.from_matrix(matrix, linear.bias)
    layer.train(linear.training)
    n, k = matrix.shape
    report = LayerReport(
        name=name,
        format=fmt.name,
        shape=(n, k),
        weights=n * k,
        bits_per_weight=8 * matrix.nbytes / (n * k),
        bytes=matrix.nbytes,
        relative_error=_relative_error(weight, layer.decode().numpy()),
        seconds=time.perf_counter() - start,
        rotation=f"{fmt.rotation.name}/{fmt.padded(n, k)[1]}",
    )
    return layer, report


def _relative_error(weight: np.ndarray, decoded: np.ndarray) -> float:
    """||weight - decoded||^2 / ||weight||^2 in float64; 0 for a zero weight decoded to zeros."""
    error = power = 0.0
    for start in range(0, len(weight), ROWS):
        rows = weight[start : start + ROWS].astype(np.float64)
        difference = rows - decoded[start : start + ROWS]
        error += float(np.vdot(difference, difference))
        power += float(np.vdot(rows, rows))
    if power:
        return error / power
    return 0.0 if error == 0 else float("inf")


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise ModelError("not a linear layer", where=name, found=type(module).__name__)
    return module


def _report_left_out(left_out: Sequence[LeftOut], strict: bool) -> None:
    if not left_out:
        return
    total = sum(weight.bytes for weight in left_out)
    names = ", ".join(weight.name for weight in left_out[:4])
    more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
    size = f"{len(left_out)} fused expert weights ({total:,} bytes)"
    what = f"{size} cannot be split into layers, {left_out[0].why}: {names}{more}"
    if strict:
        raise ModelError(what, allowed="models whose experts can be split, or strict=False")
    warnings.warn(f"{what}; they stay as they are", LeftOutWarning, stacklevel=3)
