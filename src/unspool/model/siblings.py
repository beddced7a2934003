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
from unspool.model.product import Prepared, products

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Children of one module that read the same activation, in the order that models call them."""

MISSES = 8
"""Times that products may go unasked-for before layers multiply one by one."""


class Siblings:
    """Layers of one module that are called one after the other with the same tensor.

    Products wait for the layers to come, and are dropped where the activation was written to since,
    or the layer changed. Tensors made in inference mode keep no count of writes: with them layers
    multiply one by one, and so they do for ever after products went unasked-for a few times.
    """

    def __init__(self, layers: Sequence[QuantizedLinear]) -> None:
        """The layers in the order of their calls; all read the same number of features."""
        self._layers = tuple(weakref.ref(layer) for layer in layers)
        self._of_thread = threading.local()
        self._missed = 0

    @property
    def together(self) -> bool:
        """Whether they still multiply together."""
        return self._missed < MISSES

    def multiply(self, layer: QuantizedLinear, x: torch.Tensor) -> torch.Tensor | None:
        """The layer's product, or None where it has to be made alone."""
        if not self.together or x.is_inference() or not x.is_cpu:
            return None
        waiting = getattr(self._of_thread, "waiting", None)
        if waiting is not None:
            if waiting.is_for(x):
                found = waiting.take(layer)
                if found is not None:
                    return found
            self._missed += waiting.left
            self._of_thread.waiting = None
        return self._all(layer, x) if layer is self._layers[0]() else None

    def _all(self, first: QuantizedLinear, x: torch.Tensor) -> torch.Tensor | None:
        layers = [layer for reference in self._layers if (layer := reference()) is not None]
        if len(layers) < len(self._layers) or not x.ndim or x.size(-1) != first.in_features:
            return None  # the layer itself says what is wrong
        prepared = [layer.prepared() for layer in layers]
        if not x.is_floating_point() or not all(each.kernel.compiled for each in prepared):
            return None
        mine, *others = products(prepared, x)
        made = zip(layers[1:], prepared[1:], others, strict=True)
        self._of_thread.waiting = Waiting(x, {id(layer): (each, y) for layer, each, y in made})
        return mine


class Waiting:
    """Products of one activation that their layers have not asked for yet."""

    def __init__(self, x: torch.Tensor, made: dict[int, tuple[Prepared, torch.Tensor]]) -> None:
        """`made`: by the layer's identity, the kernel that made a product and the product."""
        self._x, self._version, self._made = weakref.ref(x), x._version, made

    @property
    def left(self) -> int:
        """Whether something was not asked for."""
        return int(bool(self._made))

    def is_for(self, x: torch.Tensor) -> bool:
        """Whether they are products of this tensor as it is now."""
        return bool(x._version == self._version) and self._x() is x

    def take(self, layer: QuantizedLinear) -> torch.Tensor | None:
        """The layer's product, once, if it would make the same now."""
        prepared, y = self._made.pop(id(layer), (None, None))
        return y if prepared is not None and layer.prepared() is prepared else None


def join_siblings(model: nn.Module) -> int:
    """Lets quantized layers that read the same activation multiply together; how many groups."""
    groups = 0
    for module in model.modules():
        for names in TOGETHER:
            found = [getattr(module, name, None) for name in names]
            layers = [layer for layer in found if isinstance(layer, QuantizedLinear)]
            if len(layers) == len(names) and len({layer.in_features for layer in layers}) == 1:
                siblings = Siblings(layers)
                for layer in layers:
                    layer.siblings = siblings
                groups += 1
    return groups
