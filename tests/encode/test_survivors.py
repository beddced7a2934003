"""The search with feedback inside a tile: twin and kernel agree, and feedback is worth its work."""

from __future__ import annotations

import numpy as np
import pytest

from unspool import native
from unspool.decode.interpret import state_values
from unspool.encode.binned import LOSS
from unspool.encode.feedback import factor, row_metric
from unspool.encode.survivors import RowMetric, Search, search, survivors, survivors_twin
from unspool.encode.viterbi import viterbi
from unspool.errors import UnspoolError, WeightError
from unspool.spec.catalog import FORMATS
from unspool.spec.code import Code

NEEDS_LIBRARY = pytest.mark.skipif(native.library() is None, reason="no compiled library")


def plain_metric(code: Code) -> RowMetric:
    """Independent columns of equal weight: what `viterbi` minimises."""
    places, lanes = code.tile[1] // code.lanes, code.lanes
    return RowMetric(
        metric=np.tile(np.eye(lanes, dtype=np.float32), (places, 1, 1)),
        feedback=np.zeros((places, lanes, code.tile[1]), np.float32),
    )


def correlated(code: Code, strength: float) -> tuple[RowMetric, np.ndarray]:
    """A metric of columns correlated by strength ** distance, and those moments."""
    at = np.arange(code.tile[1])
    moments = strength ** np.abs(at[:, None] - at)
    return row_metric(factor(moments.copy()), 0, code.tile[1], code.lanes), moments


def searched(code: Code, row: RowMetric) -> Search:
    return search(state_values(code), [(p.window, p.stride) for p in code.planes], row)


def targets(code: Code, rings: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rings, *code.tile), dtype=np.float32)
    return drawn * np.float32(code.sigma)


def matrix_of(code: Code, states: np.ndarray) -> np.ndarray:
    return state_values(code)[states].reshape(len(states), *code.tile)


@NEEDS_LIBRARY
@pytest.mark.parametrize("name", ["t2-e2m1", "t1.5-e2m1", "t4-e2m3", "v1.5-e2m1", "s3-e4m3"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernel_returns_the_states_of_the_twin(name: str, threads: int) -> None:
    code = FORMATS[name].code
    wanted = searched(code, correlated(code, 0.8)[0])
    x = targets(code, 19)
    found = survivors(wanted, x, passes=3, threads=threads)
    np.testing.assert_array_equal(found, survivors_twin(wanted, x, 3))


@NEEDS_LIBRARY
def test_the_kernel_returns_the_states_of_the_twin_for_a_multiply_code() -> None:
    code = FORMATS["m2-e2m1"].code
    wanted = searched(code, correlated(code, 0.8)[0])
    x = targets(code, 2)
    np.testing.assert_array_equal(survivors(wanted, x), survivors_twin(wanted, x, 2))


@NEEDS_LIBRARY
@pytest.mark.parametrize("planes", [((13, 7),), ((12, 6),)], ids=["parallel edges", "single edges"])
def test_nodes_that_all_follow_each_other_go_through_a_kernel_of_their_own(planes) -> None:
    """Four lanes and 64 nodes: the kernel's order of the edges, with rings beyond a group's 16."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal((1 << planes[0][0], 4)).astype(np.float32)
    values[3, 1] = np.nan
    at = np.arange(12)
    row = row_metric(factor(0.7 ** np.abs(at[:, None] - at)), 0, 12, 4)
    wanted = search(values, planes, row)
    x = rng.standard_normal((18, 4, 12)).astype(np.float32)
    for threads in (1, 2):
        found = survivors(wanted, x, passes=3, threads=threads)
        np.testing.assert_array_equal(found, survivors_twin(wanted, x, 3))


@NEEDS_LIBRARY
@pytest.mark.parametrize("name", ["t2-e2m1", "t3-e2m3"])
def test_without_correlation_it_is_as_good_as_the_plain_search(name: str) -> None:
    code = FORMATS[name].code
    x = targets(code, 64)
    planes = [(p.window, p.stride) for p in code.planes]
    plain = viterbi(state_values(code), planes, x.reshape(64, code.steps, code.lanes))
    found = survivors(searched(code, plain_metric(code)), x)
    errors = [np.square(x - matrix_of(code, states)).sum() for states in (plain, found)]
    # The plain search may have its targets in bins; the walks are as good.
    assert errors[1] == pytest.approx(errors[0], rel=2 * LOSS)


@NEEDS_LIBRARY
@pytest.mark.parametrize("name", ["t2-e2m1", "m2-e2m1"])
def test_feedback_lowers_the_true_error_of_correlated_columns(name: str) -> None:
    code = FORMATS[name].code
    row, moments = correlated(code, 0.9)
    x = targets(code, 32)
    errors = []
    for metric in (plain_metric(code), row):
        missed = x - matrix_of(code, survivors(searched(code, metric), x))
        errors.append(float(np.einsum("rnc,cd,rnd->", missed, moments, missed)))
    assert errors[1] < 0.5 * errors[0]


def test_targets_that_do_not_fit_are_refused() -> None:
    code = FORMATS["t2-e2m1"].code
    wanted = searched(code, plain_metric(code))
    with pytest.raises(UnspoolError, match=r"survivors targets.*found \(1, 8, 4\)"):
        survivors(wanted, np.zeros((1, 8, 4), np.float32))
    with pytest.raises(UnspoolError, match="even number of rows"):
        survivors(wanted, np.zeros((1, 7, 8), np.float32))
    with pytest.raises(WeightError, match="not a finite number"):
        survivors(wanted, np.full((1, 8, 8), np.nan, np.float32))
