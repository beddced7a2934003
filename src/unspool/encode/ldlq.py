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

from unspool.encode import scales
from unspool.encode.blas import one_thread
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
from unspool.encode.feedback import Feedback, factor, spread
from unspool.encode.moments import DAMPING, Moments, checked, damped, turned, wanted
from unspool.encode.scales import Scales
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
    through the rows in strips, as `encode` does; the moments take 24 bytes x k x k beside them.
    """
    weight = checked_weight(weight, where)
    n, k = weight.shape
    target = wanted(weight, checked(moments, n, k, where), how.damping)
    columns = fmt.padded(n, k)[1]
    moments_damped = damped(turned(moments.costs, fmt.rotation, columns), how.damping)
    feedback, unit = factor(moments_damped), unit_of(target, fmt, where)
    tensor = None
    if fmt.scale.tensor:
        largest = max(float(wanted_scale(s, fmt).max()) for s in strips_of(target, fmt, unit))
        tensor = scales.tensor_scale(largest, fmt.scale.operand)

    def part(place: int) -> Part:
        strip = strip_at(target, fmt, unit, place, threads)
        walk = _encode_strip(strip, fmt, tensor, feedback, moments_damped, how, threads)
        return Part(codes=pack(walk.states, fmt.code), scale=walk.scales.bits, table=walk.table)

    return matrix_of(share(part, strip_count((n, k), fmt)), fmt, (n, k), tensor, unit)


def _encode_strip(
    strip: np.ndarray,
    fmt: Format,
    tensor: np.ndarray | None,
    feedback: Feedback,
    moments: np.ndarray,
    how: Calibration,
    threads: int | None,
) -> Walk:
    if fmt.code.program.parameters:
        return _walk(strip, LevelColumns(strip, fmt, tensor, feedback, threads), feedback)
    if fmt.code.sigma is None:
        return _walk(strip, PlainColumns(strip, fmt, tensor, feedback, threads), feedback)
    best: Walk | None = None
    asked = wanted_scale(strip, fmt)
    for stretch in how.stretches:
        stored = scales.store(asked * np.float32(stretch), fmt.scale, tensor)
        columns = TrellisColumns(stored, fmt, feedback, how.passes, threads)
        best = _better(best, _walk(strip, columns, feedback), fmt)
    assert best is not None
    return _refitted(strip, best, fmt, tensor, moments)


def _walk(strip: np.ndarray, columns: Columns, feedback: Feedback) -> Walk:
    """Encodes all columns, each after all before it were heard."""
    k, step = strip.shape[1], columns.step
    pass_on = feedback.pass_on.astype(np.float32)
    targets, values = strip.copy(), np.empty_like(strip)
    missed = np.empty_like(strip)
    for first in range(0, k, BATCH):
        last = min(first + BATCH, k)
        for at in range(first, last, step):
            here = slice(at, at + step)
            values[:, here] = columns.encode(at, targets)
            error = targets[:, here] - values[:, here] * columns.scale(at)
            heard = spread(feedback, at, step).astype(np.float32) if step > 1 else None
            missed[:, here] = error if heard is None else error @ heard
            targets[:, at + step : last] += missed[:, here] @ pass_on[here, at + step : last]
        targets[:, last:] += missed[:, first:last] @ pass_on[first:last, last:]
    return Walk(
        states=columns.states(),
        values=values,
        scales=columns.scales(),
        table=columns.table(),
        cost=np.square(missed, dtype=np.float64) @ feedback.cost,
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
    met = walk.values.astype(np.float64) @ moments
    power, agreed = np.einsum("nk,nk->n", met, walk.values), np.einsum("nk,nk->n", met, strip)
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
