"""Encode with calibration: errors are fed forward along k, in the order of the tiles.

LDLQ (Chee et al. 2023) around whatever encodes a column: the trellis search over a tile's columns
(`survivors`), or the nearest value of a single column where a code has no memory, which is GPTQ.
Scales are searched under the true objective e H e: of a trellis code's row by trying a few and
refitting the best, of a block of a plain format when the walk reaches it, errors so far included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool import native
from unspool.encode import scales
from unspool.encode.blas import in_threads, one_thread
from unspool.encode.columns import Columns, LevelColumns, PlainColumns, TrellisColumns
from unspool.encode.encode import (
    PASSES,
    Part,
    Share,
    alone,
    checked_weight,
    matrix_of,
    strip_at,
    strip_count,
    strips_of,
    unit_of,
    wanted_scale,
)
from unspool.encode.feedback import Feedback, factor, row_metric, spread
from unspool.encode.moments import DAMPING, Moments, checked, damped, turned, wanted
from unspool.encode.scales import Scales
from unspool.encode.survivors import RowMetric
from unspool.pack.matrix import CodedMatrix
from unspool.pack.words import pack
from unspool.spec.format import Format

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

BATCH = 128
"""Columns after which errors reach all later ones, by one matrix product (as in GPTQ)."""

STRETCHES = (1.0,)
"""Scales of a trellis code's rows that are tried, as multiples of what fits their RMS. Trying .94
and 1.06 too lowers a layer's error by a percent and left the KL of the bundled model as it was."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a calibrated encoding goes about it."""

    damping: float = DAMPING
    stretches: tuple[float, ...] = STRETCHES
    passes: int = PASSES


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What a walk over all columns leaves.

    values  float32 [n, k]  in units of the scales
    cost    float64 [n]     e H e of every row
    """

    states: np.ndarray
    values: Float32[np.ndarray, "n k"]
    scales: Scales
    table: np.ndarray | None
    cost: Float64[np.ndarray, "n"]


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What every strip of a layer needs to know of its feedback, made once.

    pass_on  float32 [k, k]
    inside   float32 [k / step, step, step]  `spread` of the columns encoded at a time; None of one
    rows     per tile of a trellis code's row, in units of the mean cost; empty of other codes
    moments  float32 [k, k]
    """

    feedback: Feedback
    pass_on: Float32[np.ndarray, "k k"]
    inside: np.ndarray | None
    rows: tuple[RowMetric, ...]
    moments: Float32[np.ndarray, "k k"]


