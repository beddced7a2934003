"""Encode: a weight matrix becomes a coded matrix of a format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unspool import native
from unspool.decode.interpret import state_values
from unspool.encode import levels, scales
from unspool.encode.nearest import nearest, nearest_units
from unspool.encode.rotate import rotate
from unspool.encode.scales import Scales
from unspool.encode.viterbi import Search, viterbi
from unspool.errors import WeightError
from unspool.pack.matrix import CodedMatrix
from unspool.pack.tiles import from_rings, pad, to_rings
from unspool.pack.words import pack
from unspool.spec.code import Code
from unspool.spec.format import Format
from unspool.spec.program import Parameter

if TYPE_CHECKING:
    from jaxtyping import Float32

STRIP = 1 << 21
"""Weights encoded at a time: the arrays beside them take some 50 bytes per weight."""

PART = 1 << 18
"""Weights that a thread encodes at a time: its arrays stay near the cache."""

SMALLEST, LARGEST = 1e-15, 1e15
"""Largest weights that formats without a tensor scale take: their squares stay inside float32."""

PASSES = 2
"""Viterbi passes per ring; two lose under 1 % to the exact search on a 256-bit ring."""

Share = Callable[[Callable[[int], Any], int], Sequence[Any]]
"""Has a function called with 0 to count - 1, by whomever; the results in that order."""

CLIPS = tuple(float(c) for c in np.geomspace(0.5, 1.6, 32))
"""Plain formats: scales tried, as a share of the one that just fits the largest weight.

Above 1 too: E2M1 has nothing between 4 and 6, and a block often fits better with its largest at 4.
"""


def alone(work: Callable[[int], Any], count: int) -> list[Any]:
    """The `Share` of one who does it all."""
    return [work(place) for place in range(count)]


def encode(
    weight: Float32[np.ndarray, "n k"],
    fmt: Format,
    *,
    passes: int = PASSES,
    threads: int | None = None,
    where: str = "",
    share: Share = alone,
    search: Search = viterbi,
) -> CodedMatrix:
    """The coded matrix of a weight `[n, k]`, nearest in squared error after the rotation.

    `where` names the layer in errors. Raises WeightError for a weight that is not a finite matrix.
    Rows of zeros decode to zeros (where rows are not rotated into each other). Works through
    the rows in strips: some 100 MB beside the weight and the result, whatever its size. `share`
    divides the strips. `search` finds the states of trellis codes; another one than the CPU's
    (`model.device_search`) is given a whole strip at a time. The bytes are the same.
    """
    weight = checked_weight(weight, where)
    unit = unit_of(weight, fmt, where)
    tensor = None
    if fmt.scale.tensor:
        largest = max(
            float(wanted_scale(strip, fmt).max()) for strip in strips_of(weight, fmt, unit)
        )
        tensor = scales.tensor_scale(largest, fmt.scale.operand)

    def part(place: int) -> Part:
        strip = strip_at(weight, fmt, unit, place, threads)
        return _encode_parts(strip, fmt, tensor, passes, threads, search)

    parts = share(part, strip_count((weight.shape[0], weight.shape[1]), fmt))
    return matrix_of(parts, fmt, (weight.shape[0], weight.shape[1]), tensor, unit)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is stored of one strip."""

    codes: np.ndarray
    scale: np.ndarray | None
    table: np.ndarray | None


def matrix_of(
    parts: Sequence[Part],
    fmt: Format,
    shape: tuple[int, int],
    tensor: np.ndarray | None,
    unit: np.float32,
) -> CodedMatrix:
    """The matrix whose strips were encoded in units of `unit` beside that tensor scale."""
    whole = _together(parts)
    return CodedMatrix(
        format=fmt,
        shape=shape,
        codes=whole.codes,
        scale=whole.scale,
        tensor_scale=None if tensor is None else np.array(tensor * unit, np.float32),
        table=whole.table,
    )


def _together(parts: Sequence[Part]) -> Part:
    """Parts one below the other, as one."""
    return Part(
        codes=np.concatenate([part.codes for part in parts]),
        scale=joined([part.scale for part in parts]),
        table=joined([part.table for part in parts]),
    )


