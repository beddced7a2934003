"""ggml from a shared library whose folder is given; nothing of it is here.

Any build of ggml or llama.cpp with shared libraries will do (see README.md beside this file).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np

TYPES = {
    "Q4_0": 2, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q6_K": 14, "IQ2_XXS": 16, "IQ2_XS": 17,
    "IQ3_XXS": 18, "IQ3_S": 21, "IQ4_XS": 23, "MXFP4": 39, "Q8_0": 8,
}  # fmt: skip
"""Numbers of `enum ggml_type`; they stand in files, hence they stay."""

F32 = 0
SAMPLE_ROWS = 64
"""Rows that are quantized; a matrix repeats them. The searched types take seconds per million."""

GRAPH_SIZE = 8
"""Nodes and leaves that a graph has room for."""

LIBRARIES = ("ggml-base", "ggml-cpu", "ggml")


_QUIET = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, data: None)


class _Parameters(Structure):
    _fields_ = (("size", c_size_t), ("buffer", c_void_p), ("no_alloc", c_bool))


class _Traits(Structure):
    """The head of `ggml_type_traits`."""

    _fields_ = (
        ("name", c_char_p), ("block", c_int64), ("interleave", c_int64), ("size", c_size_t),
        ("is_quantized", c_bool), ("to_float", ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
    )  # fmt: skip


COMPUTE = "ggml_backend_graph_compute"
_V, _I, _L = c_void_p, c_int, c_int64
SIGNATURES = {
    "ggml_log_set": (None, [c_void_p, c_void_p]),
    "ggml_init": (_V, [_Parameters]),
    "ggml_free": (None, [_V]),
    "ggml_new_tensor_2d": (_V, [_V, _I, _L, _L]),
    "ggml_mul_mat": (_V, [_V, _V, _V]),
    "ggml_new_graph_custom": (_V, [_V, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [_V, _V]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_row_size": (c_size_t, [_I, _L]),
    "ggml_get_type_traits": (POINTER(_Traits), [_I]),
    "ggml_quantize_chunk": (c_size_t, [_I, _V, _V, _L, _L, _L, _V]),
    "ggml_backend_cpu_init": (_V, []),
    "ggml_backend_cpu_set_n_threads": (None, [_V, _I]),
    "ggml_backend_get_device": (_V, [_V]),
    "ggml_backend_dev_backend_reg": (_V, [_V]),
    "ggml_backend_dev_supports_op": (c_bool, [_V, _V]),
    "ggml_backend_reg_get_proc_address": (_V, [_V, c_char_p]),
    "ggml_backend_get_default_buffer_type": (_V, [_V]),
    "ggml_backend_buft_name": (c_char_p, [_V]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_V, [_V, _V]),
    "ggml_backend_buffer_set_usage": (None, [_V, _I]),
    "ggml_backend_buffer_free": (None, [_V]),
    "ggml_backend_tensor_set": (None, [_V, _V, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [_V, _V, c_size_t, c_size_t]),
    COMPUTE: (_I, [_V, _V]),
}


class Ggml:
    """The library of a folder, and its CPU backend."""

    def __init__(self, folder: Path) -> None:
        """Loads it; raises OSError where the folder lacks it."""
        self._loaded = [
            ctypes.CDLL(str(_library(folder, name)), mode=ctypes.RTLD_GLOBAL) for name in LIBRARIES
        ]
        self._functions = {name: self._find(name) for name in SIGNATURES}
        self("ggml_log_set", ctypes.cast(_QUIET, c_void_p), None)  # a line for every tensor
        self._threads = 0
        self.backend = self("ggml_backend_cpu_init")
        self.device = self("ggml_backend_get_device", self.backend)
        self.plain = self("ggml_backend_get_default_buffer_type", self.backend)
        self.repack = self._repack_buffer_type()

    def __call__(self, name: str, *arguments: object) -> object:
        """Calls a C function by its name."""
        return self._functions[name](*arguments)

    def context(self, tensors: int, graphs: int = 0) -> int:
        """A context for that many tensors and graphs of one node, their data elsewhere."""
        size = tensors * self("ggml_tensor_overhead")
        size += graphs * self("ggml_graph_overhead_custom", GRAPH_SIZE, False)
        return self("ggml_init", _Parameters(size + 1024, None, True))

    def computation(self, graph: int, threads: int) -> Callable[[], None]:
        """A function that computes a graph."""
        compute, backend, place = self._functions[COMPUTE], self.backend, c_void_p(graph)

        def run() -> None:
            if threads != self._threads:
                self("ggml_backend_cpu_set_n_threads", backend, threads)
                self._threads = threads
            if compute(backend, place):
                raise RuntimeError("ggml refused the product")

        return run

    def _find(self, name: str) -> object:
        for library in self._loaded:
            found = getattr(library, name, None)
            if found is not None:
                found.restype, found.argtypes = SIGNATURES[name]
                return found
        raise OSError(f"the ggml library has no function {name}")

    def _repack_buffer_type(self) -> int | None:
        registry = self("ggml_backend_dev_backend_reg", self.device)
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self("ggml_backend_reg_get_proc_address", registry, name)
        if not address:
            return None
        types = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.device)
        place = 0
        while types and types[place]:
            if b"REPACK" in self("ggml_backend_buft_name", types[place]).upper():
                return types[place]
            place += 1
        return None


def _library(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(f"lib{name}.so*"), key=lambda path: len(path.name))
    if not found:
        raise FileNotFoundError(2, f"no lib{name}.so below this folder", str(folder))
    return found[0]


def quantized_rows(ggml: Ggml, name: str, n: int, k: int, sigma: float = 1.0) -> np.ndarray:
    """Gaussian rows in a type's own bytes [n, bytes per row]; every 64th row is the same."""
    kind, rows = TYPES[name], min(n, SAMPLE_ROWS)
    values = np.random.default_rng(0).standard_normal((rows, k), dtype=np.float32)
    values *= np.float32(sigma)
    ones = np.ones(k, np.float32)
    out = np.empty((rows, ggml("ggml_row_size", kind, k)), np.uint8)
    ggml("ggml_quantize_chunk", kind, values.ctypes.data, out.ctypes.data, 0, rows, k,
         ones.ctypes.data)  # fmt: skip
    return np.tile(out, (-(-n // rows), 1))[:n]


def dequantized(ggml: Ggml, name: str, rows: np.ndarray, k: int) -> np.ndarray:
    """float32 [n, k] of quantized rows."""
    out = np.empty((len(rows), k), np.float32)
    rows = np.ascontiguousarray(rows)
    to_float = ggml("ggml_get_type_traits", TYPES[name]).contents.to_float
    to_float(rows.ctypes.data, out.ctypes.data, out.size)
    return out
