"""Windows <-> stored words: a ring's planes, one after the other, lowest bit first.

A window remembers its upper bits for the next step, so the low `stride` bits of every window, in
the order of the steps, are all that is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unspool.errors import WeightError
from unspool.spec.code import WORD_BITS, Code, Plane

if TYPE_CHECKING:
    from jaxtyping import UInt8, UInt32

_BYTES = (Plane(window=8, stride=8),)
"""Planes whose states are the stored bytes as they are."""

CHUNK = 1 << 14
"""Rings per slice: bounds the one-byte-per-bit scratch memory to a few MiB."""


def pack(states: UInt32[np.ndarray, "... steps"], code: Code) -> UInt32[np.ndarray, "... words"]:
    """Stored words of rings of states; the states must be a walk (`check_walk`)."""
    flat = np.ascontiguousarray(states).reshape(-1, code.steps)
    words = np.empty((len(flat), code.words), np.uint32)
    for start in range(0, len(flat), CHUNK):
        words[start : start + CHUNK] = _pack(flat[start : start + CHUNK], code)
    return words.reshape(*states.shape[:-1], code.words)


def unpack(words: UInt32[np.ndarray, "... words"], code: Code) -> UInt32[np.ndarray, "... steps"]:
    """The states of rings of stored words; every word is legal."""
    flat = np.ascontiguousarray(words).reshape(-1, code.words)
    if code.planes == _BYTES:
        bytes_ = flat.astype("<u4", copy=False).view(np.uint8)
        return bytes_.astype(np.uint32).reshape(*words.shape[:-1], code.steps)
    states = np.empty((len(flat), code.steps), np.uint32)
    for start in range(0, len(flat), CHUNK):
        states[start : start + CHUNK] = _unpack(flat[start : start + CHUNK], code)
    return states.reshape(*words.shape[:-1], code.steps)


def check_walk(states: UInt32[np.ndarray, "... steps"], code: Code) -> None:
    """Raises WeightError unless every window shares its memory with the one before it."""
    low = 0
    for plane in code.planes:
        windows = states >> np.uint32(low) & _mask(plane.window)
        remembered = np.roll(windows, 1, axis=-1) >> np.uint32(plane.stride)
        if np.any((windows & _mask(plane.memory)) != remembered):
            raise WeightError("states are no walk on the trellis", where=f"code {code.name}")
        low += plane.window


def _pack(states: UInt32[np.ndarray, "rings steps"], code: Code) -> np.ndarray:
    low, packed = 0, []
    for plane in code.planes:
        stored = states >> np.uint32(low)
        bits = _bits(stored, plane.stride).reshape(len(states), -1)
        packed.append(np.packbits(bits, axis=-1, bitorder="little").view("<u4"))
        low += plane.window
    return np.concatenate(packed, axis=-1)


def _unpack(words: UInt32[np.ndarray, "rings words"], code: Code) -> np.ndarray:
    states = np.zeros((len(words), code.steps), np.uint32)
    low, first = 0, 0
    for plane, size in zip(code.planes, code.plane_bits, strict=True):
        count = size // WORD_BITS
        stored = np.ascontiguousarray(words[:, first : first + count], dtype="<u4")
        bits = np.unpackbits(stored.view(np.uint8), axis=-1, bitorder="little")
        states |= _windows(bits, plane, code.steps) << np.uint32(low)
        low, first = low + plane.window, first + count
    return states


def _windows(bits: UInt8[np.ndarray, "rings bits"], plane: Plane, steps: int) -> np.ndarray:
    windows = np.zeros((len(bits), steps), np.uint32)
    for place in range(plane.window):
        at = (np.arange(steps) * plane.stride + place) % bits.shape[-1]
        windows |= bits[:, at].astype(np.uint32) << np.uint32(place)
    return windows


def _bits(values: UInt32[np.ndarray, "..."], count: int) -> UInt8[np.ndarray, "... count"]:
    places = np.arange(count, dtype=np.uint32)
    return (values[..., None] >> places & np.uint32(1)).astype(np.uint8)


def _mask(bits: int) -> np.uint32:
    return np.uint32((1 << bits) - 1)
