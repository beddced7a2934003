"""Our products: coded weights of random bits, decoded into the matrix units.

All bit patterns are legal, so no weight is encoded here: speed and correctness do not depend on it.
Large matrices repeat a block, so that what is expected takes no minutes to compute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu.product import Entrant, Maker, Sources
from gpu.stage import AbsentError
from unspool.decode.machine import Machine
from unspool.errors import DeclarationError, UnspoolError
from unspool.matmul.cuda.activations import quantize
from unspool.matmul.cuda.arrange import Arranged, arrange
from unspool.matmul.cuda.launch import slots_of, tokens_of
from unspool.matmul.cuda.library import LIBRARY_ROWS, expanded, expansion, why_not
from unspool.matmul.cuda.recipe import Recipe, recipe
from unspool.matmul.cuda.source import Kernel, expand_kernel, multiply_kernel, prepare_kernel
from unspool.matmul.reference import decode_values
from unspool.pack.matrix import CodedMatrix
from unspool.pack.random import random_matrix
from unspool.spec.catalog import FORMATS
from unspool.spec.operand import E4M3

if TYPE_CHECKING:
    from gpu.board import Board

FLAGSHIPS = ("m2-e4m3", "m3-e4m3", "mxfp4")
CODED = ("m2-e4m3-quick", "x2-e4m3", "x3-e4m3", "m2-e2m1", "t2-e2m1", "v1.5-e2m1")
PLAIN = ("s4-e4m3", "nvfp4", "s2-e4m3", "s3-e4m3", "int4", "lut-b")
FORMATS_OF_OURS = (*FLAGSHIPS, *CODED, *PLAIN)
ACTIVATIONS = (("fp8", "fp8x2"), ("float16", "fp4", "int8"))
"""The second are after all formats have had the first. `fp8x2` is what servers get by default."""

REPEATED, REPEATED_ACROSS = 1024, 1792
"""Rows and columns of the block: 7 stages, so that what a kernel has in flight, 2 to 6 of them, is
never the same again when its place is used anew. Where k is no multiple, 1024 columns."""

SMALL = 1 << 23
"""Weights up to which a matrix is random throughout."""

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
        from unspool.model.processors import SimulatedProcessor, processor

        self.format, self.activations, self.copies = name, activations, copies
        self._torch, self._device, self._k = board.torch, board.device, shape[1]
        self._made = _recipe(name, board.machine, activations)
        played = board.device == "cpu"
        runs = SimulatedProcessor(board.machine.name) if played else processor()
        self._block, arranged = _weights(self._made, shape)
        self._row_scales = arranged.row_scales
        self._down = shape[0] // self._block.shape[0]
        first = GpuMatrix(arranged, runs)
        self.nbytes = first.nbytes
        self._copies = [first, *(_clone(first) for _ in range(copies - 1))]

    def queue(self, m: int) -> Callable[[int], object]:
        """`call(i)`: both launches of the product with copy i, bfloat16 in and out."""
        dtype = self._torch.bfloat16
        x = self._torch.randn(m, self._k, device=self._device, dtype=dtype)
        for each in self._copies:
            each.warm_up([m], dtype)

        def call(i: int) -> object:
            return self._copies[i].multiply(x)

        return call

    def result(self, x: np.ndarray) -> np.ndarray:
        """The product with copy 0, float32 in and out."""
        given = self._torch.from_numpy(x.copy()).to(self._device)
        return np.asarray(self._copies[0].multiply(given).cpu().numpy())

    def expected(self, x: np.ndarray, batch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The rounded activations times the decoded weights, and how far sums may be off.

        In a batch as large as that, by the library where it is the library's.
        """
        if self._copies[0].by_library(max(batch, len(x))):
            return self._expected_of_library(x)
        narrow = self._made.loop == "wgmma" and self._made.kind not in ("f16", "s8")
        single = 4 * (x.shape[1] / 16 + 8) * 2.0**-24
        bound = _EIGHT_BIT_SUMS if narrow else single
        return self._product(quantize(x, self._made).values, self._values, bound)

    def _expected_of_library(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = expansion(self._made)
        scales = self._row_scales[: len(self._library_values)].astype(np.float64) * found.factor
        values = self._library_values * scales[:, None]
        eight = found.operand is E4M3
        single = (x.shape[1] + 8) * 2.0**-24  # FP32 sums in any order
        bound = _EIGHT_BIT_SUMS if eight else single
        sums, allowed = self._product(quantize(x, found.recipe).values, values, bound)
        return sums, allowed + eight * 2.0**-8 * np.abs(sums)  # it comes as bfloat16

    def _product(
        self, rounded: np.ndarray, values: np.ndarray, bound: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """With the whole matrix, which repeats these values; bound: of the sum of magnitudes."""
        rows, width = values.shape
        rows = min(rows, self._block.shape[0])
        parts = rounded[:, : len(rounded[0]) // width * width].reshape(len(rounded), -1, width)
        sums = parts.sum(axis=1) @ values[:rows].T
        magnitude = np.abs(parts).sum(axis=1) @ np.abs(values[:rows]).T
        return np.tile(sums, self._down), np.tile(magnitude * bound, self._down)

    @cached_property
    def _values(self) -> np.ndarray:
        return decode_values(self._block).astype(np.float64)

    @cached_property
    def _library_values(self) -> np.ndarray:
        return expanded(self._block, self._row_scales, expansion(self._made))


def _recipe(name: str, machine: Machine, activations: str) -> Recipe:
    try:
        made = recipe(FORMATS[name], machine, activations)
        usual = recipe(FORMATS[name], machine)
    except DeclarationError as refused:
        raise AbsentError(str(refused)) from refused
    if activations == "float16" and usual.activations != activations:
        raise AbsentError("binary16 is for what the FP8 units of this machine do not multiply")
    return made


def _weights(made: Recipe, shape: tuple[int, int]) -> tuple[CodedMatrix, Arranged]:
    """(the block that the matrix repeats, or all of it; the matrix)."""
    wide = REPEATED if shape[1] % REPEATED_ACROSS else REPEATED_ACROSS
    repeats = shape[0] * shape[1] > SMALL and not (shape[0] % REPEATED or shape[1] % wide)
    block = random_matrix(made.format, *((REPEATED, wide) if repeats else shape))
    one = arrange(block, made)
    if not repeats:
        return block, one
    down, across = shape[0] // REPEATED, shape[1] // wide
    whole = Arranged(
        recipe=made,
        shape=shape,
        units=np.tile(one.units, (down, across, 1)),
        row_scales=np.tile(one.row_scales, down),
        levels=np.tile(one.levels, (down, 1, 1)),
    )
    return block, whole


def _clone(matrix: Any) -> Any:
    """Another instance of the weight in memory; the rest is shared."""
    other = copy.copy(matrix)
    other.__dict__.pop("library", None)  # of the other's codes
    other.units = matrix.units.clone()
    return other


def _sources(name: str, activations: str) -> Sources:
    """What `GpuMatrix` compiles, known without a weight."""

    def sources(
        board: Board, shape: tuple[int, int], batches: Sequence[int], dtype: str
    ) -> list[str]:
        try:
            made = _recipe(name, board.machine, activations)
            return [
                kernel.source for m in batches for kernel in _kernels(made, board, shape, m, dtype)
            ]
        except (AbsentError, UnspoolError):  # told where it is made
            return []

    return sources


def _kernels(
    made: Recipe, board: Board, shape: tuple[int, int], m: int, dtype: str
) -> tuple[Kernel, Kernel]:
    _, columns = made.format.padded(*shape)
    if m >= LIBRARY_ROWS and not why_not(made, columns):
        found = expansion(made)
        flat = prepare_kernel(found.recipe, tokens=8, columns=columns, dtype=dtype, flat=True)
        return expand_kernel(found), flat
    facts, tokens = board.gpu.facts, tokens_of(made, m)
    per_processor = facts.processor_shared_bytes
    slots, _ = slots_of(made, tokens, per_block=facts.shared_bytes, per_processor=per_processor)
    return (
        prepare_kernel(made, tokens=tokens, columns=columns, dtype=dtype),
        multiply_kernel(made, tokens=tokens, output=dtype, slots=slots),
    )


def _maker(name: str, activations: str) -> Maker:
    def make(board: Board, n: int, k: int, copies: int) -> CodedProduct:
        return CodedProduct(board, name, activations, (n, k), copies)

    return make


ENTRANTS = tuple(
    Entrant(
        name=f"{name} {activations}",
        make=_maker(name, activations),
        bits=FORMATS[name].bits_per_weight(),
        flagship=name in FLAGSHIPS,
        sources=_sources(name, activations),
    )
    for together in ACTIVATIONS
    for name in FORMATS_OF_OURS
    for activations in together
)
"""A run that ends early has the first of them, with both activations."""
