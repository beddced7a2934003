"""A linear layer whose weight stays coded in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.matmul.kernel import Kernel
from unspool.model.layout import as_arrays, as_buffers, stored_shapes
from unspool.pack.matrix import CodedMatrix
from unspool.spec.format import Format


class QuantizedLinear(nn.Module):
    """y = x W^T + bias with W coded: `nn.Linear` without a dense weight.

    Buffers `weight_codes`, `weight_scale`, `weight_tensor_scale`, `weight_table` (those the format
    has) hold bit patterns as integers (`model.layout` says why). The product is float32 inside;
    the result has x's dtype.
    """

    weight_codes: torch.Tensor

    def __init__(
        self,
        fmt: Format,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Empty buffers for an `[out_features, in_features]` weight; `dtype` is the bias's."""
        super().__init__()
        self.format, self.in_features, self.out_features = fmt, in_features, out_features
        for name, (stored, shape) in stored_shapes(fmt, out_features, in_features).items():
            empty = torch.empty(shape, dtype=getattr(torch, stored), device=device)
            self.register_buffer(name, empty)
        self.bias = None
        if bias:
            empty = torch.empty(out_features, dtype=dtype, device=device)
            self.bias = nn.Parameter(empty, requires_grad=False)
        self._kernel: tuple[tuple[int, ...], Kernel] | None = None

    @classmethod
    def from_matrix(cls, matrix: CodedMatrix, bias: torch.Tensor | None = None) -> QuantizedLinear:
        """The layer of a coded matrix, whose arrays become the buffers without a copy."""
        n, k = matrix.shape
        layer = cls(matrix.format, k, n, device="meta")
        for name, array in as_buffers(matrix.arrays).items():
            owned = array if array.flags.writeable else array.copy()
            setattr(layer, name, torch.from_numpy(owned))
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return layer

    def matrix(self) -> CodedMatrix:
        """The coded matrix: views of the buffers."""
        n, k = self.out_features, self.in_features
        stored = {name: tensor.numpy() for name, tensor in self._stored().items()}
        arrays = as_arrays(self.format, n, k, stored)
        return CodedMatrix(format=self.format, shape=(n, k), **arrays)

    @property
    def nbytes(self) -> int:
        """Stored bytes of the weight, the bias not counted."""
        return sum(tensor.nbytes for tensor in self._stored().values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, padding and overheads included."""
        return 8 * self.nbytes / (self.in_features * self.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`, in x's dtype."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Multiply.apply(x, self)
        return self._multiply(x)

    def decode(self) -> torch.Tensor:
        """The dense weight `[n, k]` in float32, computed anew at every call."""
        return torch.from_numpy(self._prepared().decode())

    def extra_repr(self) -> str:
        """Shape, format, bits per weight and bytes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, format={self.format.name}, "
            f"bits_per_weight={self.bits_per_weight:.3f}, bytes={self.nbytes}"
        )

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != self.in_features:
            raise ModelError(
                "the activation does not fit the layer",
                where=f"quantized linear ({self.format.name})",
                found=list(x.shape),
                allowed=f"[..., {self.in_features}]",
            )
        kernel = self._prepared(x.device)
        rows = x.detach().reshape(-1, self.in_features).to(torch.float32).contiguous()
        y = torch.from_numpy(kernel(rows.numpy()))
        if self.bias is not None:
            y = y + self.bias.to(torch.float32)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _prepared(self, device: torch.device | None = None) -> Kernel:
        """The kernel, made at first use and again after a buffer was replaced, moved or edited.

        Edits through numpy (`matrix().arrays`) and of tensors made in inference mode leave no
        trace that torch keeps: the kernel may go on with what it has copied.
        """
        stored = self._stored()
        codes = self.weight_codes
        if codes.device.type != "cpu" or (device is not None and device.type != "cpu"):
            raise ModelError(
                "quantized layers run on the CPU only, so far",
                where=f"quantized linear ({self.format.name})",
                found=f"weight on {codes.device}, activation on {device or codes.device}",
                allowed="cpu",
            )
        key = tuple(place for tensor in stored.values() for place in _address(tensor))
        if self._kernel is None or self._kernel[0] != key:
            self._kernel = key, Kernel(self.matrix())
        return self._kernel[1]

    def _stored(self) -> dict[str, torch.Tensor]:
        return {name: t for name, t in self._buffers.items() if t is not None}

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._kernel = None  # copied in place: same addresses, but the kernel holds the old scale
        super()._load_from_state_dict(*arguments, **options)

    def _apply(self, *arguments: Any, **options: Any) -> QuantizedLinear:
        self._kernel = None
        return super()._apply(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernel": None}  # it holds addresses: not to be copied


def _address(tensor: torch.Tensor) -> tuple[int, int]:
    """Where a tensor is, and how often it was written to since; inference tensors do not count."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class _Multiply(torch.autograd.Function):
    """The forward product; its gradient is refused where it is asked for, not silently dropped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        return layer._multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise ModelError(
            "no gradient flows through a quantized layer", allowed="torch.no_grad(), inference"
        )
