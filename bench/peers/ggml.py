"""Products with ggml's quantized weights: a graph of one `ggml_mul_mat` on the CPU backend.

Weights are put into the CPU's "repack" buffer where ggml has a quicker order for their type, as
llama.cpp does when it loads a model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from peers.ggml_library import F32, GRAPH_SIZE, TYPES, Ggml, dequantized, quantized_rows
from unspool.evaluate.products import copies, in_turn

WEIGHTS = 1
"""`GGML_BACKEND_BUFFER_USAGE_WEIGHTS`."""


class GgmlWeights:
    """Copies of one quantized matrix [n, k]: a peer's `unspool.evaluate.products.Weights`."""

    products_per_call = 1

    def __init__(self, ggml: Ggml, name: str, n: int, k: int, *, hot: bool = False) -> None:
        """Quantizes Gaussian rows and stores the copies, in ggml's own order where it has one."""
        self._ggml, self.name, self.n, self.k = ggml, name, n, k
        self.rows = quantized_rows(ggml, name, n, k)
        self.format, self.nbytes = f"ggml {name}", self.rows.nbytes
        self._count, self._next = copies(self.nbytes, hot=hot), itertools.count()
        self._contexts: list[int] = []
        self._buffers: list[int] = []
        repacked = ggml.repack and self._allocate(ggml.repack)
        if not repacked:
            self._allocate(ggml.plain)
        self.path = "ggml repacked" if repacked else "ggml plain"
        for tensor in self._tensors:
            ggml("ggml_backend_tensor_set", tensor, self.rows.ctypes.data, 0, self.nbytes)

    def product(self, x: np.ndarray, threads: int) -> Callable[[], None]:
        """A function that multiplies x [m, k] with the next copy."""
        made = self._products(x, self._tensors)
        calls = [self._ggml.computation(graph, threads) for graph, _ in made]
        return in_turn(calls, self._next)

    def result(self, x: np.ndarray, threads: int = 1) -> np.ndarray:
        """The product with the first copy, float32 [m, n]."""
        ((graph, y),) = self._products(x, self._tensors[:1])
        self._ggml.computation(graph, threads)()
        out = np.empty((len(x), self.n), np.float32)
        self._ggml("ggml_backend_tensor_get", y, out.ctypes.data, 0, out.nbytes)
        return out

    def dense(self) -> np.ndarray:
        """The weight that the stored bytes stand for, float32 [n, k]."""
        return dequantized(self._ggml, self.name, self.rows, self.k)

    def rotation(self, x: np.ndarray, threads: int) -> None:
        """There is none."""

    def close(self) -> None:
        """Gives all memory back."""
        for buffer in self._buffers:
            self._ggml("ggml_backend_buffer_free", buffer)
        for context in self._contexts:
            self._ggml("ggml_free", context)
        self._buffers, self._contexts = [], []

    def _allocate(self, where: int) -> bool:
        """Takes memory for all copies; says whether the backend multiplies with them there."""
        ggml, kind = self._ggml, TYPES[self.name]
        context = self._context(self._count)
        self._tensors = [
            ggml("ggml_new_tensor_2d", context, kind, self.k, self.n) for _ in range(self._count)
        ]
        ggml("ggml_backend_buffer_set_usage", self._buffer(context, where), WEIGHTS)
        trial = self._context(2)
        x = ggml("ggml_new_tensor_2d", trial, F32, self.k, 1)
        product = ggml("ggml_mul_mat", trial, self._tensors[0], x)
        runs = bool(ggml("ggml_backend_dev_supports_op", ggml.device, product))
        if not runs:
            self.close()
        return runs

    def _context(self, tensors: int, graphs: int = 0) -> int:
        self._contexts.append(self._ggml.context(tensors, graphs))
        return self._contexts[-1]

    def _buffer(self, context: int, where: int) -> int:
        found = self._ggml("ggml_backend_alloc_ctx_tensors_from_buft", context, where)
        if not found:
            raise MemoryError(f"ggml has no memory for {self._count} copies of {self.name}")
        self._buffers.append(found)
        return found

    def _products(self, x: np.ndarray, weights: list[int]) -> list[tuple[int, int]]:
        """Graph and result of a product with each of the weights; all share the activations."""
        ggml, (m, k) = self._ggml, x.shape
        context = self._context(1 + len(weights), len(weights))
        given = ggml("ggml_new_tensor_2d", context, F32, k, m)
        results = [ggml("ggml_mul_mat", context, weight, given) for weight in weights]
        self._buffer(context, ggml.plain)
        x = np.ascontiguousarray(x, np.float32)
        ggml("ggml_backend_tensor_set", given, x.ctypes.data, 0, x.nbytes)
        return [(self._graph(context, result), result) for result in results]

    def _graph(self, context: int, result: int) -> int:
        graph = self._ggml("ggml_new_graph_custom", context, GRAPH_SIZE, False)
        self._ggml("ggml_build_forward_expand", graph, result)
        return graph
