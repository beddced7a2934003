"""Linear algebra on one thread, and as before after it."""

from __future__ import annotations

import pytest

from unspool.encode import blas


def test_there_is_one_thread_inside_and_as_many_as_before_after():
    functions = blas._functions()
    if functions is None:
        pytest.skip("this numpy has another library than the OpenBLAS of its wheels")
    threads, put = functions
    before = threads()
    put(2)
    try:
        with blas.one_thread():
            assert threads() == 1
        assert threads() == 2
    finally:
        put(before)
