"""Coded weights in the memory of an NVIDIA GPU, and products with them on its current stream.

    upload            units, scales, tables in the kernels' order
    prepare, multiply two launches per product; nothing waits, memory is torch's and given back

Kernels are compiled (or read from the cache) at the first product of a size: call `warm_up` before
a CUDA graph is captured. A captured product has counters of its own, so that graphs may be replayed
in any order and on any streams; where `warm_up` left none, the graph fills them with zeros every
time. Products of the same tokens have the same bits in any batch of the fused
kernels; from LIBRARY_ROWS rows on weights are decoded once and multiplied by the vendor's GEMM,
whose sums are its own (`library_rows=None` turns that off): `gpu_library`.

Compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from unspool.decode.machine import Machine
from unspool.encode.rotate import signs
from unspool.errors import ModelError
from unspool.matmul.cuda import launch
from unspool.matmul.cuda.arrange import Arranged, arrange, recipe_of, sign_words
from unspool.matmul.cuda.launch import ActivationArguments, Arguments, Plan
from unspool.matmul.cuda.library import LIBRARY_ROWS, expansion, why_not
from unspool.matmul.cuda.source import Kernel, multiply_kernel, prepare_kernel
from unspool.model.gpu_library import LibraryProduct
from unspool.model.routing import Tiles
from unspool.pack.matrix import CodedMatrix

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class Processor(Protocol):
    """What runs kernels: a GPU, or in tests a CPU that plays one."""

    machine: Machine
    #: torch's name of where its memory is
    device: torch.device
    #: multiprocessors, and bytes of shared memory per block and per multiprocessor
    processors: int
    per_block: int
    per_processor: int

    def ready(self, kernels: Sequence[Kernel]) -> None:
        """Compiles and loads kernels, side by side where there are several."""

    def run(
        self,
        kernel: Kernel,
        grid: tuple[int, int],
        arguments: ctypes.Structure,
        memory: Mapping[str, torch.Tensor],
    ) -> None:
        """Queues a kernel; `memory` are the tensors that its arguments point to."""

    @property
    def stream(self) -> int:
        """The stream that products are queued on."""

    @property
    def capturing(self) -> bool:
        """Whether they are captured there into a CUDA graph."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Launches:
    """Both launches of a product of one size, and the counters, which stay at zero."""

    planned: Plan
    prepare: Kernel
    multiply: Kernel
    arrivals: torch.Tensor


def upload(
    matrix: CodedMatrix,
    processor: Processor,
    *,
    activations: str = "auto",
    library_rows: int | None = LIBRARY_ROWS,
) -> GpuMatrix:
    """A coded matrix in a GPU's memory.

    `library_rows`: rows from which on products are the library's; None: never.
    Raises DeclarationError for activations that the format or the GPU has not.
    """
    made = recipe_of((matrix,), processor.machine, activations)
    return GpuMatrix(arrange(matrix, made), processor, library_rows=library_rows)


