"""Many rows on a GPU: weights decoded once to operands, and the vendor's GEMM.

    codes --unspool_expand--> W [rows, K], 8 bits or binary16   x --rotate, scale, round--> [m, K]
    fp8               torch._scaled_mm, scales per row on both sides
    fp8x2, fp8x3, float16    both sides in binary16 (E4M3 is exact in it), FP32 sums, scales after
    int8              torch._int_mm, whole sums, scales after

Columns of W stand in the order in which a decoder leaves them; x is permuted to match. Sums are the
library's: a row's bits may depend on the batch, except int8's, which are exact. Not run on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch

from unspool.matmul.cuda.activations import LARGEST, largest_of, smallest_of
from unspool.matmul.cuda.geometry import BLOCK_ROWS, SLICE_BYTES
from unspool.matmul.cuda.recipe import SUMS, Recipe

LIBRARY_ROWS = 512
"""Rows from which on this is used: there a fused kernel has decoded every weight at least eight
times. An estimate from counts, not yet measured."""

_HALF_TOP = 14
"""binary16 rows are scaled so that their largest magnitude is in [2**14, 2**15)."""


_MOST_WHOLE = 1 << 17
"""Columns of INT8 whose sums, 2**14 each, stay in 32 bits."""

_LEAST_WHOLE_ROWS = 32
"""cuBLAS multiplies INT8 with more than 16 rows (torch._int_mm says so)."""


def why_not(made: Recipe, columns: int) -> str:
    """Why a recipe's weights are no matrix for a library; empty where they are."""
    if made.scales == SUMS:
        return "scales of blocks are not in the operands"
    if made.whole and columns >= _MOST_WHOLE:
        return f"sums of {columns} columns may need more than 32 bits"
    return "" if made.kind in ("e4m3", "f16", "s8") else f"no library reads {made.kind}"


def column_order(made: Recipe, stages: int) -> np.ndarray:
    """The column of the (padded) matrix at every place of an expanded row."""
    step = made.geometry.columns().reshape(-1)
    steps = np.arange(stages * made.geometry.steps)[:, None] * made.geometry.step_columns
    return (steps + step).reshape(-1)


def expanded_bytes(made: Recipe, row_blocks: int, stages: int) -> int:
    """Bytes of a decoded matrix."""
    row_bytes = stages * made.geometry.steps * made.geometry.slices * SLICE_BYTES
    return BLOCK_ROWS * row_blocks * row_bytes


def multiply(
    operands: torch.Tensor, rotated: torch.Tensor, row_scales: torch.Tensor, made: Recipe
) -> torch.Tensor:
    """rotated `[m, K]` (float32, columns in place) times operands `[rows, K]`, float32 `[m, rows]`.

    `row_scales` `[rows]`: what multiplies a finished sum.
    """
    top = rotated.abs().amax(dim=1, keepdim=True)
    if made.whole:
        rounded, scale = _whole(rotated, top, made)
        padded = torch.nn.functional.pad(rounded, (0, 0, 0, max(0, _LEAST_WHOLE_ROWS - len(top))))
        whole = torch._int_mm(padded, operands.view(torch.int8).t())[: len(top)]
        return whole.float() * row_scales * scale
    if made.activations == "fp8" and rotated.is_cuda:
        scale = (top / float(LARGEST)).clamp(min=2.0**-126)
        rounded = (rotated / scale).to(torch.float8_e4m3fn)
        weights = operands.view(torch.float8_e4m3fn)
        y = torch._scaled_mm(
            rounded, weights.t(), scale_a=scale, scale_b=row_scales[None, :],
            out_dtype=torch.bfloat16, use_fast_accum=True,
        )  # fmt: skip
        return y.float()
    exponent = torch.frexp(top).exponent - 1
    shift = torch.where(top > 0, _HALF_TOP - exponent, torch.zeros_like(exponent)).clamp(max=126)
    one = torch.ones_like(top)
    halves = (rotated * torch.ldexp(one, shift)).to(torch.float16)
    dtype = torch.float16 if made.kind == "f16" else torch.float8_e4m3fn
    weights = operands.view(dtype).to(torch.float16)
    if rotated.is_cuda:
        sums = torch.mm(halves, weights.t(), out_dtype=torch.float32)
    else:
        sums = halves.float() @ weights.float().t()
    return sums * row_scales * torch.ldexp(one, -shift)


def _whole(
    rotated: torch.Tensor, top: torch.Tensor, made: Recipe
) -> tuple[torch.Tensor, torch.Tensor]:
    """INT8 `[m, K]` and scales `[m, 1]` of rows whose largest is `top`, as the kernels make them.

    Divisions are of tensors: of numbers torch makes a product with the inverse, which rounds twice.
    """
    largest = torch.full_like(top, float(largest_of(made)))
    finite = top.isfinite()
    usable = finite & (top >= float(smallest_of(made)))
    rounded = torch.where(usable, rotated * (largest / top), 0).round().to(torch.int8)
    scale = torch.where(usable, top / largest, torch.where(finite, 0.0, torch.nan))
    return rounded, scale
