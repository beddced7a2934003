"""What a model in memory weighs, with every overhead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Weights and bytes of the linear layers and of the whole model.

    The linear layers are the quantized ones; of a model without any, those that could be. Tied
    weights count once; a head quantized as a copy counts beside the embedding it was tied to.
    """

    weights: int
    bytes: int
    model_weights: int
    model_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the linear layers: codes, scales, tables and padding."""
        return 8 * self.bytes / self.weights

    @property
    def model_bits_per_weight(self) -> float:
        """Stored bits per weight of the whole model."""
        return 8 * self.model_bytes / self.model_weights

    def to_json(self) -> dict[str, float]:
        """All six figures."""
        return {
            "weights": self.weights,
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight,
            "model_weights": self.model_weights,
            "model_bytes": self.model_bytes,
            "model_bits_per_weight": self.model_bits_per_weight,
        }


def sizes_of(model: nn.Module) -> Sizes:
    """The sizes of a model, quantized or not."""
    from unspool.model.linear import QuantizedLinear
    from unspool.model.selection import linear_names

    coded = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    dense = list(model.parameters())
    weights = sum(layer.in_features * layer.out_features for layer in coded)
    size = sum(layer.nbytes for layer in coded)
    linears = [model.get_submodule(name).weight for name in linear_names(model)] or dense
    return Sizes(
        weights=weights or sum(weight.numel() for weight in linears),
        bytes=size or sum(weight.nbytes for weight in linears),
        model_weights=weights + sum(weight.numel() for weight in dense),
        model_bytes=size + sum(weight.nbytes for weight in dense),
    )