def _encode_parts(
    strip: np.ndarray,
    fmt: Format,
    tensor: np.ndarray | None,
    passes: int,
    threads: int | None,
    search: Search,
) -> Part:
    """A strip, by threads that take some rows at a time."""
    height = _height(len(strip), strip.shape[1], fmt, PART)
    rows = [strip[first : first + height] for first in range(0, len(strip), height)]
    workers = min(native.threads(threads), len(rows))
    one = threads if workers == 1 else 1
    with ThreadPoolExecutor(workers) as pool:
        if search is viterbi or not is_searched(fmt):
            parts = pool.map(lambda part: _encode_strip(part, fmt, tensor, passes, one), rows)
            return _together(list(parts))
        fitted, rings = zip(*pool.map(lambda part: _scaled(part, fmt, tensor), rows), strict=True)
        found = _states(np.concatenate(rings), fmt.code, passes, threads, search)
        states = np.split(found, np.cumsum([len(part) for part in rings])[:-1])
        refitted = pool.map(
            lambda part, states, fitted: _refitted(part, states, fitted, fmt, tensor),
            *(rows, states, fitted),
        )
        return _together(list(refitted))


def is_searched(fmt: Format) -> bool:
    """Whether a format's states are found by a trellis search, rather than a weight at a time."""
    return fmt.code.sigma is not None and not fmt.code.program.parameters


def _encode_strip(
    strip: np.ndarray,
    fmt: Format,
    tensor: np.ndarray | None,
    passes: int,
    threads: int | None,
) -> Part:
    """Encodes rows that are padded and rotated already."""
    if is_searched(fmt):
        fitted, rings = _scaled(strip, fmt, tensor)
        states = _states(rings, fmt.code, passes, threads, viterbi)
        return _refitted(strip, states, fitted, fmt, tensor)
    table = None
    if fmt.code.program.parameters:
        states, fitted, table = _with_levels(strip, fmt, tensor, threads)
    else:
        states, fitted = _plain(strip, fmt, tensor, threads)
    return Part(codes=pack(states, fmt.code), scale=fitted.bits, table=table)


