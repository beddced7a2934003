"""Layers that read the same activation: one call makes the products of all of them.

Their activation is then rotated and rounded once, and their rows are shared out together, so that
small layers fill all threads. The first of them that is called computes all products; the others
find theirs by the identity of the activation.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import torch
from torch import nn

from unspool.model.linear import QuantizedLinear
from unspool.model.product import products

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Children of one module that read the same activation, in the order that models call them."""


class Siblings:
    """Layers of one module that are called one after the other with the same tensor.

    A product that nobody came for ends it: the layers then multiply one by one again.
    """

    def __init__(self, layers: Sequence[QuantizedLinear]) -> None:
        """The layers in the order of their calls; all read the same number of features."""
        self._layers = tuple(weakref.ref(layer) for layer in layers)
        self._of_thread = threading.local()
        self.together = True

    def multiply(self, layer: QuantizedLinear, x: torch.Tensor) -> torch.Tensor | None:
        """The layer's product, or None where it has to be made alone."""
        waiting = getattr(self._of_thread, "waiting", None)
        if waiting is not None and waiting[0]() is x and waiting[1] == _version(x):
            found = waiting[2].pop(id(layer), None)
            if not waiting[2]:
                self._of_thread.waiting = None
            if found is not None:
                return found
        elif waiting is not None:
            self.together = False
            self._of_thread.waiting = None
        if not self.together or layer is not self._layers[0]():
            return None
        return self._all(layer, x)

    def _all(self, first: QuantizedLinear, x: torch.Tensor) -> torch.Tensor | None:
        layers = [reference() for reference in self._layers]
        if x.size(-1) != first.in_features or any(layer is None for layer in layers):
            return None  # the layer itself says what is wrong
        prepared = [
            layer.prepared(None if x.is_cpu else x.device) for layer in layers if layer is not None
        ]
        if not all(each.kernel.compiled for each in prepared):
            return None
        mine, *others = products(prepared, x)
        made = {id(layer): y for layer, y in zip(layers[1:], others, strict=True)}
        self._of_thread.waiting = weakref.ref(x), _version(x), made
        return mine


def join_siblings(model: nn.Module) -> int:
    """Lets quantized layers that read the same activation multiply together; how many groups."""
    groups = 0
    for module in model.modules():
        for names in TOGETHER:
            found = [getattr(module, name, None) for name in names]
            layers = [layer for layer in found if isinstance(layer, QuantizedLinear)]
            if len(layers) == len(names):
                siblings = Siblings(layers)
                for layer in layers:
                    layer.siblings = siblings
                groups += 1
    return groups


def _version(x: torch.Tensor) -> int:
    """Counts writes to a tensor; inference tensors keep no count."""
    return 0 if x.is_inference() else x._version
