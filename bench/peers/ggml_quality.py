"""ggml's quantizers on the matrices of a model: quantize and dequantize, with importance.

The importance of an input is the mean of its squares over the calibration text, which is what
llama.cpp's importance matrix holds.
"""

from __future__ import annotations

import numpy as np

from peers.ggml_library import TYPES, Ggml, dequantized


def rounded(
    ggml: Ggml, name: str, weight: np.ndarray, importance: np.ndarray
) -> tuple[np.ndarray, int]:
    """(the weight [n, k] as the type stores it, stored bytes); importance [k]."""
    kind, (n, k) = TYPES[name], weight.shape
    weight = np.ascontiguousarray(weight, np.float32)
    importance = np.ascontiguousarray(importance, np.float32)
    stored = np.empty((n, ggml("ggml_row_size", kind, k)), np.uint8)
    ggml("ggml_quantize_chunk", kind, weight.ctypes.data, stored.ctypes.data, 0, n, k,
         importance.ctypes.data)  # fmt: skip
    return dequantized(ggml, name, stored, k), stored.nbytes
