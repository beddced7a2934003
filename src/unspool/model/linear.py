"""A linear layer whose weight stays coded in memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.matmul.choose import choose
from unspool.matmul.cuda.recipe import check_activations as check_gpu_activations
from unspool.matmul.kernel import Kernel
from unspool.model import ops
from unspool.model.gpu import GpuMatrix, upload
from unspool.model.layout import BUFFERS, as_arrays, as_buffers, stored_shapes
from unspool.model.processors import processor
from unspool.model.product import Prepared, product
from unspool.pack.matrix import CODES, CodedMatrix
from unspool.spec.format import Format

if TYPE_CHECKING:
    from unspool.model.siblings import Siblings

CODES_BUFFER = BUFFERS[CODES]

Watched = tuple[str, torch.Tensor | None, int, int]
"""A tensor that a kernel was made of: its name, itself, its address, writes to it so far."""


class QuantizedLinear(nn.Module):
    """y = x W^T + bias with W coded: `nn.Linear` without a dense weight.

    Buffers `weight_codes`, `weight_scale`, `weight_tensor_scale`, `weight_table` (those the format
    has) hold bit patterns as integers (`model.layout` says why). The product is summed in int32
    and float32 (`matmul.choose`); the result has x's dtype.
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
        activations: str = "auto",
    ) -> None:
        """Empty buffers for an `[out_features, in_features]` weight; `dtype` is the bias's.

        `activations`: what the product rounds its activations to (`matmul.choose.ACTIVATIONS`).
        """
        super().__init__()
        self.format, self.in_features, self.out_features = fmt, in_features, out_features
        for name, (stored, shape) in stored_shapes(fmt, out_features, in_features).items():
            empty = torch.empty(shape, dtype=getattr(torch, stored), device=device)
            self.register_buffer(name, empty)
        self.bias = None
        if bias:
            empty = torch.empty(out_features, dtype=dtype, device=device)
            self.bias = nn.Parameter(empty, requires_grad=False)
        self._activations, self._gpu_activations = activations, "auto"
        self.siblings: Siblings | None = None
        self._prepared: tuple[tuple[Watched, ...], Prepared] | None = None
        self._uploaded: tuple[tuple[Watched, ...], GpuMatrix] | None = None
        self._lock = threading.RLock()
        self._number = ops.number(self)

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
        stored = {name: tensor.cpu().numpy() for name, tensor in self._stored().items()}
        arrays = as_arrays(self.format, n, k, stored)
        return CodedMatrix(format=self.format, shape=(n, k), **arrays)

    @property
    def activations(self) -> str:
        """What the product rounds its activations to: one of `matmul.choose.ACTIVATIONS`."""
        return self._activations

    @activations.setter
    def activations(self, name: str) -> None:
        choose(self.format, "portable", name)  # raises for what this format does not have
        self._restore()
        self._activations = name

    @property
    def gpu_activations(self) -> str:
        """The same of products on a GPU: one of `matmul.cuda.recipe.ACTIVATIONS`.

        A GPU without such a product of the format refuses it at the first use, with what it has.
        """
        return self._gpu_activations

    @gpu_activations.setter
    def gpu_activations(self, name: str) -> None:
        check_gpu_activations(name)
        if name != self._gpu_activations:
            self._gpu_activations, self._uploaded = name, None

    @property
    def nbytes(self) -> int:
        """Stored bytes of the weight, the bias not counted."""
        return sum(tensor.nbytes for tensor in self._buffers.values() if tensor is not None)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, padding and overheads included."""
        return 8 * self.nbytes / (self.in_features * self.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`, in x's dtype."""
        if ops.is_recorded(x):
            return ops.linear(x, self._number, self.out_features)
        if self.siblings is not None:
            found = self.siblings.multiply(self, x)
            if found is not None:
                return found
        return self.multiply(x)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """The same, alone and without a gradient."""
        if not x.ndim or x.size(-1) != self.in_features or not x.is_floating_point():
            raise ModelError(
                "the activation does not fit the layer",
                where=f"quantized linear ({self.format.name})",
                found=f"{list(x.shape)} of {x.dtype}",
                allowed=f"[..., {self.in_features}] of a floating-point type",
            )
        codes = self._buffers[CODES_BUFFER]
        if x.is_cuda and codes is not None and codes.device == x.device:
            return self._on_gpu(x)
        return product(self.prepared(None if x.is_cpu else x.device), x)

    def on_gpu(self) -> GpuMatrix:
        """The weight as its GPU's kernels read it, made at first use and after a buffer changed.

        It stands beside the buffers, in as many bytes. `warm_up` it before capturing a graph.
        `gpu_activations` says what activations are there; `activations` is about CPUs.
        """
        found = self._uploaded
        if found is not None and self._unchanged(found[0]):
            return found[1]
        with self._lock:
            ordinal = self.weight_codes.device.index or 0
            name = self._gpu_activations
            made = upload(self.matrix(), processor(ordinal), activations=name)
            self._uploaded = self._watched({}), made
            return made

    def _on_gpu(self, x: torch.Tensor) -> torch.Tensor:
        y = self.on_gpu().multiply(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def decode(self) -> torch.Tensor:
        """The dense weight `[n, k]` in float32, computed anew at every call."""
        codes = self._buffers[CODES_BUFFER]
        if codes is not None and codes.is_cuda:
            return torch.from_numpy(Kernel(self.matrix()).decode()).to(codes.device)
        return torch.from_numpy(self.prepared().kernel.decode())

    def extra_repr(self) -> str:
        """Shape, format, bits per weight and bytes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, format={self.format.name}, "
            f"bits_per_weight={self.bits_per_weight:.3f}, bytes={self.nbytes}"
        )

    def prepared(self, device: torch.device | None = None) -> Prepared:
        """The kernel and the bias, made at first use and again after a buffer was replaced, moved
        or edited.

        Where the kernel keeps the codes in an order of its own, the buffer of them is let go
        (`named_buffers` shows it on the meta device): it is made again when it is asked for by
        name, saved, copied or moved. Edits through numpy (`matrix().arrays`), through aliases taken
        before, and of tensors made in inference mode are not seen.
        """
        if device is not None and device.type != "cpu":
            raise self._elsewhere(device)
        found = self._prepared
        if found is not None and self._unchanged(found[0]):
            return found[1]
        with self._lock:
            found = self._prepared
            if found is None or not self._unchanged(found[0]):
                self._restore()
                found = self._prepare(device)
            return found[1]

    def _prepare(self, device: torch.device | None) -> tuple[tuple[Watched, ...], Prepared]:
        codes, bias = self._buffers[CODES_BUFFER], self._parameters.get("bias")
        if codes is None or codes.device.type != "cpu":
            raise self._elsewhere(device)
        if bias is not None and bias.device.type != "cpu":
            raise self._elsewhere(device)
        added = None if bias is None else bias.detach().to(torch.float32).contiguous()
        made = Prepared(Kernel(self.matrix(), activations=self._activations), added)
        kept = codes
        if made.kernel.drop_codes():
            kept = torch.empty_like(codes, device="meta")
        # The kernel first: whoever finds the codes gone finds it.
        found = self._prepared = self._watched({CODES_BUFFER: kept}), made
        self._buffers[CODES_BUFFER] = kept
        return found

    def _elsewhere(self, device: torch.device | None) -> ModelError:
        codes = self._buffers[CODES_BUFFER]
        weight = "cpu" if self._prepared is not None or codes is None else codes.device
        return ModelError(
            "a quantized layer and its activation are on different devices",
            where=f"quantized linear ({self.format.name})",
            found=f"weight on {weight}, activation on {device or weight}",
            allowed="both on the CPU, or both on one NVIDIA GPU",
        )

    def _watched(self, replaced: dict[str, torch.Tensor]) -> tuple[Watched, ...]:
        """Buffers and bias: which tensors, where they lie, how often they were written to."""
        stored = {**self._buffers, **replaced, "bias": self._parameters.get("bias")}
        return tuple((name, t, *_place(t)) for name, t in stored.items())

    def _unchanged(self, watched: tuple[Watched, ...]) -> bool:
        for name, tensor, address, version in watched:
            now = self._parameters.get(name) if name == "bias" else self._buffers[name]
            if now is not tensor or _place(now) != (address, version):
                return False
        return True

    def _codes(self) -> torch.Tensor:
        """The codes as stored, from the kernel where it keeps them."""
        codes = self._buffers[CODES_BUFFER]
        assert codes is not None
        kernel = None if self._prepared is None else self._prepared[1].kernel
        if not codes.is_meta or kernel is None or not kernel.owns_codes:
            return codes
        return torch.from_numpy(kernel.codes().view(str(codes.dtype).removeprefix("torch.")))

    def _restore(self) -> None:
        """Puts the codes back into their buffer and forgets the kernel."""
        with self._lock:
            self._buffers[CODES_BUFFER] = self._codes()
            self._prepared = None

    def _stored(self) -> dict[str, torch.Tensor]:
        with self._lock:
            found = {name: t for name, t in self._buffers.items() if t is not None}
            return {**found, CODES_BUFFER: self._codes()}

    def __getattr__(self, name: str) -> Any:
        if name == CODES_BUFFER and self.__dict__.get("_prepared") is not None:
            self._restore()  # whoever asks may edit
        return super().__getattr__(name)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        with self._lock:
            self._restore()  # what is written into a state dictionary is seen
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._restore()  # copied in place: same addresses, but the kernel holds the old weight
        super()._load_from_state_dict(*arguments, **options)

    def _apply(self, *arguments: Any, **options: Any) -> QuantizedLinear:
        self._restore()
        return super()._apply(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        """A kernel holds addresses and siblings each other: neither is copied."""
        with self._lock:
            buffers = {**self._buffers, CODES_BUFFER: self._codes()}
        left = {
            "_buffers": buffers,
            "_prepared": None,
            "_uploaded": None,
            "siblings": None,
            "_lock": None,
        }
        return {**self.__dict__, **left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()
        self._number = ops.number(self)


def _place(tensor: torch.Tensor | None) -> tuple[int, int]:
    """Where a tensor lies and how often it was written to; inference tensors keep no count."""
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
