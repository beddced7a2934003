"""A gain for every stored scale of a coded matrix: what tuning trains, and then folds away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from unspool.encode import scales
from unspool.pack.matrix import CodedMatrix
from unspool.spec.format import Format


class Gains(nn.Module):
    """A linear layer of a decoded weight [n, k], differentiable in gains that start at 1."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, fmt: Format) -> None:
        """`fmt` is what the weight was decoded from."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias, self.width = bias, fmt.scale.block
        self.gain = nn.Parameter(torch.ones(gain_shape(fmt, len(weight), weight.shape[1])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., k]` to `[..., n]`."""
        weight, blocks = self.weight, self.gain.shape[1]
        if blocks == 1:
            y = nn.functional.linear(x, weight) * self.gain[:, 0]
            return y if self.bias is None else y + self.bias
        n, k = weight.shape
        assert self.width is not None
        every = self.gain.repeat_interleave(self.width, dim=1)[:n, :k]
        return nn.functional.linear(x, weight * every, self.bias)


def gain_shape(fmt: Format, n: int, k: int) -> tuple[int, int]:
    """Gains of a layer `[rows, blocks]`: one per scale where a scale is a factor of weights.

    A rotation mixes the columns of several blocks, or the rows: then one gain stands for all.
    """
    if fmt.rotation.output_size or fmt.scale.operand is None:
        return 1, 1
    blocks = fmt.scale.count(*fmt.padded(n, k))[1]
    return (n, blocks) if blocks == 1 or not fmt.rotation.input_size else (n, 1)


def with_gains(matrix: CodedMatrix, gain: np.ndarray) -> CodedMatrix:
    """The matrix with gains in its stored scales, rounded to their format, or in its tensor scale
    where it has one gain; itself where it has no scale, or for gains that are not finite."""
    fmt = matrix.format
    tensor = None if matrix.tensor_scale is None else float(matrix.tensor_scale)
    if not np.isfinite(gain).all():
        return matrix
    if gain.shape == (1, 1) and tensor is not None:
        return replace(matrix, tensor_scale=np.array(tensor * gain[0, 0], np.float32))
    if matrix.scale is None:
        return matrix
    effective = _effective(matrix, fmt)
    asked, n = effective.copy(), len(gain)
    asked[:n] = np.maximum(effective[:n] * gain, 0)
    unit = None if tensor is None else np.array(tensor, np.float32)
    stored = scales.store(asked.astype(np.float32), fmt.scale, unit)
    return replace(matrix, scale=stored.bits)


def _effective(matrix: CodedMatrix, fmt: Format) -> np.ndarray:
    assert fmt.scale.operand is not None
    values = fmt.scale.operand.values().astype(np.float32)[matrix.scale]
    return values if matrix.tensor_scale is None else values * matrix.tensor_scale
