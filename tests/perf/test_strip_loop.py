"""Loops of the CPU's strip kernels, counted in what g++ makes of them."""

from __future__ import annotations

import shutil

import pytest

from unspool.errors import DeclarationError, UnspoolError
from unspool.perf import strip_loop
from unspool.perf.strip_loop import (
    MULTIPLIED,
    StripShape,
    compiled_shapes,
    count_strip,
    inner_loop,
    shape_of,
)
from unspool.spec.catalog import FORMATS

T2 = StripShape(window=5, plain=1)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def test_shapes_are_those_of_the_kernels_switch():
    found = compiled_shapes()
    assert T2 in found
    assert StripShape(window=7, plain=0, stride=2) in found
    assert len(set(found)) == len(found)
    assert str(T2) == "Table<5, 1, 1>"
    assert str(StripShape(window=7, plain=0, stride=2)) == "Table<7, 0, 1, 2>"
    assert StripShape(window=4, plain=2, lanes=2).bits_per_weight == 1.5


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("t2-e2m1", "Table<5, 1, 1>"),
        ("t1.5-e2m1", "Table<4, 2, 2>"),
        ("nvfp4", "Table<0, 4, 1>"),
        ("m2-e2m1", MULTIPLIED),
        ("m2-e4m3", None),
        ("t3.5-e2m3", None),
    ],
)
def test_a_code_has_the_shape_of_its_planes(name, shape):
    assert shape_of(FORMATS[name].code) == shape


def test_the_inner_loop_is_the_shortest_with_a_dot_product():
    text = """
.L1:
    movl %eax, %ebx
.L2:
    # a comment
    vpdpbusd %zmm1, %zmm2, %zmm3
    .p2align 4
    addq $64, %rax
    jne .L2
.L3:
    addq $1, %rax
    jne .L3
    jne .L1
    vpdpbusd %zmm1, %zmm2, %zmm3
"""
    loop = [line.split()[0] for line in inner_loop(text.splitlines())]
    assert loop == ["vpdpbusd", "addq", "jne"]


@needs_compiler
def test_plain_bits_cost_instructions_and_a_ring_of_two_bits_has_none():
    plain, none = (
        count_strip("avx512", shape) for shape in (T2, StripShape(window=7, plain=0, stride=2))
    )
    for counted in (plain, none):
        assert counted.registers * counted.width % 512 == 0  # whole tiles of 64 rows
        assert any("vpmultishiftqb" in line for line in counted.loop)
    assert 4 < none.instructions < plain.instructions < 8  # 5.50 and 6.75 with g++ 12
    assert any("vpermi2b" in line or "vpermt2b" in line for line in none.loop)
    assert not any("vpternlog" in line for line in none.loop)


def test_no_compiler_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(strip_loop.shutil, "which", lambda name: None)
    with pytest.raises(UnspoolError, match=r"PATH: .*no compiler; .*allowed: g\+\+"):
        count_strip("avx512", T2)


@needs_compiler
def test_what_has_no_loop_is_refused():
    with pytest.raises(UnspoolError, match="does not compile"):
        count_strip("avx512", "Table<1, 2>")
    with pytest.raises(DeclarationError, match="found sm90; allowed: avx512, avx2"):
        count_strip("sm90", T2)
