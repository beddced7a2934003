"""Targets: what a machine can run, and a reason for every no."""

from __future__ import annotations

import ctypes

import pytest

from unspool import native
from unspool.decode.target import FEATURES, NEEDS, features, missing, target, why_not
from unspool.errors import UnspoolError
from unspool.matmul.choose import PATHS
from unspool.matmul.native_matrix import NativeMatrix, Turn, function

ALL = frozenset(FEATURES)
NO_SUCH_PATH = 2
"""The status of a kernel that this processor does not run (product.cpp)."""


def test_a_machine_with_everything_runs_everything():
    assert [name for name in NEEDS if missing(name, ALL)] == []


@pytest.mark.parametrize("name", ["avx2", "avx512", "neon"])
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


@pytest.mark.parametrize("name", ["portable", "numpy"])
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


def test_a_machine_is_of_one_family():
    # All x86 or all Arm: bits of both would be a library that read its registers wrong.
    arm = features() & set(NEEDS["neon"])
    assert not arm or not features() & set(NEEDS["avx2"])


@pytest.mark.parametrize("name", [name for name in PATHS if why_not(name)])
def test_the_library_refuses_what_the_processor_lacks(name):
    if native.library() is None:
        pytest.skip(native.why_not())
    matrix, turn, product = NativeMatrix(), Turn(), ctypes.c_void_p()
    status = function("unspool_prepare")(
        matrix, turn, turn, 8, 8, PATHS[name], 1, 1, ctypes.byref(product)
    )
    assert (status, product.value) == (NO_SUCH_PATH, None)
