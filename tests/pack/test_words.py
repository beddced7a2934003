"""Windows, words and tiles: inverses of each other, and exactly the picture in `spec/code.py`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.errors import WeightError
from unspool.pack.tiles import from_rings, pad, to_rings
from unspool.pack.words import check_walk, pack, unpack
from unspool.spec.catalog import FORMATS
from unspool.spec.code import Code

CODES = {fmt.code.name: fmt.code for fmt in FORMATS.values()}
EVERY = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


def random_words(code: Code, *lead: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 1 << 32, (*lead, code.words), dtype=np.uint32)


@EVERY
def test_every_word_is_a_walk_and_packs_back(code: Code) -> None:
    words = random_words(code, 3, 5)
    states = unpack(words, code)
    check_walk(states, code)
    np.testing.assert_array_equal(pack(states, code), words)


@EVERY
def test_windows_are_cut_as_the_picture_says(code: Code) -> None:
    words = random_words(code)
    low, first = 0, 0
    for plane, size in zip(code.planes, code.plane_bits, strict=True):
        ring = int.from_bytes(words[first : first + size // 32].tobytes(), "little")
        twice = ring | ring << size
        for step, state in enumerate(unpack(words, code).tolist()):
            window = twice >> step * plane.stride & ((1 << plane.window) - 1)
            assert state >> low & ((1 << plane.window) - 1) == window
        low, first = low + plane.window, first + size // 32


def test_states_that_are_no_walk_are_refused() -> None:
    code = CODES["t2-e2m1"]
    states = unpack(random_words(code, 1), code)
    states[0, 5] ^= 1
    with pytest.raises(WeightError, match="no walk"):
        check_walk(states, code)


@given(down=st.integers(1, 4), across=st.integers(1, 4), name=st.sampled_from(sorted(CODES)))
def test_rings_are_a_bijection_of_the_matrix(down: int, across: int, name: str) -> None:
    code = CODES[name]
    rows, columns = code.tile[0] * down, code.tile[1] * across
    matrix = np.arange(rows * columns).reshape(rows, columns)
    rings = to_rings(matrix, code)
    assert rings.shape == (down, across, code.steps, code.lanes)
    np.testing.assert_array_equal(from_rings(rings, code), matrix)


def test_lanes_run_along_k_and_steps_row_by_row() -> None:
    code = CODES["t1.5-e2m1"]
    rings = to_rings(np.arange(16 * 32).reshape(16, 32), code)
    assert rings[0, 0, 0].tolist() == [0, 1]
    assert rings[0, 0, 8].tolist() == [32, 33]
    assert rings[1, 1, 0].tolist() == [8 * 32 + 16, 8 * 32 + 17]


def test_half_a_tile_is_refused() -> None:
    with pytest.raises(WeightError, match="not whole tiles; found 8 x 12"):
        to_rings(np.zeros((8, 12)), CODES["t2-e2m1"])


def test_padding_appends_zeros() -> None:
    assert pad(np.ones((2, 3)), 3, 4).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
