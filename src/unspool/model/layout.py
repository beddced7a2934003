"""How a coded matrix is laid out in a layer's buffers and on disk; needs no torch.

Scales and tables are buffers of integers, bit pattern by bit pattern: `model.to(dtype)`, `half()`
and `from_pretrained(dtype=...)` cast every floating-point buffer, and a scale rounded to bfloat16
is wrong by up to 0.4 %. uint16 and uint32 become their signed twins, which torch fully supports.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unspool.pack.matrix import CODES, SCALE, TABLE, TENSOR_SCALE, array_specs
from unspool.spec.format import Format

#: array of a coded matrix -> buffer of the layer, and tensor on disk
BUFFERS: Mapping[str, str] = {
    CODES: "weight_codes",
    SCALE: "weight_scale",
    TENSOR_SCALE: "weight_tensor_scale",
    TABLE: "weight_table",
}

#: dtype of an array -> dtype of its buffer
BUFFER_DTYPE: Mapping[str, str] = {
    "uint8": "uint8",
    "uint16": "int16",
    "uint32": "int32",
    "float32": "int32",
}

#: dtype of a buffer -> its name in safetensors
STORED_DTYPE: Mapping[str, str] = {"uint8": "U8", "int16": "I16", "int32": "I32"}


def stored_shapes(fmt: Format, n: int, k: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Buffers of an `[n, k]` weight: `{name: (dtype, shape)}`; a scalar has shape [1]."""
    return {
        BUFFERS[name]: (BUFFER_DTYPE[spec.dtype], spec.shape or (1,))
        for name, spec in array_specs(fmt, n, k).items()
    }


def as_arrays(
    fmt: Format, n: int, k: int, stored: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Buffers seen as the arrays of a coded matrix; nothing is copied."""
    return {
        name: stored[BUFFERS[name]].view(spec.dtype).reshape(spec.shape)
        for name, spec in array_specs(fmt, n, k).items()
    }


def as_buffers(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a coded matrix seen as buffers; the inverse of `as_arrays`."""
    return {BUFFERS[name]: _as_buffer(array) for name, array in arrays.items()}


def _as_buffer(array: np.ndarray) -> np.ndarray:
    whole = np.ascontiguousarray(array).reshape(array.shape or (1,))
    return whole.view(BUFFER_DTYPE[str(array.dtype)])
