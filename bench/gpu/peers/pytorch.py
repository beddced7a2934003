"""PyTorch's own products.

bf16    torch.mm: what an unquantized model costs
fp8     torch._scaled_mm: weights and activations E4M3, a scale per row of each; the activations
        are rounded before (a server fuses that elsewhere), so this is the product alone
int4    _weight_int4pack_mm (tinygemm): bf16 activations, groups of 128 with scale and zero
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu.peers.rounded import Multiply, RoundedProduct, need

if TYPE_CHECKING:
    from gpu.board import Board
    from gpu.product import Product

GROUP, INNER_TILES = 128, 8
LARGEST = 448.0


def bf16(board: Board, n: int, k: int, copies: int) -> Product:
    """Dense."""

    def build(weight: Any) -> tuple[int, Multiply]:
        own = weight.clone().t()
        return weight.nbytes, lambda x: board.torch.mm(x, own)

    return RoundedProduct(board, (n, k), copies, build, format="torch bf16", activations="bfloat16")


def fp8(board: Board, n: int, k: int, copies: int) -> Product:
    """Rows scaled."""
    torch = board.torch
    need(board.gpu.facts.capability >= (8, 9), "FP8 matrix units begin with 8.9")
    need(n % 16 == 0 and k % 16 == 0, "sizes are multiples of 16")
    rounded: list[tuple[Any, Any, Any]] = [(None, None, None)]

    def build(weight: Any) -> tuple[int, Multiply]:
        codes, scales = _rows(torch, weight)
        across, columns = codes.t(), scales.t()

        def multiply(x: Any) -> Any:
            if rounded[0][0] is not x:
                rounded[0] = x, *_rows(torch, x)
            _, given, each = rounded[0]
            return torch._scaled_mm(
                given,
                across,
                scale_a=each,
                scale_b=columns,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )

        return codes.nbytes + scales.nbytes, multiply

    return RoundedProduct(board, (n, k), copies, build, format="torch fp8", activations="fp8")


def int4(board: Board, n: int, k: int, copies: int) -> Product:
    """Groups of 128."""
    torch = board.torch
    need(n % 8 == 0 and k % GROUP == 0, "n is a multiple of 8, k of 128")
    multiply = torch.ops.aten._weight_int4pack_mm

    def build(weight: Any) -> tuple[int, Multiply]:
        codes, scale, low = _groups(torch, weight)
        pairs = torch.stack([scale, low + 8 * scale], -1).to(torch.bfloat16)
        pairs = pairs.transpose(0, 1).contiguous()
        two = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(two, INNER_TILES)
        return packed.nbytes + pairs.nbytes, lambda x: multiply(x, packed, GROUP, pairs)

    return RoundedProduct(board, (n, k), copies, build, format="torch int4", activations="bfloat16")


def _rows(torch: Any, matrix: Any) -> tuple[Any, Any]:
    """E4M3 with a scale per row."""
    scales = matrix.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (matrix.float() / scales).to(torch.float8_e4m3fn), scales


def _groups(torch: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Codes 0..15, the step and the lowest value of every group."""
    n, k = weight.shape
    groups = weight.float().reshape(n, k // GROUP, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15)
    return codes.to(torch.int32).reshape(n, k), scale, low
