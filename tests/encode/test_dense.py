"""Codes whose nodes all follow each other: costs in bytes, the same walks as in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from dense_codes import PAIRS, SINGLES, some_code
from unspool import native
from unspool.decode.interpret import state_values
from unspool.encode.dense import _numbered, dense, search, search_twin
from unspool.encode.viterbi import trellis, viterbi, viterbi_twin
from unspool.spec.catalog import parse

CODES = [  # planes, lanes, levels: parallel edges or none, pairs of lanes or single ones
    (((12, 6),), 2, PAIRS),
    (((12, 6),), 4, SINGLES),
    (((12, 6),), 3, PAIRS),
    (((13, 7),), 4, PAIRS),
    (((14, 8),), 1, SINGLES),
    (((13, 10),), 2, SINGLES),  # few nodes of many edges
    (((14, 10),), 4, SINGLES),
    (((6, 3), (6, 3)), 2, SINGLES),
]


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_kernel_and_twin_return_the_same_walks(code, spread):
    if native.library() is None:
        pytest.skip(native.why_not())
    _, _, found = some_code(*code)
    for steps, passes in ((1, 2), (5, 3), (8, 2)):
        targets = gaussian(35, steps, code[1]) * np.float32(spread)
        twin = search_twin(found, targets, passes)
        for threads in (1, 3):
            for ours, theirs in zip(search(found, targets, passes, threads), twin, strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_walks_are_closed_and_as_good_as_those_of_float32(code):
    """Within 1 %, once rings that bytes cannot hold are left out: steps are few, tables random."""
    planes, lanes, _ = code
    values, table, found = some_code(*code)
    targets = gaussian(48, 8, lanes)
    states, lost = search_twin(found, targets, 2)
    following = np.roll(states, -1, axis=1)
    shift = 0
    for window, stride in planes:
        memory = (1 << window - stride) - 1
        assert np.array_equal(states >> shift + stride & memory, following >> shift & memory)
        shift += window
    errors = [
        float(((values[s].astype(np.float64) - targets)[~lost] ** 2).sum())
        for s in (states, viterbi_twin(table, targets, 2))
    ]
    assert errors[0] <= 1.01 * errors[1]
    assert (lanes == 1) <= (not lost.any())


@pytest.mark.parametrize(
    "values",
    [
        [0.0, -0.0, 2.5, -1.0, 2.5],
        [1.0, np.nextafter(np.float32(1), np.float32(2)), -3.0],  # alike in their upper halves
    ],
)
def test_values_are_numbered_from_the_least_on(values):
    given = np.array(values, np.float32)
    levels, places = _numbered(given)
    np.testing.assert_array_equal(levels, np.unique(given))
    np.testing.assert_array_equal(levels[places], given)


def test_rings_that_bytes_cannot_hold_are_searched_in_float32():
    values, table, found = some_code(((12, 6),), 2, PAIRS)
    targets = gaussian(9, 8, 2)
    targets[4:] *= np.float32(1e15)
    states, lost = search_twin(found, targets, 2)
    assert lost[4:].all()
    states[lost] = viterbi_twin(table, targets[lost], 2)
    np.testing.assert_array_equal(viterbi(values, ((12, 6),), targets), states)


def test_multiply_codes_are_searched_so_and_table_codes_are_not():
    for name, expected in (("m2-e2m1", True), ("m2-e4m3", True), ("t2-e2m1", False)):
        code = parse(name).code
        values, planes = state_values(code), tuple((p.window, p.stride) for p in code.planes)
        table = trellis(values, planes)
        found = dense(values, table.source, table.state)
        assert (found is not None) == expected
        if found is not None:
            targets = gaussian(2, code.steps, code.lanes) * np.float32(code.sigma)
            np.testing.assert_array_equal(
                viterbi(values, planes, targets), search(found, targets, 2, 1)[0]
            )


def test_a_code_with_a_value_that_is_no_number_stays_in_float32():
    values, table, _ = some_code(((12, 6),), 2, PAIRS)
    values[5, 0] = np.nan
    assert dense(values, table.source, table.state) is None
