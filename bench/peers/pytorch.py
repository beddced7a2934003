"""PyTorch's own few-bit products on a CPU, and its dense ones; they come with torch itself.

int4 g128      _weight_int4pack_mm_for_cpu: bf16 activations, 4-bit weights in groups of 128
int8           _weight_int8pack_mm: bf16 activations, int8 weights with a scale per row
dynamic int8   quantized::linear_dynamic: activations rounded to uint8 per tensor
bf16, f32      linear
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import numpy as np
import torch

from unspool.evaluate.products import copies, in_turn

GROUP = 128

Product = Callable[[torch.Tensor], torch.Tensor]


def int4(weight: torch.Tensor) -> tuple[int, Product]:
    """Stored bytes, and the product for bf16 activations."""
    n, k = weight.shape
    groups = weight.reshape(n, k // GROUP, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.reshape(n, k), 1)
    # The product is (code - 8) * scale + zero.
    pairs = torch.stack([scale, low + 8 * scale], -1).to(torch.bfloat16).transpose(0, 1)
    pairs = pairs.contiguous()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return packed.nbytes + pairs.nbytes, lambda x: multiply(x, packed, GROUP, pairs)


def int8(weight: torch.Tensor) -> tuple[int, Product]:
    """Stored bytes, and the product for bf16 activations."""
    scale = weight.abs().amax(1) / 127
    codes, scales = (weight / scale[:, None]).round().to(torch.int8), scale.to(torch.bfloat16)
    multiply = torch.ops.aten._weight_int8pack_mm
    return codes.nbytes + scales.nbytes, lambda x: multiply(x, codes, scales)


def dynamic_int8(weight: torch.Tensor) -> tuple[int, Product]:
    """Stored bytes, and the product for float32 activations."""
    scale = (weight.abs().amax(1) / 127).double()
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(codes, None)
    multiply = torch.ops.quantized.linear_dynamic
    return weight.numel() + 4 * len(weight), lambda x: multiply(x, packed, True)


def bf16(weight: torch.Tensor) -> tuple[int, Product]:
    """Stored bytes, and the product for bf16 activations."""
    return f32(weight.to(torch.bfloat16))


def f32(weight: torch.Tensor) -> tuple[int, Product]:
    """Stored bytes, and the product for float32 activations."""
    own = weight.clone()
    return own.nbytes, lambda x: torch.nn.functional.linear(x, own)


FORMATS = {
    "int4 g128": (int4, torch.bfloat16),
    "int8": (int8, torch.bfloat16),
    "dynamic int8": (dynamic_int8, torch.float32),
    "bf16": (bf16, torch.bfloat16),
    "f32": (f32, torch.float32),
}
"""Name -> what makes a product, and the type of its activations."""


class TorchWeights:
    """Copies of a Gaussian matrix: a peer's `unspool.evaluate.products.Weights`."""

    products_per_call = 1

    def __init__(self, name: str, n: int, k: int, *, hot: bool = False) -> None:
        """Quantizes and packs them."""
        make, self._dtype = FORMATS[name]
        self.weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
        self.format, self.path, self.n, self.k = f"torch {name}", f"torch {name}", n, k
        self.nbytes, first = make(self.weight)
        more = copies(self.nbytes, hot=hot) - 1
        self._products = [first, *(make(self.weight)[1] for _ in range(more))]
        self._next = itertools.count()

    def product(self, x: np.ndarray, threads: int) -> Callable[[], torch.Tensor]:
        """A function that multiplies x [m, k] with the next copy."""
        given = torch.from_numpy(x).to(self._dtype)
        calls = [self._call(product, given, threads) for product in self._products]
        return in_turn(calls, self._next)

    def result(self, x: np.ndarray) -> np.ndarray:
        """The product with a copy, float32 [m, n]."""
        return self.product(x, 1)().float().numpy()

    def dense(self) -> np.ndarray:
        """The weight before it was rounded, float32 [n, k]."""
        return self.weight.numpy()

    def rotation(self, x: np.ndarray, threads: int) -> None:
        """There is none."""

    def close(self) -> None:
        """Drops all copies."""
        self._products.clear()

    @staticmethod
    def _call(product: Product, x: torch.Tensor, threads: int) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            with torch.inference_mode():
                return product(x)

        return run
