"""Second moments of a layer's inputs: what calibration measures and the encoder needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unspool.encode.rotate import rotate_twin, signs
from unspool.errors import WeightError
from unspool.spec.rotation import Rotation

if TYPE_CHECKING:
    from jaxtyping import Float32, Float64

DAMPING = 0.01
"""Added to the moments' diagonal, as a share of its mean: what GPTQ and QuIP use. On the bundled
model .003 to .03 give the same KL within 2 %."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over calibration tokens of products of a layer's inputs.

    inputs  [k, k]  sum of x x^T over the inputs x that the quantized model so far gives
    drift   [n, k]  sum of (y - W x) x^T with y the output wanted; None where inputs are the
            original model's and y is W x
    weighed [k, k]  sum of g x x^T with g what an error at the token costs; None where all tokens
            cost alike. It says where errors are made; what is wanted, the other two
    """

    inputs: Float64[np.ndarray, "k k"]
    drift: Float64[np.ndarray, "n k"] | None = None
    weighed: Float64[np.ndarray, "k k"] | None = None

    @property
    def costs(self) -> Float64[np.ndarray, "k k"]:
        """What an error of a row costs."""
        return self.inputs if self.weighed is None else self.weighed


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
    """The moments with a share of their mean diagonal added; the identity if all are zero."""
    mean = float(np.trace(inputs)) / len(inputs)
    out = inputs.copy()
    out[np.diag_indices_from(out)] += damping * mean or 1.0
    return out


def wanted(
    weight: Float32[np.ndarray, "n k"], moments: Moments, damping: float
) -> Float32[np.ndarray, "n k"]:
    """The weight whose outputs on the drifted inputs come nearest to the ones wanted.

    W + drift (H + damping)^-1, the least-squares solution (GPTAQ, Li et al. 2025; Qronos, Zhang et
    al. 2025): errors around it cost what errors around W cost without drift.
    """
    if moments.drift is None:
        return weight
    moved = np.linalg.solve(damped(moments.inputs, damping), moments.drift.T).T
    return (weight + moved).astype(np.float32)


def turned(
    inputs: Float64[np.ndarray, "k k"], rotation: Rotation, columns: int
) -> Float64[np.ndarray, "columns columns"]:
    """The moments of padded, rotated inputs: those that a rotated weight meets."""
    spare = columns - len(inputs)
    padded = np.pad(inputs, ((0, spare), (0, spare))) if spare else inputs
    if not rotation.input_size:
        return padded
    size = rotation.input_size
    flips, ones = signs(columns, rotation.seed, "in"), np.ones(size, np.int8)
    units: Float64[np.ndarray, "size size"] = np.eye(size)
    basis = rotate_twin(units, size, ones, ones)
    # Products with the block's matrix take two fifths of the time of butterflies in numpy.
    turn = padded
    for _ in range(2):  # one name: each copy is 0.5 GiB at k = 8192
        turn = ((turn.T * flips).reshape(columns, -1, size) @ basis).reshape(padded.shape)
    turn += turn.T
    turn /= 2
    return turn
