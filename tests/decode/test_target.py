"""Targets: what a machine can run, and a reason for every no."""

from __future__ import annotations

import ctypes

import pytest

from unspool import native
from unspool.decode.target import FEATURES, NEEDS, TWIN, features, missing, target, why_not
from unspool.errors import UnspoolError

ALL = frozenset(FEATURES)


def test_a_machine_with_everything_runs_everything():
    assert [name for name in NEEDS if missing(name, ALL)] == []


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_each_need_alone_is_a_reason(name):
    for need in NEEDS[name]:
        assert missing(name, ALL - {need}) == f"{name} needs {need}"


def test_registers_that_the_system_does_not_save_are_a_reason():
    # A processor with AVX-512 under a kernel that keeps no ZMM state would lose them at any switch.
    assert missing("avx512", ALL - {"saved ZMM"}) == "avx512 needs saved ZMM"
    assert missing("avx2", ALL - {"saved ZMM"}) == ""


def test_a_library_without_the_kernels_is_a_reason():
    assert "not compiled" in missing("avx2", ALL, compiled=False)


def test_the_best_target_runs_here(monkeypatch):
    monkeypatch.delenv("UNSPOOL_TARGET", raising=False)
    assert why_not(target().name) == ""
    assert target().why


@pytest.mark.parametrize("name", ["portable", TWIN, "numpy"])
def test_a_target_can_be_forced(name, monkeypatch):
    if why_not(name):
        pytest.skip(why_not(name))
    assert target(name).name == name
    monkeypatch.setenv("UNSPOOL_TARGET", name)
    assert target().name == name
    assert target().why == "forced by UNSPOOL_TARGET"
    assert target("numpy").name == "numpy"


def test_a_forced_target_must_exist_and_run():
    with pytest.raises(UnspoolError, match="no such target"):
        target("z80")
    for name in NEEDS:
        if why_not(name):
            with pytest.raises(UnspoolError, match="cannot run here"):
                target(name)


def test_the_library_refuses_what_the_processor_lacks():
    if native.library() is None or not why_not("avx512"):
        pytest.skip("needs the library, and a processor without AVX-512")
    assert "AVX512F" not in features() or why_not("avx512")
    from unspool.matmul.native_matrix import NativeMatrix, function

    empty = NativeMatrix(tile_columns=8, k=8)
    assert function("unspool_matmul")(ctypes.byref(empty), 3, None, 1, 1, 1, None) == 2
