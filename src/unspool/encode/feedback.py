"""Feedback along k: what an error in one column asks of the columns after it.

The error of a row e [k] costs e H e with H [k, k] the second moments of the inputs. With
H = M D M^T, M unit upper triangular, that is sum over columns j of d_j z_j^2 with z = e M: the
error of column j after all columns before it. GPTQ's form of it (Frantar et al. 2022) moves the
target of column j by sum over i < j of z_i N_ij with N = I - M^-1, so that an error is passed on
once, when it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.encode.blas import in_threads, slices
from unspool.encode.survivors import RowMetric
from unspool.errors import WeightError

if TYPE_CHECKING:
    from jaxtyping import Float64

BLOCK = 256
"""Columns of the blocks that matrices are factored and inverted in: numpy's own for one block,
products for all others. Of the seven layers of a block of Llama-3.2-1B's shape, two threads, 4.1
and 3.3 s where numpy's Cholesky and an inverse by halves took 6.6 and 10.2."""

WIDE = 1024
"""Columns of the products with whole triangles."""


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """pass_on [k, k] is N, zero up to the diagonal; cost [k] is d, positive."""

    pass_on: Float64[np.ndarray, "k k"]
    cost: Float64[np.ndarray, "k"]


def factor(moments: Float64[np.ndarray, "k k"], *, threads: int | None = None) -> Feedback:
    """The feedback of second moments that are positive definite; raises WeightError if not.

    Works in their place, which holds the feedback afterwards: a copy is 0.5 GiB at k = 8192.
    """
    try:
        root = _root(moments, threads)  # R = M sqrt(D)
    except np.linalg.LinAlgError as error:
        raise WeightError(
            "second moments are not positive definite", allowed="more damping, more text"
        ) from error
    size = np.diag(root).copy()
    root /= size
    pass_on = _inverse(root, threads)
    np.negative(pass_on, out=pass_on)
    np.fill_diagonal(pass_on, 0)
    return Feedback(pass_on=pass_on, cost=size * size)


def solved(feedback: Feedback, rows: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
    """rows H^-1 = rows (I - N)^T D^-1 (I - N), with the triangles' zeros left out."""
    N, k = feedback.pass_on, len(feedback.cost)
    half, whole = np.empty_like(rows), np.empty_like(rows)
    for here in slices(k, WIDE):
        after = slice(here.start, k)
        half[:, here] = (rows[:, here] - rows[:, after] @ N[here, after].T) / feedback.cost[here]
    for here in slices(k, WIDE):
        before = slice(0, here.stop)
        whole[:, here] = half[:, here] - half[:, before] @ N[before, here]
    return whole


def _root(moments: Float64[np.ndarray, "k k"], threads: int | None) -> Float64[np.ndarray, "k k"]:
    """R, upper triangular, with R R^T the moments, in their place: blocks of columns from the last
    to the first."""
    root, blocks = moments, slices(len(moments), BLOCK)
    for place, here in reversed(list(enumerate(blocks))):
        after = slice(here.stop, len(root))
        left = root[here, here] - root[here, after] @ root[here, after].T
        corner = np.linalg.cholesky(left[::-1, ::-1])[::-1, ::-1]
        over = np.linalg.inv(corner).T
        root[here, here], root[here, : here.start] = corner, 0

        def above(
            rows: slice, here: slice = here, after: slice = after, over: np.ndarray = over
        ) -> None:
            left = root[rows, here] - root[rows, after] @ root[here, after].T
            root[rows, here] = left @ over

        in_threads(above, blocks[:place], threads)
    return root


def _inverse(upper: Float64[np.ndarray, "k k"], threads: int | None) -> Float64[np.ndarray, "k k"]:
    """The inverse of an upper triangular matrix, in its place: blocks of columns from the first to
    the last."""
    inverse, blocks = upper, slices(len(upper), BLOCK)
    for place, here in enumerate(blocks):
        column, corner = upper[: here.start, here].copy(), np.triu(np.linalg.inv(upper[here, here]))
        inverse[here, here] = corner

        def above(
            rows: slice,
            here: slice = here,
            column: np.ndarray = column,
            corner: np.ndarray = corner,
        ) -> None:
            between = slice(rows.start, here.start)  # left of it the inverse is zero
            inverse[rows, here] = -(inverse[rows, between] @ column[between]) @ corner

        in_threads(above, blocks[:place], threads)
    return inverse


def row_metric(feedback: Feedback, first: int, columns: int, lanes: int) -> RowMetric:
    """The metric of a tile's row at the columns from `first` on, for `survivors`.

    u are a step's targets minus its values, before the lanes have heard of each other:
    z = u B with B = (I - N)^-1 inside the step.
    """
    places = columns // lanes
    metric = np.empty((places, lanes, lanes), np.float32)
    asked = np.zeros((places, lanes, columns), np.float32)
    for place in range(places):
        here = first + place * lanes
        step = slice(here, here + lanes)
        heard = spread(feedback, here, lanes)
        metric[place] = heard * feedback.cost[step] @ heard.T
        later = slice(here + lanes, first + columns)
        asked[place, :, (place + 1) * lanes :] = heard @ feedback.pass_on[step, later]
    return RowMetric(metric=metric, feedback=asked)


def spread(feedback: Feedback, first: int, columns: int) -> Float64[np.ndarray, "columns columns"]:
    """B of some columns: z = u B for what their targets, set before any of them, miss."""
    inside = feedback.pass_on[first : first + columns, first : first + columns]
    return np.linalg.inv(np.eye(columns) - inside)
