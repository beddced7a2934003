"""Our products: coded weights of random bits, decoded into the matrix units.

All bit patterns are legal, so no weight is encoded here: speed and correctness do not depend on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu.product import Entrant, Maker
from gpu.stage import AbsentError
from unspool.errors import DeclarationError
from unspool.matmul.cuda.activations import quantize
from unspool.matmul.reference import decode_values
from unspool.pack.random import random_matrix
from unspool.spec.catalog import FORMATS

if TYPE_CHECKING:
    from gpu.board import Board

CODED = ("m2-e4m3-quick", "m2-e4m3", "m2-e2m1", "t2-e2m1", "m3-e4m3", "v1.5-e2m1")
PLAIN = ("s2-e4m3", "s3-e4m3", "s4-e4m3", "mxfp4", "nvfp4", "int4", "lut-b")
ACTIVATIONS = ("fp8", "fp8x2", "float16")

_EIGHT_BIT_SUMS = 2.0**-12
"""wgmma's FP8 sums keep some 14 bits of the largest term (DeepGEMM's issues 37 and 50): an error of
a few 2**-14 of the sum of magnitudes."""


class CodedProduct:
    """A format's fused kernels, and from many rows on the vendor's GEMM."""

    def __init__(
        self, board: Board, name: str, activations: str, shape: tuple[int, int], copies: int
    ) -> None:
        """Uploads the copies; AbsentError where this machine does not multiply the format so."""
        from unspool.model.gpu import GpuMatrix
        from unspool.model.processors import CudaProcessor, SimulatedProcessor

        self.format, self.activations, self.copies = name, activations, copies
        self._torch, self._device = board.torch, board.device
        played = board.device == "cpu"
        processor = SimulatedProcessor(board.machine.name) if played else CudaProcessor()
        self._matrix = random_matrix(FORMATS[name], *shape)
        try:
            first = GpuMatrix(self._matrix, processor, activations=activations)
        except DeclarationError as refused:
            raise AbsentError(str(refused)) from refused
        self.nbytes = first.units.nbytes + first.row_scales.nbytes
        self._copies = [first, *(_clone(first) for _ in range(copies - 1))]

    def queue(self, m: int) -> Callable[[int], object]:
        """`call(i)`: both launches of the product with copy i, bfloat16 in and out."""
        dtype = self._torch.bfloat16
        x = self._torch.randn(m, self._matrix.shape[1], device=self._device, dtype=dtype)
        for each in self._copies:
            each.warm_up([m], dtype)

        def call(i: int) -> object:
            return self._copies[i].multiply(x)

        return call

    def result(self, x: np.ndarray) -> np.ndarray:
        """The product with copy 0, float32 in and out."""
        given = self._torch.from_numpy(x.copy()).to(self._device)
        return np.asarray(self._copies[0].multiply(given).cpu().numpy())

    def expected(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rounded activations times the decoded weights, and how far sums may be off."""
        made = self._copies[0].made
        rounded = quantize(x, made).values[:, : self._weights.shape[1]]
        magnitude = np.abs(rounded) @ np.abs(self._weights).T
        single = (x.shape[1] / 16 + 8) * 2.0**-24
        narrow = made.loop == "wgmma" and made.kind != "f16"
        return rounded @ self._weights.T, magnitude * (_EIGHT_BIT_SUMS if narrow else 4 * single)

    @cached_property
    def _weights(self) -> np.ndarray:
        return decode_values(self._matrix).astype(np.float64)[: self._matrix.shape[0]]


def _clone(matrix: Any) -> Any:
    """Another instance of the weight in memory; the rest is shared."""
    other = copy.copy(matrix)
    other.units = matrix.units.clone()
    return other


def _maker(name: str, activations: str) -> Maker:
    def make(board: Board, n: int, k: int, copies: int) -> CodedProduct:
        return CodedProduct(board, name, activations, (n, k), copies)

    return make


ENTRANTS = tuple(
    Entrant(
        name=f"{name} {activations}",
        make=_maker(name, activations),
        bits=FORMATS[name].bits_per_weight(),
    )
    for activations in ACTIVATIONS
    for name in (*CODED, *PLAIN)
)
"""The coded formats first: a run that ends early has these."""
