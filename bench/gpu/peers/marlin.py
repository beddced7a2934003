"""Marlin (the original package): int4 in groups of 128, float16 activations, 8.x and 9.0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu.peers.rounded import Multiply, RoundedProduct, need
from gpu.stage import AbsentError

if TYPE_CHECKING:
    from gpu.board import Board
    from gpu.product import Product

GROUP = 128


def int4(board: Board, n: int, k: int, copies: int) -> Product:
    """Symmetric, the scale is a group's largest magnitude over seven."""
    module, torch = _marlin(), board.torch
    need(n % 256 == 0 and k % 128 == 0, "n is a multiple of 256, k of 128")

    def build(weight: Any) -> tuple[int, Multiply]:
        half = weight.half()
        scales = half.reshape(n, k // GROUP, GROUP).abs().amax(-1) / 7
        linear = torch.nn.Linear(k, n, bias=False, dtype=torch.half)
        spread = scales.repeat_interleave(GROUP, 1)
        linear.weight.data = ((half / spread).round().clamp(-8, 7) * spread).cpu()
        made = module.Layer(k, n, groupsize=GROUP)
        made.pack(linear, scales.cpu())
        made = made.to(board.device)
        return made.B.nbytes + made.s.nbytes, made

    return RoundedProduct(
        board,
        (n, k),
        copies,
        build,
        format="marlin int4",
        activations="float16",
        dtype=torch.float16,
    )


def _marlin() -> Any:
    try:
        import marlin
    except ImportError as error:
        raise AbsentError(f"marlin: {error}") from error
    return marlin
