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

from unspool.encode.survivors import RowMetric
from unspool.errors import WeightError

if TYPE_CHECKING:
    from jaxtyping import Float64

SMALL = 64
"""Columns up to which a triangular matrix is inverted like any other."""


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """pass_on [k, k] is N, zero up to the diagonal; cost [k] is d, positive."""

    pass_on: Float64[np.ndarray, "k k"]
    cost: Float64[np.ndarray, "k"]


def factor(moments: Float64[np.ndarray, "k k"]) -> Feedback:
    """The feedback of second moments that are positive definite; raises WeightError if not."""
    try:
        flipped = np.linalg.cholesky(moments[::-1, ::-1])
    except np.linalg.LinAlgError as error:
        raise WeightError(
            "second moments are not positive definite", allowed="more damping, more text"
        ) from error
    root = flipped[::-1, ::-1]  # H = R R^T with R upper triangular, R = M sqrt(D)
    size = np.diag(root).copy()
    root /= size  # in place, as below: each copy is 0.5 GiB at k = 8192
    pass_on = _inverse(root)
    np.negative(pass_on, out=pass_on)
    np.fill_diagonal(pass_on, 0)
    return Feedback(pass_on=pass_on, cost=size * size)


def _inverse(upper: Float64[np.ndarray, "k k"]) -> Float64[np.ndarray, "k k"]:
    """The inverse of an upper triangular matrix, by halves: a sixth of LU's arithmetic."""
    k = len(upper)
    if k <= SMALL:
        return np.triu(np.linalg.inv(upper))
    half = k // 2
    first, last = _inverse(upper[:half, :half]), _inverse(upper[half:, half:])
    whole = np.zeros_like(upper)
    whole[:half, :half], whole[half:, half:] = first, last
    whole[:half, half:] = -(first @ upper[:half, half:]) @ last
    return whole


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
