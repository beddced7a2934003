"""Find the linear layers of a model and replace them by quantized ones, one at a time.

Layers that read the same activation (query, key and value; gate and up; all experts) share its
rotation by construction: the signs depend on seed, side and index alone (`spec.rotation`), so two
layers of the same rotation and the same padded k rotate that activation alike. `LayerReport.rotation`
names both.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn

from unspool.encode.encode import encode
from unspool.errors import ModelError, WeightError
from unspool.model.linear import QuantizedLinear
from unspool.spec.catalog import parse
from unspool.spec.format import Format

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what comes next)."""

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Last parts of the names of layers that choose experts. They stay as they are: a few thousand
weights, where a small error sends a token to another expert."""

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


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A fused expert weight that is no linear layer and stays dense."""

    name: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """All layers that were quantized, and the fused weights that were not."""

    layers: tuple[LayerReport, ...]
    left_out: tuple[LeftOut, ...]

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
    fmt: Format | str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Format | str | None = None,
    strict: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Quantizes the linear layers of a model in place; see `plan` for which.

    Raises WeightError for a weight that is not finite, before the first layer is touched, and
    ModelError where nothing can be quantized. Fused expert weights stay dense and are named in a
    LeftOutWarning; with `strict` they are an error.
    """
    left_out = fused_experts(model)
    _report_left_out(left_out, strict)
    chosen = plan(model, fmt, include=include, exclude=exclude, head=head)
    for name in chosen:
        check_weight(_linear(model, name).weight, name)
    if head is not None:
        untie_head(model)
    layers = apply(model, chosen, threads=threads, progress=progress)
    return Report(layers=layers, left_out=left_out)


def plan(
    model: nn.Module,
    fmt: Format | str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Format | str | None = None,
) -> dict[str, Format]:
    """The format of every layer to quantize, by name, in the model's order.

    All `nn.Linear` layers count but the output head and routers. A pattern is a file-name pattern
    on the full name (`*.mlp.*`), or a regular expression searched in it (`re:layers\\.[0-3]\\.`).
    `include` keeps only layers that match one of its patterns, `exclude` drops those that match.
    `head` is the format of the output head, which otherwise stays as it is.
    """
    body = _named(fmt)
    linears = linear_names(model)
    _check_patterns((*include, *exclude), linears)
    chosen = {
        name: body
        for name in linears
        if (not include or matches(name, include)) and not matches(name, exclude)
    }
    if head is not None:
        chosen[head_name(model)] = _named(head)
    if not chosen:
        raise ModelError("nothing to quantize", found=_what_there_is(model, linears))
    return chosen


def apply(
    model: nn.Module,
    chosen: Mapping[str, Format],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[LayerReport, ...]:
    """Replaces the named layers one after the other; each dense weight is freed at once."""
    reports = []
    for done, (name, fmt) in enumerate(chosen.items()):
        if progress is not None:
            progress(done, len(chosen), name)
        layer, report = _quantized(_linear(model, name), name, fmt, threads)
        model.set_submodule(name, layer)
        reports.append(report)
    if progress is not None:
        progress(len(chosen), len(chosen), "")
    return tuple(reports)


def linear_names(model: nn.Module) -> list[str]:
    """Names of the linear layers that may be quantized: not the head, not routers.

    Subclasses of nn.Linear are left alone: their forward may do more than multiply.
    """
    head = _output_head(model)
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not head
        and name.rpartition(".")[2] not in ("lm_head", *ROUTERS)
    ]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a layer's name matches one of the patterns (see `plan`)."""
    return any(
        re.search(pattern[3:], name) is not None
        if pattern.startswith("re:")
        else fnmatchcase(name, pattern)
        for pattern in patterns
    )


def fused_experts(model: nn.Module) -> tuple[LeftOut, ...]:
    """Expert weights fused into one 3-D parameter, as in Qwen3-MoE: no linear layers."""
    return tuple(
        LeftOut(name=name, shape=tuple(p.shape), bytes=p.nbytes)
        for name, p in model.named_parameters()
        if p.ndim == 3 and "expert" in name
    )


def head_name(model: nn.Module) -> str:
    """The name of the output head; raises ModelError where there is none to quantize."""
    head = _output_head(model)
    for name, module in model.named_modules():
        if module is head or (head is None and name.rpartition(".")[2] == "lm_head"):
            if type(module) is nn.Linear:
                return name
    raise ModelError(
        "the model has no output head that is a linear layer", found=type(model).__name__
    )


def untie_head(model: nn.Module) -> None:
    """Ends the tying of head and embedding, so that one can be quantized without the other.

    The configuration says so too, or the next load would tie the embedding to a weight that is gone.
    """
    weight = f"{head_name(model)}.weight"
    for config in _configs(model):
        config.tie_word_embeddings = False
    tied = getattr(model, "all_tied_weights_keys", {})
    for target in [t for t, source in tied.items() if weight in (t, source)]:
        del tied[target]


def check_weight(weight: torch.Tensor, where: str) -> None:
    """Raises WeightError naming the first element of a weight that is NaN or infinite."""
    if weight.device.type == "meta":
        raise WeightError("the weight is not loaded", where=where, found="device meta")
    weight = weight.detach()
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise WeightError(
            "a weight is not finite",
            where=f"{where} row {row}, column {column}",
            found=float(weight[row, column]),
        )


def _quantized(
    linear: nn.Linear, name: str, fmt: Format, threads: int | None
) -> tuple[QuantizedLinear, LayerReport]:
    start = time.perf_counter()
    weight = np.ascontiguousarray(linear.weight.detach().to("cpu", torch.float32).numpy())
    matrix = encode(weight, fmt, threads=threads, where=name)
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


def _named(fmt: Format | str) -> Format:
    return parse(fmt) if isinstance(fmt, str) else fmt


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise ModelError("not a linear layer", where=name, found=type(module).__name__)
    return module


def _output_head(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    found = find() if callable(find) else None
    return found if isinstance(found, nn.Module) else None


def _configs(model: nn.Module) -> list[object]:
    """The configuration, and that of the text model inside a composite one."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    return [c for c in (config, text) if c is not None]


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    """A pattern that matches nothing is a typing error, and would quantize too much or nothing."""
    for pattern in patterns:
        try:
            found = any(matches(name, (pattern,)) for name in names)
        except re.error as error:
            raise ModelError("not a regular expression", where=pattern, found=str(error)) from error
        if not found:
            raise ModelError(
                "a pattern matches no linear layer",
                found=pattern,
                allowed=f"patterns like '*.{names[0].rpartition('.')[2]}'" if names else None,
            )


def _what_there_is(model: nn.Module, linears: Sequence[str]) -> str:
    if linears:
        return f"{len(linears)} linear layers, none of them selected by include and exclude"
    kinds = [type(module).__name__ for module in model.modules()]
    if "Conv1D" in kinds:
        count = kinds.count("Conv1D")
        return f"{count} transformers Conv1D layers and no nn.Linear; Conv1D is not supported"
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        return "a model that is quantized already"
    return f"{type(model).__name__} without any nn.Linear"


def _report_left_out(left_out: Sequence[LeftOut], strict: bool) -> None:
    if not left_out:
        return
    total = sum(weight.bytes for weight in left_out)
    names = ", ".join(weight.name for weight in left_out[:4])
    more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
    what = f"{len(left_out)} fused expert weights ({total:,} bytes) are no linear layers: {names}{more}"
    if strict:
        raise ModelError(what, allowed="models without fused experts, or strict=False")
    warnings.warn(f"{what}; they stay as they are", LeftOutWarning, stacklevel=3)
