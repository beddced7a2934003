"""Products as PyTorch operators, `unspool::linear` and `unspool::experts`: what torch.compile and
autograd see.

A layer is named by a number: the operator's arguments are tensors and numbers, and what a layer
holds (codes in the kernel's order) is neither. Numbers are valid in their process while the layer
lives; nothing stores them. torch.compile guards on them: a function that is compiled once for many
layers (block by block) is compiled anew for each, up to PyTorch's limit of recompilations; a model
that is compiled whole is one graph.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Protocol

import torch
import torch.utils._python_dispatch

from unspool.errors import ModelError


class Multiplies(Protocol):
    """A layer as the operator knows it."""

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., k]` to `[..., n]` in x's dtype."""


class Mixes(Protocol):
    """A module of experts as the operator knows it."""

    def mix(self, x: torch.Tensor, choices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """`[m, k]`, experts and what they count `[m, top]`, to `[m, k]` in x's dtype."""


_layers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def number(layer: Multiplies | Mixes) -> int:
    """A number by which the operator finds the layer, as long as it lives."""
    found = next(_numbers)
    _layers[found] = layer
    return found


def is_recorded(x: torch.Tensor) -> bool:
    """Whether something watches which operators run: a compiler, a tracer, autograd."""
    return (
        torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and x.requires_grad)
        or torch.jit.is_tracing()
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    )


@torch.library.custom_op("unspool::linear", mutates_args=())
def linear(x: torch.Tensor, layer: int, n: int) -> torch.Tensor:
    """x `[..., k]` times the transposed weight of the numbered layer: `[..., n]` in x's dtype."""
    found: torch.Tensor = _layers[layer].multiply(x)
    return found


@linear.register_fake
def _(x: torch.Tensor, layer: int, n: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n))


@torch.library.custom_op("unspool::experts", mutates_args=())
def experts(
    x: torch.Tensor, choices: torch.Tensor, weights: torch.Tensor, layer: int
) -> torch.Tensor:
    """Every row of x `[m, k]` through the experts of the numbered module that are chosen for it,
    summed by weights `[m, top]`: `[m, k]` in x's dtype."""
    found: torch.Tensor = _layers[layer].mix(x, choices, weights)
    return found


@experts.register_fake
def _(x: torch.Tensor, choices: torch.Tensor, weights: torch.Tensor, layer: int) -> torch.Tensor:
    return x.new_empty(x.shape)


def _backward(ctx: Any, *gradients: torch.Tensor) -> Any:
    raise ModelError(
        "no gradient flows through a quantized layer", allowed="torch.no_grad(), inference"
    )


linear.register_autograd(_backward)
experts.register_autograd(_backward)
