"""The rotation: orthonormal, its own inverse, and the kernel equals its twin."""

from __future__ import annotations

import numpy as np
import pytest

from unspool import native
from unspool.encode.rotate import hadamard, hadamard_inverse, rotate_twin, signs
from unspool.errors import UnspoolError

SIZES = [1, 2, 4, 8, 16, 64, 512, 2048]


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matrix(size: int) -> np.ndarray:
    """H from its definition, (-1)^popcount(i & j), not scaled."""
    common = np.arange(size)[:, None] & np.arange(size)
    return 1 - 2 * (np.bitwise_count(common) % 2).astype(np.int64)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 64, 256])
def test_the_transform_of_integers_is_exactly_the_matrix_of_the_definition(size):
    rng = np.random.default_rng(1)
    x = rng.integers(-50, 51, (3, 2 * size)).astype(np.float32)
    s = signs(2 * size, 9, "in")
    blocks = (x * s).astype(np.int64).reshape(3, 2, size)
    exact = (blocks @ matrix(size)).reshape(3, 2 * size)
    scaled = exact.astype(np.float32) * np.float32(1 / np.sqrt(size))
    np.testing.assert_array_equal(hadamard(x, size, s), scaled)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 5])
def test_kernel_and_twin_agree_bit_for_bit(size, rows):
    if native.library() is None:
        pytest.skip(native.why_not())
    x, s, none = gaussian(rows, 3 * size), signs(3 * size, 4, "in"), np.ones(3 * size, np.int8)
    for threads in (1, 2, 3):
        forth = hadamard(x, size, s, threads=threads)
        back = hadamard_inverse(x, size, s, threads=threads)
        assert forth.tobytes() == rotate_twin(x, size, s, none).tobytes()
        assert back.tobytes() == rotate_twin(x, size, none, s).tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_undoes_and_lengths_stay(size):
    x, s = gaussian(4, 2 * size), signs(2 * size, 2**63 - 1, "out")
    turned = hadamard(x, size, s)
    np.testing.assert_allclose(hadamard_inverse(turned, size, s), x, atol=4e-6)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)


def test_signs_are_fixed_forever():
    """Checkpoints store the seed alone: these figures can never change."""
    minus = "".join("-" if sign < 0 else "+" for sign in signs(32, 1, "in"))
    assert minus == "+-+-----+++-++++--+---+--+++++--"


def test_signs_are_fair_prefix_stable_and_differ_by_seed_and_side():
    many = signs(1 << 16, 0, "in")
    assert set(np.unique(many)) == {-1, 1}
    assert abs(int(many.sum(dtype=np.int64))) < 4 * 256  # four standard deviations
    np.testing.assert_array_equal(signs(1000, 0, "in"), many[:1000])
    for other in (signs(1 << 16, 1, "in"), signs(1 << 16, 0, "out"), np.roll(many, 1)):
        assert abs(int((many * other).sum(dtype=np.int64))) < 4 * 256


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: signs(4, 0, "up"), '"in" or "out"'),
        (lambda: signs(4, -1, "in"), "seed"),
        (lambda: hadamard(gaussian(2, 12), 6, signs(12, 0, "in")), "a power of two"),
        (lambda: hadamard(gaussian(2, 12), 8, signs(12, 0, "in")), "a multiple of 8"),
        (lambda: hadamard(gaussian(2, 16), 8, signs(12, 0, "in")), r"signs.*\[16\]"),
    ],
)
def test_bad_arguments_are_explained(call, message):
    with pytest.raises(UnspoolError, match=message):
        call()
