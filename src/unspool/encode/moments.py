"""Second moments of a layer's inputs: what calibration measures and the encoder needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.encode.blas import in_threads, slices
from unspool.encode.feedback import Feedback, solved
from unspool.encode.rotate import rotate_twin, signs
from unspool.errors import WeightError
from unspool.spec.rotation import Rotation

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Float64

DAMPING = 0.01
"""Added to the moments' diagonal, as a share of its mean: what GPTQ and QuIP use. On the bundled
model .003 to .03 give the same KL within 2 %."""

LARGEST_SHARE = 0.99
"""Of the identity in moments."""

ROWS = 256
"""Rows that are rotated at a time."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over calibration tokens of products of a layer's inputs.

    inputs  [k, k]  sum of x x^T over the inputs x that the quantized model so far gives
    drift   [n, k]  sum of (y - W x) x^T with y the output wanted; None where inputs are the
            original model's and y is W x
    weighed [k, k]  sum of g x x^T with g what an error at the token costs; None where all tokens
            cost alike. It says where errors are made; what is wanted, the other two
    """

    inputs: Float[np.ndarray, "k k"]
    drift: Float[np.ndarray, "n k"] | None = None
    weighed: Float[np.ndarray, "k k"] | None = None


def checked(moments: Moments, n: int, k: int, where: str) -> Moments:
    """The moments; raises WeightError unless they are finite and fit a weight [n, k]."""
    for name, array, shape in (
        ("inputs", moments.inputs, (k, k)),
        ("drift", moments.drift, (n, k)),
        ("weighed", moments.weighed, (k, k)),
    ):
        if array is None:
            continue
        if array.shape != shape:
            raise WeightError(
                f"moments ({name}) do not fit the weight",
                where=where, found=list(array.shape), allowed=list(shape),
            )  # fmt: skip
        if not np.isfinite(array).all():
            raise WeightError(f"moments ({name}) are not finite", where=where)
    return moments


def damped(inputs: Float64[np.ndarray, "k k"], damping: float) -> Float64[np.ndarray, "k k"]:
    """The moments with a share of their mean diagonal added, in place; the identity if all are
    zero."""
    mean = float(np.trace(inputs)) / len(inputs)
    inputs[np.diag_indices_from(inputs)] += damping * mean or 1.0
    return inputs


def shrinkage(inputs: Float[np.ndarray, "k k"], tokens: int) -> float:
    """The damping that sums over few tokens need: what lies between them and the moments of all
    text is least with so much of the identity added (OAS, Chen, Wiesel, Eldar and Hero 2010).

    About k / tokens over the squared variation of the eigenvalues: far below DAMPING where these
    differ and the text is long, without bound where they are alike or the tokens a handful. Near
    the identity that changes no rounding, but it would switch the drift's solution off: `needed`.
    """
    k = len(inputs)
    trace = float(np.trace(inputs, dtype=np.float64))
    square = float(np.vdot(inputs, inputs))
    spread = (tokens + 1 - 2 / k) * (square - trace**2 / k)
    share = ((1 - 2 / k) * square + trace**2) / spread if spread > 0 else 1.0
    return share / (1 - share) if share < LARGEST_SHARE else LARGEST_SHARE / (1 - LARGEST_SHARE)


def needed(inputs: Float[np.ndarray, "k k"], tokens: int) -> float:
    """`shrinkage` where drift is solved for too: at most k / tokens, the relative error of the
    moments whatever their shape."""
    return min(shrinkage(inputs, tokens), len(inputs) / max(tokens, 1))


def wanted(
    weight: Float32[np.ndarray, "n k"],
    drift: Float64[np.ndarray, "n k"],
    feedback: Feedback,
    rotation: Rotation,
    *,
    threads: int | None = None,
) -> Float32[np.ndarray, "n k"]:
    """The weight whose outputs on the drifted inputs come nearest to the ones wanted.

    W + drift (H + damping)^-1, the least-squares solution (GPTAQ, Li et al. 2025; Qronos, Zhang et
    al. 2025): errors around it cost what errors around W cost without drift. `feedback` is that of
    the inputs' damped moments, padded and rotated: the inverse is at hand in it.
    """
    (n, k), columns = weight.shape, len(feedback.cost)
    turn, flips = _basis(rotation), _flips(rotation, columns)
    out = np.empty((n, k), np.float32)

    def rows(here: slice) -> None:
        padded = np.pad(drift[here], ((0, 0), (0, columns - k)))
        moved = solved(feedback, _turned(padded * flips, turn))
        out[here] = weight[here] + (_turned(moved, turn) * flips)[:, :k]

    in_threads(rows, slices(n, ROWS), threads)
    return out


def turned(
    inputs: Float64[np.ndarray, "k k"],
    rotation: Rotation,
    columns: int,
    *,
    threads: int | None = None,
) -> Float64[np.ndarray, "columns columns"]:
    """The moments of padded, rotated inputs, a new array: those that a rotated weight meets."""
    spare = columns - len(inputs)
    padded = np.pad(inputs, ((0, spare), (0, spare))) if spare else inputs
    if not rotation.input_size:
        return padded.astype(np.float64)
    turn, flips = _basis(rotation), _flips(rotation, columns)

    once, both = (np.empty((columns, columns)) for _ in range(2))  # float64, whatever sums are
    for before, after in ((padded, once), (once, both)):

        def rows(here: slice, before: np.ndarray = before, after: np.ndarray = after) -> None:
            after[here] = _turned(before.T[here] * flips, turn)

        in_threads(rows, slices(columns, ROWS), threads)
    np.add(both, both.T, out=once)
    once /= 2
    return once


def _basis(rotation: Rotation) -> Float64[np.ndarray, "size size"]:
    """The matrix of a block: products with it take 2/5 of the time of butterflies in numpy."""
    size = max(rotation.input_size, 1)
    ones, units = np.ones(size, np.int8), np.eye(size)
    return rotate_twin(units, size, ones, ones)  # type: ignore[arg-type]


def _flips(rotation: Rotation, columns: int) -> np.ndarray:
    return signs(columns, rotation.seed, "in") if rotation.input_size else np.ones(columns, np.int8)


def _turned(rows: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Every block of a row through the matrix of a block."""
    if len(basis) == 1:
        return rows.astype(np.float64)
    return (rows.reshape(len(rows), -1, len(basis)) @ basis).reshape(rows.shape)
