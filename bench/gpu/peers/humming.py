"""Humming (wheel `humming-kernels`): few-bit integers to FP8 or 16-bit products, compiled by nvcc.

It rounds and packs the weight itself, with a scale per row. Its own rounding of the activations to
FP8 is part of every product, as it is of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu.peers.rounded import Multiply, RoundedProduct, need
from gpu.stage import AbsentError

if TYPE_CHECKING:
    from gpu.board import Board
    from gpu.product import Maker, Product

FP8 = "float8e4m3"


def maker(bits: int, activations: str) -> Maker:
    """Weights of so many bits; activations fp8 or bfloat16."""

    def make(board: Board, n: int, k: int, copies: int) -> Product:
        layer = _layer()
        wide = activations == "bfloat16"
        need(wide or board.gpu.facts.capability >= (8, 9), "FP8 matrix units begin with 8.9")

        def build(weight: Any) -> tuple[int, Multiply]:
            made = layer(
                shape_n=n,
                shape_k=k,
                weight_config={"dtype": f"int{bits}"},
                input_config={} if wide else {"dtype": FP8},
                torch_dtype=board.torch.bfloat16,
            ).to(board.device)
            made.load_from_unquantized(weight)
            made.transform()
            kept = [p for name, p in made.named_parameters() if "weight" in name or "zero" in name]
            return sum(p.nbytes for p in kept), made

        name = f"humming int{bits}"
        return RoundedProduct(board, (n, k), copies, build, format=name, activations=activations)

    return make


def _layer() -> Any:
    try:
        from humming.layer import HummingLayer
    except ImportError as error:
        raise AbsentError(f"humming-kernels: {error}") from error
    except Exception as error:  # its import looks for nvcc and a GPU
        raise AbsentError(f"humming-kernels does not start: {error}") from error
    return HummingLayer
