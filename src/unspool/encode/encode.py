"""Encode: a weight matrix becomes a coded matrix of a format."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from unspool.decode.interpret import state_values
from unspool.encode import levels, scales
from unspool.encode.nearest import nearest, nearest_units
from unspool.encode.rotate import rotate
from unspool.encode.scales import Scales
from unspool.encode.viterbi import viterbi
from unspool.errors import WeightError
from unspool.pack.matrix import CodedMatrix
from unspool.pack.tiles import from_rings, pad, to_rings
from unspool.pack.words import pack
from unspool.spec.code import Code
from unspool.spec.format import Format
from unspool.spec.program import Parameter

PASSES = 2
"""Viterbi passes per ring; two lose under 1 % to the exact search on a 256-bit ring."""

CLIPS = tuple(float(c) for c in np.geomspace(0.5, 1.6, 32))
"""Plain formats: scales tried, as a share of the one that just fits the largest weight.

Above 1 too: E2M1 has nothing between 4 and 6, and a block often fits better with its largest at 4.
"""


def encode(
    weight: Float32[np.ndarray, "n k"],
    fmt: Format,
    *,
    passes: int = PASSES,
    threads: int | None = None,
    where: str = "",
) -> CodedMatrix:
    """The coded matrix of a weight `[n, k]`, nearest in squared error after the rotation.

    `where` names the layer in errors. Raises WeightError for a weight that is not a finite matrix.
    Zero rows get the scale zero (E8M0, which has none, gets its smallest) and decode to zeros.
    """
    weight = _checked(weight, where)
    stored = rotate(pad(weight, *fmt.padded(*weight.shape)), fmt.rotation)
    table = None
    if fmt.code.program.parameters:
        states, fitted, table = _with_levels(stored, fmt, threads)
    elif fmt.code.sigma is None:
        states, fitted = _plain(stored, fmt, threads)
    else:
        states, fitted = _coded(stored, fmt, passes, threads)
    return CodedMatrix(
        format=fmt,
        shape=(weight.shape[0], weight.shape[1]),
        codes=pack(states, fmt.code),
        scale=fitted.bits,
        tensor_scale=fitted.tensor,
        table=table,
    )


def _checked(weight: np.ndarray, where: str) -> Float32[np.ndarray, "n k"]:
    if weight.ndim != 2 or 0 in weight.shape:
        raise WeightError(
            "not a matrix", where=where, found=list(weight.shape), allowed="[n, k], both positive"
        )
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    if not np.isfinite(weight).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(weight))[0])
        raise WeightError(
            "a weight is not finite",
            where=f"{where} row {row}, column {column}".strip(),
            found=float(weight[row, column]),
        )
    return weight


def _coded(
    stored: np.ndarray, fmt: Format, passes: int, threads: int | None
) -> tuple[np.ndarray, Scales]:
    """Trellis codes: scales that match each block's RMS to the code's, then refitted."""
    code, scale = fmt.code, fmt.scale
    blocks = scales.in_blocks(stored, scale)
    rms = np.sqrt(np.einsum("rbw,rbw->rb", blocks, blocks) / blocks.shape[-1])
    fitted = scales.store(rms / np.float32(code.sigma), scale)
    states, values = _search(scales.divide(stored, fitted, scale), code, passes, threads)
    return states, scales.refit(stored, values, fitted, scale)


def _search(
    targets: np.ndarray, code: Code, passes: int, threads: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """States `[down, across, steps]` and their values as a matrix."""
    values = state_values(code)
    rings = to_rings(targets, code)
    planes = [(plane.window, plane.stride) for plane in code.planes]
    flat = rings.reshape(-1, code.steps, code.lanes)
    states = viterbi(values, planes, flat, passes=passes, threads=threads)
    states = states.reshape(rings.shape[:3])
    return states, from_rings(values[states], code)


def _plain(stored: np.ndarray, fmt: Format, threads: int | None) -> tuple[np.ndarray, Scales]:
    """Plain codes: per block the best of many scales, from clipping to spare range."""
    code, scale = fmt.code, fmt.scale
    values = state_values(code)[:, 0]
    largest = np.float32(np.nanmax(np.where(np.isfinite(values), values, np.nan)))
    peaks = np.abs(scales.in_blocks(stored, scale)).max(axis=-1) / largest
    widest = scales.store(peaks, scale)
    candidates, costs = [], []
    for clip in CLIPS:
        candidate = scales.store(peaks * np.float32(clip), scale, widest.tensor)
        chosen = values[nearest(values, scales.divide(stored, candidate, scale), threads=threads)]
        candidates.append(candidate)
        costs.append(scales.errors(stored, chosen, candidate, scale))
    fitted = scales.choose(candidates, costs)
    states = nearest(values, scales.divide(stored, fitted, scale), threads=threads)
    return to_rings(states, code)[..., 0], fitted


def _with_levels(
    stored: np.ndarray, fmt: Format, threads: int | None
) -> tuple[np.ndarray, Scales, np.ndarray]:
    """Tables fitted to the weights: scales put the largest level at the top of the operand."""
    (parameter,) = fmt.code.program.parameters
    peaks = np.abs(scales.in_blocks(stored, fmt.scale)).max(axis=-1)
    fitted = scales.store(peaks / np.float32(parameter.operand.largest), fmt.scale)
    targets = scales.divide(stored, fitted, fmt.scale)
    units = _in_units(targets, parameter)
    flat = units.reshape(-1, units.shape[-1])
    zero = _holds_zero_row(stored, parameter)
    table = levels.fit(flat, parameter.length, parameter.operand, zero)
    values = parameter.operand.values().astype(np.float32)[table]
    states = nearest_units(values, flat, threads=threads)
    matrix = _from_units(states.reshape(units.shape), parameter, stored.shape)
    table = table.reshape(*units.shape[:2], parameter.length)
    return to_rings(matrix, fmt.code)[..., 0], fitted, table


def _holds_zero_row(stored: np.ndarray, parameter: Parameter) -> np.ndarray:
    """Which units `[units]` hold a row of zeros, which has to decode to zeros."""
    down, across = parameter.units(*stored.shape)
    rows = stored.reshape(down, -1, across, stored.shape[1] // across).any(axis=3)
    return np.asarray(~rows).any(axis=1).ravel()


def _in_units(matrix: np.ndarray, parameter: Parameter) -> np.ndarray:
    """`[n, k]` -> `[units down, units across, weights]`: the weights that share a table."""
    n, k = matrix.shape
    down, across = parameter.units(n, k)
    return (
        matrix.reshape(down, n // down, across, k // across)
        .swapaxes(1, 2)
        .reshape(down, across, -1)
    )


def _from_units(units: np.ndarray, parameter: Parameter, shape: tuple[int, ...]) -> np.ndarray:
    n, k = shape
    down, across = parameter.units(n, k)
    return units.reshape(down, across, n // down, k // across).swapaxes(1, 2).reshape(n, k)