def strip_count(shape: tuple[int, int], fmt: Format) -> int:
    """How many strips the rows of a weight `[n, k]` are worked through in."""
    rows, columns = fmt.padded(*shape)
    return -(-rows // _height(rows, columns, fmt, STRIP))


def _height(rows: int, columns: int, fmt: Format, weights: int) -> int:
    """Rows, whole units of them, that hold about so many weights; all where they share a table."""
    if any(parameter.scope == "tensor" for parameter in fmt.code.program.parameters):
        return rows
    return max(1, weights // columns // fmt.row_unit) * fmt.row_unit


def strip_at(
    weight: np.ndarray, fmt: Format, unit: np.float32, place: int, threads: int | None = None
) -> np.ndarray:
    """A strip of the weight over `unit`, padded and rotated."""
    rows, columns = fmt.padded(weight.shape[0], weight.shape[1])
    height = _height(rows, columns, fmt, STRIP)
    first = place * height
    padded = pad(weight[first : first + height] / unit, min(height, rows - first), columns)
    return rotate(padded, fmt.rotation, first_row=first, threads=threads)


def strips_of(weight: np.ndarray, fmt: Format, unit: np.float32) -> Iterator[np.ndarray]:
    """All strips, one at a time."""
    for place in range(strip_count((weight.shape[0], weight.shape[1]), fmt)):
        yield strip_at(weight, fmt, unit, place)


def unit_of(weight: np.ndarray, fmt: Format, where: str) -> np.float32:
    """A power of two that brings the largest weight to [1, 2), for the tensor scale to take back.

    Squares of weights then stay inside float32, whatever the weights. Without a tensor scale the
    unit is 1, and weights far from it are refused.
    """
    largest = float(np.abs(weight).max())
    if largest and fmt.scale.tensor:
        return np.float32(2.0 ** np.clip(np.floor(np.log2(largest)), -126, 127))
    if largest and not SMALLEST <= largest <= LARGEST:
        raise WeightError(
            f"the largest weight is out of reach of {fmt.name}, which has no tensor scale",
            where=where,
            found=largest,
            allowed=f"{SMALLEST:g} to {LARGEST:g}, or 0",
        )
    return np.float32(1)


def joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """What strips have, one below the other; None where they have none."""
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


def checked_weight(weight: np.ndarray, where: str) -> Float32[np.ndarray, "n k"]:
    """The weight as float32; raises WeightError unless it is a finite matrix."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise WeightError(
            "not a matrix", where=where, found=list(weight.shape), allowed="[n, k], both positive"
        )
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    if not np.isfinite(weight).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(weight))[0])
        raise not_finite(float(weight[row, column]), row, column, where)
    return weight


def not_finite(found: float, row: int, column: int, where: str) -> WeightError:
    """The error of a weight that is NaN or infinite."""
    place = f"{where} row {row}, column {column}".strip()
    return WeightError("a weight is not finite", where=place, found=found)


def wanted_scale(strip: np.ndarray, fmt: Format) -> Float32[np.ndarray, "rows blocks"]:
    """The scale that each block asks for, before rounding.

    Trellis codes: what brings its RMS to the code's sigma. All others: what brings its largest
    weight to the operand's largest value.
    """
    code, blocks = fmt.code, scales.in_blocks(strip, fmt.scale)
    if code.sigma is not None:
        power = np.einsum("rbw,rbw->rb", blocks, blocks) / np.float32(blocks.shape[-1])
        return np.sqrt(power) / np.float32(code.sigma)
    peaks = np.maximum(blocks.max(axis=-1), -blocks.min(axis=-1))
    if code.program.parameters:
        return peaks / np.float32(code.operand.largest)
    values = state_values(code)
    return peaks / values[np.isfinite(values)].max()


def _scaled(strip: np.ndarray, fmt: Format, tensor: np.ndarray | None) -> tuple[Scales, np.ndarray]:
    """Trellis codes: the wanted scales, and what they leave to search, as rings."""
    fitted = scales.store(wanted_scale(strip, fmt), fmt.scale, tensor)
    return fitted, to_rings(scales.divide(strip, fitted, fmt.scale), fmt.code)


def _states(
    rings: np.ndarray, code: Code, passes: int, threads: int | None, search: Search
) -> np.ndarray:
    """States `[down, across, steps]` of rings `[down, across, steps, lanes]`."""
    planes = [(plane.window, plane.stride) for plane in code.planes]
    flat = rings.reshape(-1, code.steps, code.lanes)
    states = search(state_values(code), planes, flat, passes=passes, threads=threads)
    return states.reshape(rings.shape[:3])


def _refitted(
    strip: np.ndarray, states: np.ndarray, fitted: Scales, fmt: Format, tensor: np.ndarray | None
) -> Part:
    """The states beside scales that are refitted to their values."""
    values = from_rings(state_values(fmt.code)[states], fmt.code)
    refitted = scales.refit(strip, values, fitted, fmt.scale, tensor)
    return Part(codes=pack(states, fmt.code), scale=refitted.bits, table=None)


def _plain(
    strip: np.ndarray, fmt: Format, tensor: np.ndarray | None, threads: int | None
) -> tuple[np.ndarray, Scales]:
    """Plain codes: per block the best of many scales, from clipping to spare range."""
    code, scale = fmt.code, fmt.scale
    values, wanted = state_values(code)[:, 0], wanted_scale(strip, fmt)
    fitted = least = None
    for clip in CLIPS:
        candidate = scales.store(wanted * np.float32(clip), scale, tensor)
        chosen = values[nearest(values, scales.divide(strip, candidate, scale), threads=threads)]
        cost = scales.errors(strip, chosen, candidate, scale)
        fitted, least = scales.better(fitted, least, candidate, cost)
    assert fitted is not None
    states = nearest(values, scales.divide(strip, fitted, scale), threads=threads)
    return to_rings(states, code)[..., 0], fitted


def _with_levels(
    strip: np.ndarray, fmt: Format, tensor: np.ndarray | None, threads: int | None
) -> tuple[np.ndarray, Scales, np.ndarray]:
    """Tables fitted to the weights: scales put the largest level at the top of the operand."""
    (parameter,) = fmt.code.program.parameters
    fitted = scales.store(wanted_scale(strip, fmt), fmt.scale, tensor)
    units = _in_units(scales.divide(strip, fitted, fmt.scale), parameter)
    flat = units.reshape(-1, units.shape[-1])
    zero = _holds_zero_row(strip, parameter)
    table = levels.fit(flat, parameter.length, parameter.operand, zero)
    values = parameter.operand.values().astype(np.float32)[table]
    states = nearest_units(values, flat, threads=threads)
    matrix = _from_units(states.reshape(units.shape), parameter, strip.shape)
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
