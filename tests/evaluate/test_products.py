"""What is timed is the product itself, with a matrix that the last product did not use."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from unspool import native
from unspool.evaluate.gaussian import gaussian
from unspool.evaluate.products import (
    COLD,
    FORMATS,
    CodedWeights,
    copies,
    in_turn,
    random_matrix,
)
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode
from unspool.spec.catalog import parse

N, K = 24, 256
needs_library = pytest.mark.skipif(native.library() is None, reason="no compiled library")


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch):
    monkeypatch.setattr("unspool.evaluate.products.last_cache", lambda: 1 << 13)


@pytest.mark.parametrize("name", FORMATS)
def test_random_matrices_have_finite_weights(name):
    weight = decode(random_matrix(parse(name), N, K))
    assert np.isfinite(weight).all()
    assert weight.any()


@pytest.mark.parametrize("nbytes", [100, 5000, 1 << 13, 1 << 20])
def test_all_copies_together_outgrow_the_cache(nbytes):
    count = copies(nbytes)
    assert count >= 2
    assert count * nbytes > COLD << 13
    assert copies(nbytes, hot=True) == 1


@needs_library
@pytest.mark.parametrize("name", ["t2-e2m1", "nvfp4", "lut-b"])
def test_a_timed_call_is_the_product_of_the_kernel(name):
    x = gaussian((3, K), seed=1)
    weights = CodedWeights(name, N, K)
    kernel = Kernel(random_matrix(parse(name), N, K))
    assert np.array_equal(weights.product(x, 2)(), kernel(x))
    assert weights.path == kernel.path
    weights.close()


def test_calls_of_one_matrix_share_their_turns():
    seen: list[int] = []
    calls = [lambda place=place: seen.append(place) for place in range(3)]
    count = itertools.count()
    first, second = in_turn(calls, count), in_turn(calls, count)
    for call in (first, second, first, second):
        call()
    assert seen == [0, 1, 2, 0]


@needs_library
def test_only_rotated_formats_have_a_rotation_to_time():
    x = gaussian((2, K), seed=1)
    assert CodedWeights("mxfp4", N, K, hot=True).rotation(x, 1) is None
    turned = CodedWeights("t2-e2m1", N, K, hot=True).rotation(x, 1)
    assert turned is not None
    assert turned().shape == x.shape
