"""How the columns of a calibrated walk are encoded: trellis, plain values, fitted levels.

`ldlq` walks over the columns and keeps their targets; a `Columns` encodes the next few of them and
keeps states, scales and tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from unspool.decode.interpret import state_values
from unspool.encode import levels, scales
from unspool.encode.encode import CLIPS, wanted_scale
from unspool.encode.feedback import Feedback
from unspool.encode.nearest import nearest, nearest_units
from unspool.encode.scales import Scales
from unspool.encode.survivors import RowMetric, search, survivors
from unspool.encode.viterbi import trellis
from unspool.pack.tiles import to_rings
from unspool.spec.format import Format
from unspool.spec.scale import Scale

if TYPE_CHECKING:
    from jaxtyping import Float32


class Columns(Protocol):
    """What a walk asks of the encoder of a format."""

    #: columns that are encoded at a time
    step: int

    def encode(self, first: int, targets: Float32[np.ndarray, "n k"]) -> np.ndarray:
        """Values `[n, step]` of the columns from `first` on, in units of their scales."""

    def scale(self, first: int) -> Float32[np.ndarray, "n 1"]:
        """What those values are multiplied with."""

    def states(self) -> np.ndarray:
        """The states of all columns as rings `[down, across, steps]`."""

    def scales(self) -> Scales:
        """The scales of all columns."""

    def table(self) -> np.ndarray | None:
        """The fitted tables, if the format has any."""


class TrellisColumns:
    """A tile's columns at a time, by the search whose survivors hear of their own errors."""

    def __init__(
        self,
        stored: Scales,
        fmt: Format,
        rows: Sequence[RowMetric],
        passes: int,
        threads: int | None,
    ) -> None:
        """`stored`: the scales of all rows and blocks; `rows`: the metric of each tile's row."""
        self._code, self._scale, self._stored = fmt.code, fmt.scale, stored
        self._rows, self._passes, self._threads = rows, passes, threads
        self._found: list[np.ndarray] = []
        self._planes = tuple((plane.window, plane.stride) for plane in fmt.code.planes)
        self._trellis = trellis(state_values(fmt.code), self._planes)
        self.step = fmt.code.tile[1]

    def encode(self, first: int, targets: np.ndarray) -> np.ndarray:
        """See `Columns`."""
        code, scale = self._code, self.scale(first)
        inverse = scales.inverse(scale)
        tile = (targets[:, first : first + self.step] * inverse).reshape(-1, *code.tile)
        values = state_values(code)
        wanted = search(values, self._planes, self._rows[first // self.step], self._trellis)
        states = survivors(wanted, tile, passes=self._passes, threads=self._threads)
        self._found.append(states)
        return values[states].reshape(-1, self.step)

    def scale(self, first: int) -> np.ndarray:
        """See `Columns`."""
        effective, block = self._stored.effective, self._scale.block
        place = 0 if block is None else first // block
        return effective[:, place : place + 1]

    def states(self) -> np.ndarray:
        """See `Columns`."""
        return np.stack(self._found, axis=1)

    def scales(self) -> Scales:
        """See `Columns`."""
        return self._stored

    def table(self) -> None:
        """None: the code's table is a constant."""


class PlainColumns:
    """One column at a time to its nearest values, a block's scales when the block is reached."""

    step = 1

    def __init__(
        self,
        strip: np.ndarray,
        fmt: Format,
        tensor: np.ndarray | None,
        feedback: Feedback,
        threads: int | None,
    ) -> None:
        """`strip` says the shape alone."""
        self._fmt, self._tensor, self._threads = fmt, tensor, threads
        self._cost = feedback.cost.astype(np.float32)
        self._values = state_values(fmt.code)[:, 0]
        self._states = np.empty(strip.shape, np.uint32)
        self._block = fmt.scale.block or strip.shape[1]
        self._found: list[Scales] = []

    def encode(self, first: int, targets: np.ndarray) -> np.ndarray:
        """See `Columns`."""
        if first % self._block == 0:
            self._found.append(self._fitted(first, targets))
        scale, column = self.scale(first), targets[:, first : first + 1]
        inverse = scales.inverse(scale)
        states = nearest(self._values, column * inverse, threads=self._threads)
        self._states[:, first : first + 1] = states
        return self._values[states]

    def scale(self, first: int) -> np.ndarray:
        """See `Columns`."""
        effective = self._found[first // self._block].effective
        return np.broadcast_to(effective, (len(self._states), 1))

    def states(self) -> np.ndarray:
        """See `Columns`."""
        return to_rings(self._states, self._fmt.code)[..., 0]

    def scales(self) -> Scales:
        """See `Columns`."""
        return _side_by_side(self._found)

    def table(self) -> None:
        """None: the code's table is a constant."""

    def _fitted(self, first: int, targets: np.ndarray) -> Scales:
        """Per row the best of many scales for the block as it is now, columns by their cost."""
        block = targets[:, first : first + self._block]
        whole = Scale(operand=self._fmt.scale.operand, tensor=self._fmt.scale.tensor)
        asked = wanted_scale(block, self._fmt)
        fitted = least = None
        for clip in CLIPS:
            candidate = scales.store(asked * np.float32(clip), whole, self._tensor)
            targets_here = scales.divide(block, candidate, whole)
            chosen = self._values[nearest(self._values, targets_here, threads=self._threads)]
            error = np.square(block - chosen * candidate.effective)
            cost = (error @ self._cost[first : first + self._block])[:, None]
            fitted, least = scales.better(fitted, least, candidate, cost)
        assert fitted is not None
        return fitted


class LevelColumns:
    """One column at a time to levels of its tile, fitted when the walk reaches the tile."""

    step = 1

    def __init__(
        self,
        strip: np.ndarray,
        fmt: Format,
        tensor: np.ndarray | None,
        feedback: Feedback,
        threads: int | None,
    ) -> None:
        """Row scales put a row's largest weight at the top of the operand, as `encode` does."""
        (self._parameter,) = fmt.code.program.parameters
        self._fmt, self._cost, self._threads = fmt, feedback.cost, threads
        self._scales = scales.store(wanted_scale(strip, fmt), fmt.scale, tensor)
        self._states = np.empty(strip.shape, np.uint32)
        down, across = self._parameter.units(*strip.shape)
        self._height, self._width = len(strip) // down, strip.shape[1] // across
        largest = np.abs(strip).reshape(down, self._height, -1).max(axis=2)
        self._zero = largest.min(axis=1) == 0
        self._tables: list[np.ndarray] = []

    def encode(self, first: int, targets: np.ndarray) -> np.ndarray:
        """See `Columns`."""
        scale = self.scale(first)
        inverse = scales.inverse(scale)
        if first % self._width == 0:
            self._tables.append(self._fitted(first, targets[:, first:][:, : self._width] * inverse))
        values = self._parameter.operand.values().astype(np.float32)[self._tables[-1]]
        column = (targets[:, first : first + 1] * inverse).reshape(len(values), -1)
        states = nearest_units(values, column, threads=self._threads)
        self._states[:, first] = states.ravel()
        return np.take_along_axis(values, states.astype(np.intp), axis=1).reshape(-1, 1)

    def scale(self, first: int) -> np.ndarray:
        """See `Columns`."""
        effective = self._scales.effective
        return np.broadcast_to(effective[:, :1], (len(self._states), 1))

    def states(self) -> np.ndarray:
        """See `Columns`."""
        return to_rings(self._states, self._fmt.code)[..., 0]

    def scales(self) -> Scales:
        """See `Columns`."""
        return self._scales

    def table(self) -> np.ndarray:
        """Operand bit patterns `[units down, units across, length]`."""
        return np.stack(self._tables, axis=1)

    def _fitted(self, first: int, block: np.ndarray) -> np.ndarray:
        weights = np.tile(self._cost[first : first + self._width], self._height)
        units = block.reshape(-1, self._height * self._width)
        p = self._parameter
        return levels.fit(units, p.length, p.operand, self._zero, weights)


def _side_by_side(found: list[Scales]) -> Scales:
    """Scales of blocks from left to right as those of the whole rows."""
    bits = [each.bits for each in found if each.bits is not None]
    return Scales(
        bits=np.concatenate(bits, axis=1) if bits else None,
        effective=np.concatenate([each.effective for each in found], axis=1),
    )
