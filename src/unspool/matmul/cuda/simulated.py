"""A product as a GPU computes it, on the CPU: the very kernels, run thread by thread.

Slow, and for trying kernels: compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unspool.errors import UnspoolError
from unspool.matmul.cuda import simulate
from unspool.matmul.cuda.arrange import Arranged, arrange, sign_words
from unspool.matmul.cuda.launch import ActivationArguments, Arguments, Plan, plan
from unspool.matmul.cuda.recipe import Recipe
from unspool.matmul.cuda.routing import Routing, route
from unspool.matmul.cuda.simulate import address
from unspool.matmul.cuda.source import Kernel, multiply_kernel, prepare_kernel
from unspool.pack.matrix import CodedMatrix

Patch = Callable[[str], str]


def unchanged(source: str) -> str:
    """The kernel as it is."""
    return source


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix, or one per expert, on one machine, by kernels that run on the CPU."""

    matrices: tuple[CodedMatrix, ...]
    made: Recipe
    blocks: int = 3
    slots: int = 3
    output: str = "float32"
    seed: int = 0
    #: changes a kernel's text: for trying what it would do without a barrier
    patch: Patch = unchanged

    @cached_property
    def arranged(self) -> tuple[Arranged, ...]:
        """The matrices as kernels take them."""
        return tuple(arrange(matrix, self.made) for matrix in self.matrices)

    @property
    def matrix(self) -> CodedMatrix:
        """The only matrix, or the first."""
        return self.matrices[0]

    def plan(self, m: int, tokens: int | None = None) -> Plan:
        """The plan for m tokens, in tiles of so many."""
        found = self.arranged[0]
        return plan(self.made, m, found.row_blocks, found.stages, blocks=self.blocks, tokens=tokens)

    def prepare(
        self, x: np.ndarray, planned: Plan, routing: Routing | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(operand bytes, scales per token) as the kernel makes them."""
        fmt, made = self.made.format, self.made
        columns = fmt.padded(1, x.shape[1])[1]
        dtype = "float32" if x.dtype == np.float32 else "float16"
        kernel = prepare_kernel(made, tokens=planned.tokens, columns=columns, dtype=dtype)
        arrays = {
            "input": np.ascontiguousarray(x),
            "signs": sign_words(fmt, columns),
            "positions": made.geometry.positions().astype(np.uint16),
            "output": np.full(planned.activation_bytes, 0xFF, np.uint8),
            "token_scales": np.full(planned.tiles * planned.tokens, np.nan, np.float32),
        }
        if routing is not None:
            arrays["sources"] = routing.sources
        arguments = ActivationArguments(
            **{name: address(array) for name, array in arrays.items()},
            rows=len(x), k=x.shape[1], stages=planned.stages,
        )  # fmt: skip
        grid = planned.tiles * planned.tokens, 1
        _launch(kernel, arguments, arrays, grid, self.seed, unchanged)
        return arrays["output"], arrays["token_scales"]

    def kernel(self, planned: Plan) -> Kernel:
        """The fused kernel of a plan."""
        return multiply_kernel(
            self.made, tokens=planned.tokens, output=self.output, slots=self.slots
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x @ weight.T `[m, n]`; bit patterns for 16-bit outputs."""
        return self._multiply(x, self.plan(len(x)), len(x), None)

    def grouped(self, x: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """Every token times the matrices of its experts `[m * top, n]`; choices `[m, top]`."""
        tokens = self.plan(1).tokens
        routing = route(choices, len(self.matrices), tokens)
        planned = self.plan(len(routing.sources), tokens)
        return self._multiply(x, planned, choices.size, routing)

    def _multiply(
        self, x: np.ndarray, planned: Plan, m: int, routing: Routing | None
    ) -> np.ndarray:
        operand, scales = self.prepare(x, planned, routing)
        n, found = self.matrix.shape[0], self.arranged
        dtype = np.float32 if self.output == "float32" else np.uint16
        arrays = {
            "weights": np.stack([one.units for one in found]),
            "activations": operand,
            "row_scales": np.stack([one.row_scales for one in found]),
            "token_scales": scales,
            "levels": np.stack([one.levels for one in found]),
            "output": np.full((m, n), 0x7FFF, np.uint16).astype(dtype),
            "partials": np.full(planned.partial_bytes, 0xFF, np.uint8),
            "arrivals": np.zeros(planned.arrivals, np.int32),
        }
        if routing is not None:
            arrays |= {"experts": routing.experts, "targets": routing.targets}
        arguments = Arguments(
            **{name: address(array) for name, array in arrays.items()},
            m=m, n=n, row_blocks=planned.row_blocks, stages=planned.stages,
        )  # fmt: skip
        grid = (planned.blocks, planned.tiles)
        _launch(self.kernel(planned), arguments, arrays, grid, self.seed, self.patch)
        if arrays["arrivals"].any():
            raise UnspoolError("a kernel did not leave its counters at zero")
        return arrays["output"]


def _launch(
    kernel: Kernel,
    arguments: Structure,
    arrays: dict[str, np.ndarray],
    grid: tuple[int, int],
    seed: int,
    patch: Patch,
) -> None:
    simulate.run(
        simulate.build(patch(kernel.source)), kernel.name, arguments, arrays, grid=grid,
        threads=kernel.threads, shared_bytes=kernel.shared_bytes, seed=seed,
    )  # fmt: skip