class GpuWeights:
    """Coded weights on a GPU, and the launches of their products."""

    def __init__(self, arranged: Arranged, processor: Processor) -> None:
        """Uploads what `arrange` made."""
        self.made, self.shape = arranged.recipe, arranged.shape
        self.processor = processor
        self.row_blocks, self.stages = arranged.row_blocks, arranged.stages
        fmt = self.made.format
        self.rows, self.columns = fmt.padded(*self.shape)
        put = functools.partial(_put, device=processor.device)
        self.units, self.levels = put(arranged.units), put(arranged.levels)
        self.row_scales = put(arranged.row_scales)
        self.signs = put(sign_words(fmt, self.columns))
        self.positions = put(self.made.geometry.positions().astype(np.int16))
        self.blocks = launch.blocks_of(
            self.made,
            processors=processor.processors,
            per_block=processor.per_block,
            per_processor=processor.per_processor,
        )
        self._launches: dict[tuple[int, int, torch.dtype, int], Launches] = {}
        self._spare: dict[int, list[torch.Tensor]] = {}  # counters for captures, by how many
        self._captured: list[torch.Tensor] = []  # those that graphs point to

    @property
    def nbytes(self) -> int:
        """Bytes of GPU memory that the weight takes."""
        held = (self.units, self.levels, self.row_scales, self.signs, self.positions)
        return sum(tensor.nbytes for tensor in held)

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., k]` as `[m, k]`; raises ModelError for what does not fit."""
        _, k = self.shape
        if x.shape[-1] != k or x.dtype not in DTYPES or x.device != self.processor.device:
            raise ModelError(
                "the activation does not fit the weight on the GPU",
                found=f"{list(x.shape)} of {x.dtype} on {x.device}",
                allowed=f"[..., {k}] of {', '.join(DTYPES.values())} on {self.processor.device}",
            )
        return x.reshape(-1, k).contiguous()

    def _fused(
        self, x: torch.Tensor, output: torch.Tensor, found: Launches, routed: Tiles | None = None
    ) -> torch.Tensor:
        """`[m, k]` to `output`, which is returned `[rows of output, n]`, its outputs rotated back.

        `routed`: rows of x and of the output in every tile, and whose weights it takes.
        """
        planned, run = found.planned, self.processor.run
        empty = functools.partial(torch.empty, dtype=torch.uint8, device=x.device)
        activations = empty(planned.activation_bytes)
        token_scales = empty(4 * planned.tiles * planned.tokens)
        memory = {
            "input": x, "signs": self.signs, "positions": self.positions,
            "output": activations, "token_scales": token_scales,
        }  # fmt: skip
        if routed is not None:
            memory["sources"] = routed.sources
        given = ActivationArguments(
            **_addresses(memory), rows=len(x), k=x.shape[1], stages=self.stages
        )
        run(found.prepare, (planned.tiles * planned.tokens, 1), given, memory)
        of_tiles = {
            "activations": activations, "token_scales": token_scales, "arrivals": found.arrivals
        }  # fmt: skip
        if routed is not None:
            of_tiles |= {"experts": routed.experts, "targets": routed.targets}
        # rows of an output without targets are numbered from the first tile on
        together = planned.tiles if routed is None else planned.together
        partials = empty(planned.partial_bytes // planned.tiles * together)
        for first in range(0, planned.tiles, together):
            turn = {name: _part(t, planned.tiles, first, together) for name, t in of_tiles.items()}
            self._multiply_tiles(found, turn | {"partials": partials, "output": output})
        return self._rotated_back(output)[:, : self.shape[0]]

    def _multiply_tiles(self, found: Launches, given: Mapping[str, torch.Tensor]) -> None:
        """Launches the product of some tiles, with what is theirs."""
        memory = {
            "weights": self.units, "row_scales": self.row_scales, "levels": self.levels, **given
        }  # fmt: skip
        tiles = given["arrivals"].numel() // self.row_blocks
        m, n = given["output"].shape
        arguments = Arguments(
            **_addresses(memory), m=m, n=n, row_blocks=self.row_blocks, stages=self.stages
        )
        self.processor.run(found.multiply, (found.planned.blocks, tiles), arguments, memory)

    @property
    def _output_rows(self) -> int:
        """What a product has of every token: all rows as stored where outputs are rotated."""
        return self.rows if self.made.format.rotation.output_size else self.shape[0]

    def _rotated_back(self, y: torch.Tensor) -> torch.Tensor:
        """Undoes a rotation of the outputs: H, then signs."""
        size = self.made.format.rotation.output_size
        if not size:
            return y
        turned = y.reshape(len(y), -1, size).float() @ _hadamard(size, y.device)
        return (turned.reshape(len(y), -1) * self._output_signs).to(y.dtype)

    @functools.cached_property
    def _output_signs(self) -> torch.Tensor:
        flips = signs(self.rows, self.made.format.rotation.seed, "out").astype(np.float32)
        return torch.from_numpy(flips).to(self.processor.device)

    def _for(self, m: int, dtype: torch.dtype, tokens: int | None = None) -> Launches:
        """Kernels and counters for m rows in tiles of so many: counters per stream, whose products
        take turns, and per captured product.
        """
        planned = launch.plan(
            self.made, m, self.row_blocks, self.stages, blocks=self.blocks, tokens=tokens
        )
        if self.processor.capturing:
            return self._plan(planned, dtype, self._for_capture(planned.arrivals))
        key = planned.tiles, planned.tokens, dtype, self.processor.stream
        if key not in self._launches:
            self._launches[key] = self._plan(planned, dtype, self._zeros(planned.arrivals))
        return self._launches[key]

    def _zeros(self, count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32, device=self.processor.device)

    def _for_capture(self, count: int) -> torch.Tensor:
        """Counters that were zeros before a capture began; else new ones, whose zeros are part of
        the graph, as their memory is."""
        if not self._spare.get(count):
            return self._zeros(count)
        self._captured.append(self._spare[count].pop())
        return self._captured[-1]

    def _warmed_up(self, fused: Sequence[Launches], others: Sequence[Kernel] = ()) -> None:
        """Kernels compiled, and counters for a CUDA graph with one of each product."""
        for count, wanted in Counter(len(each.arrivals) for each in fused).items():
            spare = self._spare.setdefault(count, [])
            spare += [self._zeros(count) for _ in range(wanted - len(spare))]
        kernels = [kernel for each in fused for kernel in (each.prepare, each.multiply)]
        self.processor.ready([*kernels, *others])

    def _plan(self, planned: Plan, dtype: torch.dtype, arrivals: torch.Tensor) -> Launches:
        made, name, tokens = self.made, DTYPES[dtype], planned.tokens
        slots, _ = launch.slots_of(
            made,
            tokens,
            per_block=self.processor.per_block,
            per_processor=self.processor.per_processor,
        )
        return Launches(
            planned=planned,
            prepare=prepare_kernel(made, tokens=tokens, columns=self.columns, dtype=name),
            multiply=multiply_kernel(made, tokens=tokens, output=name, slots=slots),
            arrivals=arrivals,
        )


class GpuMatrix(GpuWeights):
    """A coded matrix on a GPU: `multiply` is x W^T."""

    def __init__(
        self, arranged: Arranged, processor: Processor, *, library_rows: int | None = LIBRARY_ROWS
    ) -> None:
        """Uploads what `arrange` made."""
        super().__init__(arranged, processor)
        self.library_rows = library_rows

    def warm_up(self, rows: Sequence[int], dtype: torch.dtype) -> None:
        """Compiles the kernels of products of so many rows on the current stream, and leaves
        counters for a CUDA graph with one of each."""
        fused = [self._for(m, dtype) for m in rows if not self.by_library(m)]
        others = any(self.by_library(m) for m in rows)
        self._warmed_up(fused, self.library.kernels(dtype) if others else ())

    def by_library(self, m: int) -> bool:
        """Whether products of so many rows are the library's."""
        asked = self.library_rows is not None and m >= self.library_rows
        return asked and not why_not(self.made, self.columns)

    @functools.cached_property
    def library(self) -> LibraryProduct:
        """Products by the library; DeclarationError where there are none."""
        return LibraryProduct(self, expansion(self.made))

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., k]` to `[..., n]` in x's dtype; raises ModelError for what does not fit."""
        n, flat = self.shape[0], self._rows(x)
        if not len(flat):
            return x.new_empty((*x.shape[:-1], n))
        if self.by_library(len(flat)):
            out = self._rotated_back(self.library.multiply(flat))[:, :n]
        else:
            output = x.new_empty((len(flat), self._output_rows))
            out = self._fused(flat, output, self._for(len(flat), x.dtype))
        return out.reshape(*x.shape[:-1], n).contiguous()


def _put(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array's bytes on a device; never empty, so that it has an address."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return torch.from_numpy(flat.copy() if flat.size else np.zeros(16, np.uint8)).to(device)


def _part(of_tiles: torch.Tensor, tiles: int, first: int, count: int) -> torch.Tensor:
    """What belongs to some of the tiles."""
    return of_tiles.reshape(tiles, -1)[first : first + count].reshape(-1)


def _addresses(memory: Mapping[str, torch.Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in memory.items()}


@functools.cache
def _hadamard(size: int, device: torch.device) -> torch.Tensor:
    """The orthonormal transform as a matrix `[size, size]`."""
    index = np.arange(size)
    bits = np.bitwise_count(index[:, None] & index)
    found = np.where(bits % 2, -1.0, 1.0) / np.sqrt(size)
    return torch.from_numpy(found.astype(np.float32)).to(device)
