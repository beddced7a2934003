"""Many rows on a GPU: weights decoded once to a matrix, and the vendor's GEMM.

    codes --unspool_expand--> W [rows, K]        x --unspool_prepare--> [m, K] and a scale per token
    E4M3                   torch._scaled_mm, scales per row on both sides, bfloat16 out
    bfloat16, binary16     torch.mm, FP32 sums and out; scales after
    INT8                   torch._int_mm, whole sums; scales after

What W and x are for which format and activations stands in `matmul.cuda.library`. Their columns
are in the order in which a decoder leaves them. Sums are the library's: a row's bits may depend on
the batch, except INT8's, which are exact. Compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from unspool.matmul.cuda.launch import ActivationArguments, ExpandArguments
from unspool.matmul.cuda.library import Expansion
from unspool.matmul.cuda.source import Kernel, expand_kernel, prepare_kernel
from unspool.spec.operand import BF16, E4M3, FP16, INT8

if TYPE_CHECKING:
    from unspool.model.gpu import GpuMatrix

_DTYPES = {
    E4M3: torch.float8_e4m3fn, INT8: torch.int8, FP16: torch.float16, BF16: torch.bfloat16
}  # fmt: skip

_LEAST_WHOLE_ROWS = 32
"""cuBLAS multiplies INT8 with more than 16 rows (torch._int_mm says so)."""

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class LibraryProduct:
    """A weight's products by a library."""

    def __init__(self, weight: GpuMatrix, found: Expansion) -> None:
        """Of codes that are in a GPU's memory; nothing is decoded yet."""
        self.weight, self.found = weight, found
        order = found.recipe.geometry.positions().astype(np.int16)
        self.positions = torch.from_numpy(order).to(weight.processor.device)
        #: `[1, padded rows]`
        self.row_scales = (weight.row_scales.view(torch.float32) * found.factor)[None]

    def kernels(self, dtype: torch.dtype) -> tuple[Kernel, Kernel]:
        """What decodes the weight, and what makes activations of that type its operands."""
        prepare = prepare_kernel(
            self.found.recipe, tokens=8, columns=self.weight.columns, dtype=_NAMES[dtype], flat=True
        )
        return expand_kernel(self.found), prepare

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x `[m, k]` to `[m, rows]` in x's dtype, all rows as they are stored."""
        rounded, scales = self.rounded(x)
        sums = self._sums(self.expanded(), rounded, scales)
        return sums[:, : self.weight.rows].to(x.dtype)

    def expanded(self) -> torch.Tensor:
        """The weight decoded `[padded rows, K]`."""
        weight, found = self.weight, self.found
        nbytes = found.nbytes(weight.row_blocks, weight.stages)
        decoded = torch.empty(nbytes, dtype=torch.uint8, device=weight.processor.device)
        memory = {"weights": weight.units, "levels": weight.levels, "output": decoded}
        given = ExpandArguments(
            **{name: tensor.data_ptr() for name, tensor in memory.items()},
            row_blocks=weight.row_blocks, stages=weight.stages,
        )  # fmt: skip
        grid = weight.row_blocks * weight.stages, 1
        weight.processor.run(expand_kernel(found), grid, given, memory)
        return decoded.view(_DTYPES[found.operand]).view(-1, self._columns)

    def rounded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations as its operands `[m or more, K]`, zeros behind m; scales `[m, 1]`."""
        weight, found, m = self.weight, self.found, len(x)
        rows = max(m, _LEAST_WHOLE_ROWS) if found.operand is INT8 else m
        make = torch.zeros if rows > m else torch.empty
        nbytes = rows * found.row_bytes(weight.stages)
        made = make(nbytes, dtype=torch.uint8, device=x.device)
        scales = torch.empty((m, 1), dtype=torch.float32, device=x.device)
        memory = {
            "input": x, "signs": weight.signs, "positions": self.positions, "output": made,
            "token_scales": scales,
        }  # fmt: skip
        given = ActivationArguments(
            **{name: tensor.data_ptr() for name, tensor in memory.items()},
            rows=m, k=x.shape[1], stages=weight.stages,
        )  # fmt: skip
        _, prepare = self.kernels(x.dtype)
        weight.processor.run(prepare, (m, 1), given, memory)
        return made.view(_DTYPES[found.operand]).view(rows, self._columns), scales

    def _sums(
        self, decoded: torch.Tensor, rounded: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        """Their product with all scales, `[m, padded rows]`."""
        m = len(scales)
        if self.found.operand is INT8:
            return torch._int_mm(rounded, decoded.t())[:m].float() * self.row_scales * scales
        if not rounded.is_cuda:
            return (rounded.float() @ decoded.float().t()) * self.row_scales * scales
        if self.found.operand is E4M3:
            return torch._scaled_mm(
                rounded, decoded.t(), scale_a=scales, scale_b=self.row_scales,
                out_dtype=torch.bfloat16, use_fast_accum=True,
            )  # fmt: skip
        sums = torch.mm(rounded, decoded.t(), out_dtype=torch.float32)
        return sums * self.row_scales * scales

    @property
    def _columns(self) -> int:
        return self.weight.stages * self.found.recipe.geometry.stage_columns
