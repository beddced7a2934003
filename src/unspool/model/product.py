"""Products of a tensor with prepared layers: its memory as it lies, one call for several."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unspool import native
from unspool.matmul.kernel import BFLOAT16, FLOAT32, Kernel, multiply

NUMBER_TYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
"""Types that the kernels read and write; others pass through float32."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A kernel and the bias that is added to its product, in float32."""

    kernel: Kernel
    bias: torch.Tensor | None

    @functools.cached_property
    def rows(self) -> int:
        """n."""
        return self.kernel.shape[0]

    @functools.cached_property
    def bias_address(self) -> int | None:
        """Where the bias lies; None without one."""
        return None if self.bias is None else self.bias.data_ptr()


def products(prepared: Sequence[Prepared], x: torch.Tensor) -> list[torch.Tensor]:
    """x `[..., k]` times each weight, in x's dtype: `[..., n]` each. All kernels are compiled ones.

    Threads are PyTorch's (`torch.set_num_threads`). The product is rounded once to x's dtype.
    """
    number = NUMBER_TYPES.get(x.dtype)
    if number is None:
        return [y.to(x.dtype) for y in products(prepared, x.to(torch.float32))]
    *leading, k = x.shape
    m = math.prod(leading)
    outputs = [x.new_empty((*leading, each.rows)) for each in prepared]
    if m:
        rows = x.contiguous().resolve_neg()
        results = [
            (y.data_ptr(), each.bias_address) for y, each in zip(outputs, prepared, strict=True)
        ]
        place = rows.data_ptr(), number, m, k
        multiply([each.kernel for each in prepared], place, results, torch.get_num_threads())
    return outputs


def product(prepared: Prepared, x: torch.Tensor) -> torch.Tensor:
    """The same with one weight, by whatever kernel it has."""
    if prepared.kernel.compiled:
        return products((prepared,), x)[0]
    rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
    y = torch.from_numpy(prepared.kernel(rows.numpy(), threads=native.threads(None)))
    if prepared.bias is not None:
        y = y + prepared.bias
    return y.to(x.dtype).reshape(*x.shape[:-1], prepared.kernel.shape[0])