@one_thread()
def encode_calibrated(
    weight: Float32[np.ndarray, "n k"],
    fmt: Format,
    moments: Moments,
    *,
    how: Calibration = Calibration(),
    threads: int | None = None,
    where: str = "",
    share: Share = alone,
) -> CodedMatrix:
    """The coded matrix of a weight `[n, k]` whose outputs on the calibration inputs err least.

    Raises WeightError for a weight or moments that are not finite or do not fit each other. Works
    through the rows in strips, as `encode` does, a thread each; beside them the moments take
    24 bytes x k x k at most, and the drift as much again twice.
    """
    weight = checked_weight(weight, where)
    n, k = weight.shape
    moments, columns = checked(moments, n, k, where), fmt.padded(n, k)[1]

    def factored(inputs: np.ndarray) -> tuple[np.ndarray, Feedback]:
        met = damped(turned(inputs, fmt.rotation, columns, threads=threads), how.damping)
        return met.astype(np.float32), factor(met, threads=threads)

    target, (met, feedback) = weight, factored(moments.inputs)
    if moments.drift is not None:
        target = wanted(weight, moments.drift, feedback, fmt.rotation, threads=threads)
    if moments.weighed is not None:
        met, feedback = factored(moments.weighed)
    heard, unit = _heard(fmt, feedback, met), unit_of(target, fmt, where)
    tensor = None
    if fmt.scale.tensor:
        largest = max(float(wanted_scale(s, fmt).max()) for s in strips_of(target, fmt, unit))
        tensor = scales.tensor_scale(largest, fmt.scale.operand)
    count = strip_count((n, k), fmt)
    together = min(native.threads(threads), count)
    inner = max(1, native.threads(threads) // together)

    def part(place: int) -> Part:
        strip = strip_at(target, fmt, unit, place, inner)
        walk = _encode_strip(strip, fmt, tensor, heard, how, inner)
        return Part(codes=pack(walk.states, fmt.code), scale=walk.scales.bits, table=walk.table)

    def some(group: int) -> list[Part]:
        first = group * together
        return in_threads(part, range(first, min(first + together, count)), together)

    parts = [each for group in share(some, -(-count // together)) for each in group]
    return matrix_of(parts, fmt, (n, k), tensor, unit)


def _heard(fmt: Format, feedback: Feedback, moments: np.ndarray) -> Heard:
    code, k = fmt.code, len(feedback.cost)
    trellis = code.sigma is not None and not code.program.parameters
    step, inside = code.tile[1] if trellis else 1, None
    rows: tuple[RowMetric, ...] = ()
    if trellis:
        mean = float(feedback.cost.mean())
        places = range(0, k, step)
        rows = tuple(row_metric(feedback, at, step, code.lanes).over(mean) for at in places)
        inside = np.stack([spread(feedback, at, step) for at in places]).astype(np.float32)
    return Heard(
        feedback=feedback,
        pass_on=feedback.pass_on.astype(np.float32),
        inside=inside,
        rows=rows,
        moments=moments,
    )


def _encode_strip(
    strip: np.ndarray,
    fmt: Format,
    tensor: np.ndarray | None,
    heard: Heard,
    how: Calibration,
    threads: int,
) -> Walk:
    if fmt.code.program.parameters:
        return _walk(strip, LevelColumns(strip, fmt, tensor, heard.feedback, threads), heard)
    if fmt.code.sigma is None:
        return _walk(strip, PlainColumns(strip, fmt, tensor, heard.feedback, threads), heard)
    best: Walk | None = None
    asked = wanted_scale(strip, fmt)
    for stretch in how.stretches:
        stored = scales.store(asked * np.float32(stretch), fmt.scale, tensor)
        columns = TrellisColumns(stored, fmt, heard.rows, how.passes, threads)
        best = _better(best, _walk(strip, columns, heard), fmt)
    assert best is not None
    return _refitted(strip, best, fmt, tensor, heard.moments)


def _walk(strip: np.ndarray, columns: Columns, heard: Heard) -> Walk:
    """Encodes all columns, each after all before it were heard."""
    k, step, pass_on = strip.shape[1], columns.step, heard.pass_on
    targets, values = strip.copy(), np.empty_like(strip)
    missed = np.empty_like(strip)
    for first in range(0, k, BATCH):
        last = min(first + BATCH, k)
        for at in range(first, last, step):
            here = slice(at, at + step)
            values[:, here] = columns.encode(at, targets)
            error = targets[:, here] - values[:, here] * columns.scale(at)
            missed[:, here] = error if heard.inside is None else error @ heard.inside[at // step]
            targets[:, at + step : last] += missed[:, here] @ pass_on[here, at + step : last]
        targets[:, last:] += missed[:, first:last] @ pass_on[first:last, last:]
    return Walk(
        states=columns.states(),
        values=values,
        scales=columns.scales(),
        table=columns.table(),
        cost=np.square(missed, dtype=np.float64) @ heard.feedback.cost,
    )


def _better(best: Walk | None, new: Walk, fmt: Format) -> Walk:
    """Of two walks the one that costs less, for every row of tiles on its own."""
    if best is None:
        return new
    height = fmt.code.tile[0]
    lower = new.cost.reshape(-1, height).sum(axis=1) < best.cost.reshape(-1, height).sum(axis=1)
    rows = np.repeat(lower, height)
    of_rows: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda a, b: np.where(  # noqa: E731
        rows.reshape(-1, *[1] * (a.ndim - 1)), a, b
    )
    bits = None
    if new.scales.bits is not None and best.scales.bits is not None:
        bits = of_rows(new.scales.bits, best.scales.bits)
    return Walk(
        states=np.where(lower[:, None, None], new.states, best.states),
        values=of_rows(new.values, best.values),
        scales=Scales(bits=bits, effective=of_rows(new.scales.effective, best.scales.effective)),
        table=None,
        cost=of_rows(new.cost, best.cost),
    )


def _refitted(
    strip: np.ndarray,
    walk: Walk,
    fmt: Format,
    tensor: np.ndarray | None,
    moments: np.ndarray,
) -> Walk:
    """The row scales that suit the chosen values best, kept where they help: w H v / v H v."""
    if fmt.scale.block is not None:
        return walk
    met = walk.values @ moments
    power, agreed = (np.einsum("nk,nk->n", met, v, dtype=np.float64) for v in (walk.values, strip))
    asked = np.divide(agreed, power, out=np.zeros_like(power), where=power > 0)
    new = scales.store(np.maximum(asked, 0)[:, None].astype(np.float32), fmt.scale, tensor)
    costs = [
        found.effective[:, 0] * (found.effective[:, 0] * power - 2 * agreed)
        for found in (new, walk.scales)
    ]
    kept, _ = scales.better(walk.scales, costs[1][:, None], new, costs[0][:, None])
    return Walk(
        states=walk.states, values=walk.values, scales=kept, table=walk.table, cost=walk.cost
    )
