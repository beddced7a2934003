"""Small trellises of single weights: targets in bins, costs in 16 bits, the walks of numpy."""

from __future__ import annotations

import numpy as np
import pytest

from unspool import native
from unspool.decode.interpret import state_values
from unspool.encode.binned import LOSS, REACH, Binned, binned, search, search_twin
from unspool.encode.viterbi import Trellis, trellis, viterbi, viterbi_twin
from unspool.spec.catalog import parse

CODES = [  # planes: 8 and 16 nodes, with 1, 2 and 8 parallel edges
    ((4, 1),),
    ((5, 1),),
    ((5, 1), (1, 1)),
    ((4, 1), (3, 3)),
]


def some_code(planes) -> tuple[np.ndarray, Trellis, Binned]:
    rng = np.random.default_rng(7)
    alphabet = rng.standard_normal(23).astype(np.float32)
    values = rng.choice(alphabet, (1 << sum(window for window, _ in planes), 1))
    table = trellis(values, planes)
    found = binned(values, table.source, table.state)
    assert found is not None
    return values, table, found


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_kernel_and_twin_return_the_same_walks(code, spread):
    if native.library() is None:
        pytest.skip(native.why_not())
    _, _, found = some_code(code)
    for rings, steps, passes in ((1, 4, 2), (35, 9, 3), (7, 64, 4), (6, 700, 2)):
        targets = gaussian(rings, steps, 1) * np.float32(spread)
        twin = search_twin(found, targets, passes)
        for threads in (1, 3):
            for ours, theirs in zip(search(found, targets, passes, threads), twin, strict=True):
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_walks_are_closed_and_bins_lose_what_they_say(code):
    values, table, found = some_code(code)
    targets = gaussian(64, 64, 1)
    states, lost = search_twin(found, targets, 2)
    following = np.roll(states, -1, axis=1)
    shift = 0
    for window, stride in code:
        memory = (1 << window - stride) - 1
        assert np.array_equal(states >> shift + stride & memory, following >> shift & memory)
        shift += window
    errors = [
        float(((values[s].astype(np.float64) - targets)[~lost] ** 2).sum())
        for s in (states, viterbi_twin(table, targets, 2))
    ]
    assert not lost.all()
    assert errors[0] <= (1 + 10 * LOSS) * errors[1]


def test_rings_beyond_the_tables_are_searched_in_float32():
    values, table, found = some_code(CODES[2])
    targets = gaussian(9, 64, 1)
    targets[4, 3] = 1.01 * REACH * np.abs(values).max()
    targets[6] *= np.float32(1e15)
    states, lost = search_twin(found, targets, 2)
    assert lost[[4, 6]].all()
    states[lost] = viterbi_twin(table, targets[lost], 2)
    np.testing.assert_array_equal(viterbi(values, CODES[2], targets), states)


def test_long_rings_whose_walks_cost_too_much_are_searched_in_float32():
    values, table, found = some_code(CODES[1])
    targets = np.full((3, 4000, 1), values.max() * np.float32(1.5))
    _, lost = search_twin(found, targets, 2)
    assert lost.all()
    np.testing.assert_array_equal(
        viterbi(values, CODES[1], targets), viterbi_twin(table, targets, 2)
    )


def test_table_codes_of_single_weights_are_searched_so():
    expected = {"t2-e2m1": True, "t3-e2m3": True, "t4-e2m3": True, "t1.5-e2m1": False}
    for name, applies in (*expected.items(), ("m2-e2m1", False), ("t1-e2m1", False)):
        code = parse(name).code
        values, planes = state_values(code), tuple((p.window, p.stride) for p in code.planes)
        table = trellis(values, planes)
        found = binned(values, table.source, table.state)
        assert (found is not None) == applies
        if found is not None:
            targets = gaussian(5, code.steps, 1) * np.float32(code.sigma / 2)
            np.testing.assert_array_equal(
                viterbi(values, planes, targets), search_twin(found, targets, 2)[0]
            )


def test_a_code_with_a_value_that_is_no_number_stays_in_float32():
    values, table, _ = some_code(CODES[0])
    values[5] = np.inf
    assert binned(values, table.source, table.state) is None
