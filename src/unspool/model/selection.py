"""Which layers of a model are quantized: its linear layers, by name, head and routers apart.

Fused experts have layers once they are split (`model.experts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from unspool.errors import ModelError, WeightError
from unspool.model.experts import check_whole, fused_parameters, why_not
from unspool.model.linear import QuantizedLinear
from unspool.model.mixed import Mixed
from unspool.spec.catalog import parse
from unspool.spec.format import Format

ROUTERS = ("gate", "router", "shared_expert_gate")
"""Last parts of the names of layers that choose experts, or of what holds them (`router.layer`).
They stay as they are: a few thousand weights, where a small error sends a token to another expert.
"""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A fused expert weight that cannot be split into linear layers and stays dense; `why`."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    why: str


def plan(
    model: nn.Module,
    fmt: Format | str | Mixed,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Format | str | None = None,
) -> dict[str, Format]:
    """The format of every layer to quantize, by name, in the model's order.

    All `nn.Linear` layers count but the output head and routers. A pattern is a file-name pattern
    on the full name (`*.mlp.*`), or a regular expression searched in it (`re:layers\\.[0-3]\\.`).
    `include` keeps only layers that match one of its patterns, `exclude` drops those that match.
    `head` is the format of the output head, which otherwise stays as it is. `Mixed` formats name
    every selected layer, and no layer that the model lacks. The experts of a projection are
    quantized all or none.

    Raises ModelError where nothing is selected or a name is amiss, WeightError where a format does
    not fit a layer.
    """
    linears = linear_names(model)
    names = _matching(linears, include, exclude)
    if isinstance(fmt, Mixed):
        _check_names(fmt, names, linears)
        chosen = {name: fmt.formats[name] for name in names}
    else:
        chosen = dict.fromkeys(names, _named(fmt))
    check_whole(chosen, linears)
    if head is not None:
        chosen[head_name(model)] = _named(head)
    if not chosen:
        raise ModelError("nothing to quantize", found=_what_there_is(model, linears))
    for name, each in chosen.items():
        layer = model.get_submodule(name)
        check_fit(each, (int(layer.out_features), int(layer.in_features)), name)
    return chosen


def selected(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[str]:
    """The layers that `plan` gives a format, whatever that is; raises ModelError as it does."""
    linears = linear_names(model)
    names = _matching(linears, include, exclude)
    check_whole(names, linears)
    if not names:
        raise ModelError("nothing to quantize", found=_what_there_is(model, linears))
    return names


def _matching(linears: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    _check_patterns((*include, *exclude), linears)
    return [
        name
        for name in linears
        if (not include or matches(name, include)) and not matches(name, exclude)
    ]


def check_fit(fmt: Format, shape: tuple[int, int], where: str) -> None:
    """Raises WeightError where rotation, parameters or blocks more than double an `[n, k]` weight.

    Padding to whole tiles of the code does not count, nor sizes above the unit, which at most
    double.
    """
    n, k = shape
    rows, columns = fmt.padded(n, k)
    tile_rows, tile_columns = fmt.code.tile
    tiled = -(-n // tile_rows) * tile_rows * (-(-k // tile_columns) * tile_columns)
    if rows * columns <= 2 * tiled or (n >= fmt.row_unit and k >= fmt.column_unit):
        return
    raise WeightError(
        f"{fmt.name} does not fit the layer",
        where=where,
        found=f"{n} x {k} weights, padded to {rows} x {columns}",
        allowed="; or ".join(_ways_to_fit(fmt, n, k)),
    )


def _ways_to_fit(fmt: Format, n: int, k: int) -> list[str]:
    """Sizes that fit a format, a smaller rotation that fits the sizes, or leaving the layer out."""
    tile_rows, tile_columns = fmt.code.tile
    units = (("n", n, fmt.row_unit, tile_rows), ("k", k, fmt.column_unit, tile_columns))
    sizes = [
        f"{name} a multiple of {unit}" for name, size, unit, tile in units if size < unit > tile
    ]
    ways = [", ".join(sizes)]
    rotation = fmt.rotation
    sides = (k if rotation.input_size else 0) | (n if rotation.output_size else 0)
    divisor = sides & -sides  # the largest power of two in every rotated size
    if divisor < rotation.size:
        smaller = replace(rotation, size=divisor if divisor > 1 else 0)
        ways.append(f"a smaller rotation, e.g. {fmt.vary(rotation=smaller).name}")
    return [*ways, "exclude the layer"]


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
        and name.rpartition(".")[2] != "lm_head"
        and not {*name.split(".")[-2:]} & {*ROUTERS}
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
    """Expert weights fused into one 3-D parameter that cannot be split, and why."""
    return tuple(
        LeftOut(name=f"{name}.{own}", shape=tuple(p.shape), bytes=p.nbytes, why=reason)
        for name, module in model.named_modules()
        if "expert" in name and (fused := fused_parameters(module))
        if (reason := why_not(module)) is not None
        for own, p in fused
    )


def head_name(model: nn.Module) -> str:
    """The name of the output head; raises ModelError where there is none to quantize."""
    head = _output_head(model)
    for name, module in model.named_modules():
        wanted = module is head or (head is None and name.rpartition(".")[2] == "lm_head")
        if wanted and type(module) is nn.Linear:
            return name
    raise ModelError(
        "the model has no output head that is a linear layer", found=type(model).__name__
    )


def untie_head(model: nn.Module) -> None:
    """Ends the tying of head and embedding, so that one can be quantized without the other.

    The configuration says so too, or the next load would tie the embedding to nothing.
    """
    weight = f"{head_name(model)}.weight"
    for config in _configs(model):
        config.tie_word_embeddings = False
    tied = getattr(model, "all_tied_weights_keys", {})
    for target in [t for t, source in tied.items() if weight in (t, source)]:
        del tied[target]


def _check_names(mixed: Mixed, names: Sequence[str], linears: Sequence[str]) -> None:
    """Raises ModelError for a layer without a format, and for a format without a layer."""
    for what, found, allowed in (
        ("a layer that the model lacks", mixed.formats.keys() - set(linears), linears[:4]),
        ("no format for a layer", set(names) - mixed.formats.keys(), "a format, or --exclude it"),
    ):
        if found:
            raise ModelError(f"{what} in the plan", where=mixed.name, found=sorted(found)[:4],
                             allowed=allowed)  # fmt: skip


def _named(fmt: Format | str) -> Format:
    return parse(fmt) if isinstance(fmt, str) else fmt


def _output_head(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    found = find() if callable(find) else None
    return found if isinstance(found, nn.Module) else None


def _configs(model: nn.Module) -> list[Any]:
    """The configuration, and that of the text model inside a composite one."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return []
    return [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config]


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
