"""The trellis search: the kernel equals its twin, walks close, the error is near the least."""

from __future__ import annotations

import numpy as np
import pytest

from unspool import native
from unspool.encode.viterbi import trellis, viterbi, viterbi_twin
from unspool.errors import UnspoolError, WeightError

SHAPES = [  # planes, lanes, rings, steps, passes: every kernel and every count of in-edges
    (((5, 1),), 1, 37, 64, 2),
    (((5, 1), (1, 1)), 1, 33, 64, 2),
    (((5, 1), (2, 2)), 1, 16, 64, 3),
    (((1, 1), (4, 1)), 2, 5, 9, 4),
    (((5, 1), (4, 4)), 2, 7, 32, 2),
    (((4, 2), (3, 3)), 2, 3, 11, 3),
    (((4, 2),), 3, 18, 7, 2),
    (((6, 3),), 1, 18, 8, 2),
    (((7, 2), (3, 2)), 4, 3, 6, 2),
    (((3, 3),), 1, 4, 5, 2),
    (((1, 1),), 1, 4, 5, 2),
    (((8, 6),), 4, 6, 5, 2),
    (((10, 5),), 5, 2, 4, 3),
    (((9, 1),), 1, 3, 8, 4),  # the window is longer than the ring
    (((4, 2),), 1, 3, 1, 3),
]


@pytest.fixture
def in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes that are searched in integers otherwise are searched in float32."""
    monkeypatch.setattr("unspool.encode.viterbi._in_integers", lambda *given: None)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def table(planes, lanes: int, seed: int = 1) -> np.ndarray:
    return gaussian(1 << sum(window for window, _ in planes), lanes, seed=seed)


def squared_errors(values, states, targets) -> np.ndarray:
    """Per ring, in float64."""
    return ((values[states].astype(np.float64) - targets) ** 2).sum(axis=(1, 2))


def walks(planes, steps: int) -> np.ndarray:
    """All rings of a code as states [2^bits, steps], straight from the definition of a window."""
    total = steps * sum(stride for _, stride in planes)
    ring = np.arange(1 << total, dtype=np.uint64)
    states = np.zeros((len(ring), steps), np.uint32)
    first = shift = 0
    for window, stride in planes:
        for step in range(steps):
            for bit in range(window):
                at = first + (step * stride + bit) % (steps * stride)
                states[:, step] |= ((ring >> np.uint64(at) & np.uint64(1)) << np.uint64(shift + bit)
                                    ).astype(np.uint32)  # fmt: skip
        first, shift = first + steps * stride, shift + window
    return states


def is_closed_walk(states: np.ndarray, planes) -> bool:
    """Each window's high bits are the low bits of the next; after the last comes the first."""
    shift = 0
    for window, stride in planes:
        bits = states >> shift & ((1 << window) - 1)
        memory = (1 << window - stride) - 1
        if ((bits >> stride) != (np.roll(bits, -1, axis=1) & memory)).any():
            return False
        shift += window
    return True


@pytest.mark.parametrize(("planes", "lanes", "rings", "steps", "passes"), SHAPES)
@pytest.mark.parametrize("holes", [False, True], ids=["finite", "with-nan"])
def test_kernel_and_twin_return_the_same_closed_walks(
    in_float, planes, lanes, rings, steps, passes, holes
):
    if native.library() is None:
        pytest.skip(native.why_not())
    values, targets = table(planes, lanes), gaussian(rings, steps, lanes)
    if holes and len(values) >= 16:
        values[1, 0], values[6, lanes - 1], values[9, 0] = np.nan, np.inf, -np.inf
    found = [viterbi(values, planes, targets, passes=passes, threads=n) for n in (1, 2, 3)]
    twin = viterbi_twin(trellis(values, planes), targets, passes)
    for states in found:
        np.testing.assert_array_equal(states, twin)
    assert is_closed_walk(twin, planes)
    assert np.isfinite(values[twin]).all()


