"""The trellis search on a torch device: the states of the CPU's, here on CPU tensors."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from unspool.decode.interpret import state_values
from unspool.encode.encode import encode
from unspool.encode.passes import go_round
from unspool.encode.viterbi import viterbi
from unspool.errors import ModelError, UnspoolError, WeightError
from unspool.model.device_search import (
    BYTES,
    FLOATS,
    WORDS,
    DeviceSearch,
    available,
    search_on,
)
from unspool.model.device_steps import BinnedSteps, FloatSteps
from unspool.spec.catalog import parse

FORMATS = {WORDS: "t3-e2m3", BYTES: "m2-e2m1", FLOATS: "t2.5-e2m3"}
CODES = {  # planes, lanes, levels (0: any number): what finds them, with parallel edges and without
    "binned": (((5, 1), (2, 2)), 1, 23, WORDS),
    "binned without parallel edges": (((4, 1),), 1, 9, WORDS),
    "dense": (((12, 6),), 4, 9, BYTES),
    "dense, parallel edges": (((13, 7),), 2, 40, BYTES),
    "dense, too many lanes for 16 bits": (((12, 6),), 5, 9, BYTES),
    "float": (((7, 2),), 2, 0, FLOATS),
    "float, parallel edges": (((3, 1), (4, 4)), 2, 0, FLOATS),
    "float, single weights": (((6, 1),), 1, 0, FLOATS),
    "no memory": (((4, 4),), 2, 0, FLOATS),
}


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def some_code(name: str) -> tuple[np.ndarray, tuple, int, str]:
    planes, lanes, levels, found = CODES[name]
    size = (1 << sum(window for window, _ in planes), lanes)
    rng = np.random.default_rng(7)
    alphabet = rng.standard_normal(levels or size[0]).astype(np.float32)
    return rng.choice(alphabet, size), planes, lanes, found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", CODES)
def test_states_are_those_of_the_cpu_in_every_bit(name, dtype):
    values, planes, lanes, expected = some_code(name)
    search = DeviceSearch("cpu", dtype=dtype)
    assert search.way(values, planes) == expected
    fewest = max(-(-window // stride) - 1 for window, stride in planes) or 1
    for steps, passes, spread in ((8, 2, 1.0), (9, 3, 0.01), (8, 4, 30.0), (fewest, 2, 1.0)):
        targets = gaussian(19, steps, lanes, seed=steps) * np.float32(spread)
        targets[3] *= np.float32(1e8)  # no whole number holds what this ring costs
        targets[4] = 0  # ties
        np.testing.assert_array_equal(
            search(values, planes, targets, passes=passes),
            viterbi(values, planes, targets, passes=passes, threads=1),
        )


@pytest.mark.parametrize("memory", [1, 1 << 18])
@pytest.mark.parametrize("name", ["binned", "dense", "float"])
def test_states_do_not_depend_on_memory(name, memory):
    values, planes, lanes, _ = some_code(name)
    targets = gaussian(21, 8, lanes)
    np.testing.assert_array_equal(
        DeviceSearch("cpu", memory=memory)(values, planes, targets),
        DeviceSearch("cpu")(values, planes, targets),
    )


def test_rings_are_searched_together_and_cross_to_the_device_once(monkeypatch):
    """The number of calls of a step does not grow with the rings, that of transfers neither."""
    values, planes, lanes, _ = some_code("binned")
    search, counts = DeviceSearch("cpu"), []
    search(values, planes, gaussian(1, 8, lanes))
    forward, put = BinnedSteps.forward, torch.from_numpy
    for rings in (3, 300):
        calls = {"forward": 0, "put": 0}

        def counted(self, at, walks, calls=calls):
            calls["forward"] += 1
            return forward(self, at, walks)

        def moved(array, calls=calls):
            calls["put"] += 1
            return put(array)

        monkeypatch.setattr(BinnedSteps, "forward", counted)
        monkeypatch.setattr(torch, "from_numpy", moved)
        search(values, planes, gaussian(rings, 8, lanes))
        counts.append(calls)
    assert counts[0] == counts[1] == {"forward": 8 + 7, "put": 1}


@pytest.mark.parametrize("name", [*FORMATS.values(), "nvfp4", "lut-b"])
def test_a_matrix_is_encoded_to_the_same_bytes(name, monkeypatch):
    fmt = parse(name)
    monkeypatch.setattr("unspool.encode.encode.PART", 1 << 11)  # several threads, several parts
    weight = gaussian(fmt.row_unit + 3, 2 * fmt.column_unit)
    ours, theirs = (
        encode(weight, fmt, threads=2, search=search).arrays
        for search in (DeviceSearch("cpu"), viterbi)
    )
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array, err_msg=key)


def test_the_catalog_meets_all_three_ways():
    search = DeviceSearch("cpu")
    for expected, name in FORMATS.items():
        code = parse(name).code
        planes = tuple((plane.window, plane.stride) for plane in code.planes)
        assert search.way(state_values(code), planes) == expected


def test_a_strip_is_one_call_however_many_threads(monkeypatch):
    monkeypatch.setattr("unspool.encode.encode.PART", 1 << 11)
    calls = []

    def search(values, planes, targets, *, passes=2, threads=None):
        calls.append(len(targets))
        return viterbi(values, planes, targets, passes=passes, threads=threads)

    encode(gaussian(64, 128), parse("t2-e2m1"), threads=2, search=search)
    assert calls == [64 * 128 // 64]


def test_threads_take_turns():
    values, planes, lanes, _ = some_code("float")
    search, targets = DeviceSearch("cpu"), [gaussian(5, 8, lanes, seed=i) for i in range(4)]
    found: dict[int, np.ndarray] = {}

    def work(place: int) -> None:
        found[place] = search(values, planes, targets[place])

    workers = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for place, each in enumerate(targets):
        np.testing.assert_array_equal(found[place], viterbi(values, planes, each, threads=1))


def test_no_rings_are_no_states():
    values, planes, lanes, _ = some_code("binned")
    assert DeviceSearch("cpu")(values, planes, np.empty((0, 8, lanes), np.float32)).shape == (0, 8)


def test_what_the_cpu_refuses_is_refused():
    values, planes, lanes, _ = some_code("float")
    search = DeviceSearch("cpu")
    targets = gaussian(2, 8, lanes)
    with pytest.raises(UnspoolError, match="viterbi passes"):
        search(values, planes, targets, passes=1)
    with pytest.raises(WeightError, match="not a finite number"):
        search(values, planes, targets * np.float32(np.nan))
    with pytest.raises(UnspoolError, match="too many NaN or Inf"):
        search(np.full_like(values, np.inf), planes, targets)


def test_states_that_may_not_be_chosen_are_not():
    values, planes, lanes, _ = some_code("float")
    values[::3] = np.nan
    targets = gaussian(7, 8, lanes)
    found = DeviceSearch("cpu")(values, planes, targets)
    assert (found % 3).all()
    np.testing.assert_array_equal(found, viterbi(values, planes, targets, threads=1))


def test_too_little_memory_is_a_memory_error(monkeypatch):
    values, planes, lanes, _ = some_code("float")

    def none_left(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(FloatSteps, "forward", none_left)
    with pytest.raises(MemoryError, match="viterbi on cpu: CUDA out of memory"):
        DeviceSearch("cpu")(values, planes, gaussian(2, 8, lanes))


def test_the_cpu_searches_with_its_own_kernel():
    assert search_on(None) is viterbi
    assert search_on("cpu") is viterbi


@pytest.mark.parametrize("device", ["meta", "gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ModelError, match=f"^{device}: no such device here"):
        available(device)


def test_rounds_are_the_same_in_numpy_and_torch():
    def one_pass(targets, boundary):
        walked = targets * 2 + (0 if boundary is None else boundary[:, None])
        nodes = walked[:, [*range(targets.shape[1]), 0]]
        return walked, nodes

    targets = np.arange(10).reshape(2, 5)
    for passes in (1, 2, 3):
        ours = go_round(torch.from_numpy(targets), passes, one_pass, roll=torch.roll)
        np.testing.assert_array_equal(ours.numpy(), go_round(targets, passes, one_pass))
