"""Many rows on a GPU: weights decoded once to operands, and the vendor's GEMM.

    codes --unspool_expand--> W [rows, K], FP8 or binary16      x --rotate, scale, round--> [m, K]
    fp8               torch._scaled_mm, scales per row on both sides
    fp8x2, fp8x3, float16    both sides in binary16 (E4M3 is exact in it), FP32 sums, scales after

Columns of W stand in the order in which a decoder leaves them; x is permuted to match. Sums are the
library's: a row's bits may depend on the batch. Not run on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch

from unspool.matmul.cuda.activations import LARGEST
from unspool.matmul.cuda.geometry import BLOCK_ROWS, SLICE_BYTES
from unspool.matmul.cuda.recipe import SUMS, Recipe

LIBRARY_ROWS = 512
"""Rows from which on this is used: there a fused kernel has decoded every weight at least eight
times. An estimate from counts, not yet measured."""

_HALF_TOP = 14
"""binary16 rows are scaled so that their largest magnitude is in [2**14, 2**15)."""


def why_not(made: Recipe) -> str:
    """Why a recipe's weights are no matrix for a library; empty where they are."""
    if made.scales == SUMS:
        return "scales of blocks are not in the operands"
    return "" if made.kind in ("e4m3", "f16") else f"no library reads {made.kind}"


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