def test_ties_are_broken_alike(in_float):
    """Integers make float32 exact, and many walks cost the same."""
    rng = np.random.default_rng(3)
    for planes in (((4, 1), (1, 1)), ((4, 2), (2, 2)), ((4, 2), (1, 1)), ((5, 1),)):
        values = rng.integers(-2, 3, (1 << sum(w for w, _ in planes), 1)).astype(np.float32)
        targets = rng.integers(-2, 3, (19, 16, 1)).astype(np.float32)
        twin = viterbi_twin(trellis(values, planes), targets, 3)
        np.testing.assert_array_equal(viterbi(values, planes, targets, passes=3), twin)


@pytest.mark.parametrize(
    ("planes", "steps"),
    [(((3, 1),), 12), (((4, 1),), 14), (((3, 1), (1, 1)), 8), (((4, 2),), 7)],
)
def test_error_is_within_two_percent_of_the_best_rings_there_are(planes, steps):
    values, targets = table(planes, 1), gaussian(60, steps, 1)
    everything = values[walks(planes, steps)][:, :, 0]
    best = np.array([((everything - x[:, 0]) ** 2).sum(axis=1).min() for x in targets])
    found = squared_errors(values, viterbi(values, planes, targets, passes=4), targets)
    assert (found >= best - 1e-4).all()
    assert found.sum() <= 1.02 * best.sum()


def test_without_memory_every_step_takes_its_nearest_value():
    values, targets = table(((4, 4),), 2), gaussian(9, 8, 2)
    states = viterbi(values, ((4, 4),), targets)
    distance = ((targets[:, :, None].astype(np.float64) - values) ** 2).sum(axis=3)
    np.testing.assert_array_equal(states, distance.argmin(axis=2))


@pytest.mark.parametrize("planes", [((5, 1), (1, 1)), ((6, 3),)])
def test_another_pass_never_costs_more(in_float, planes):
    """Exact: integer values and targets make every sum exact in float32."""
    rng = np.random.default_rng(5)
    values = rng.integers(-30, 31, (64, 1)).astype(np.float32)
    targets = rng.integers(-30, 31, (300, 24, 1)).astype(np.float32)
    errors = [
        squared_errors(values, viterbi(values, planes, targets, passes=passes), targets)
        for passes in (2, 3, 4, 5)
    ]
    for more, fewer in zip(errors[1:], errors[:-1], strict=True):
        assert (more <= fewer).all()
    assert errors[-1].sum() < errors[0].sum()


def test_no_rings_are_no_work():
    assert viterbi(table(((4, 1),), 1), ((4, 1),), np.empty((0, 8, 1), np.float32)).shape == (0, 8)


def test_a_target_that_is_not_finite_is_named():
    targets = gaussian(4, 8, 1)
    targets[2, 5, 0] = np.nan
    with pytest.raises(WeightError, match=r"viterbi targets \(2, 5, 0\).*found nan"):
        viterbi(table(((4, 1),), 1), ((4, 1),), targets)


def test_a_table_without_a_closed_walk_is_refused():
    values = np.full((16, 1), np.nan, np.float32)
    with pytest.raises(UnspoolError, match="too many NaN"):
        viterbi(values, ((4, 1),), gaussian(2, 8, 1))
    with pytest.raises(UnspoolError, match="too many NaN"):
        viterbi_twin(trellis(values, ((4, 1),)), gaussian(2, 8, 1), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planes": ()}, "planes"),
        ({"planes": ((2, 3),)}, "planes"),
        ({"planes": ((5, 1),)}, r"values.*\[32, lanes\]"),
        ({"targets": gaussian(4, 8, 2)}, r"targets.*\[rings, steps, 1\]"),
        ({"targets": gaussian(4, 0, 1)}, "a step or more"),
        ({"targets": np.full((1, 8, 1), 1e30, np.float32), "values": table(((4, 1),), 1) * 1e10},
         "scale first"),
        ({"targets": gaussian(4, 2, 1)}, "steps.*found 2.*3 or more"),
        ({"passes": 1}, "passes.*2 or more"),
        ({"threads": 0}, "threads.*1 to 1024"),
    ],
)  # fmt: skip
def test_arguments_that_contradict_each_other_are_explained(change, message):
    arguments = {
        "values": table(((4, 1),), 1),
        "planes": ((4, 1),),
        "targets": gaussian(4, 8, 1),
    } | change
    with pytest.raises(UnspoolError, match=message):
        viterbi(**arguments)
