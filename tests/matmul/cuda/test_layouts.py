"""Layout beliefs against a second source: what CUTLASS 4 gives its atoms (include/cute).

CuTe writes a layout as shape and stride: (thread, value) -> index into the matrix, column-major
(M first) for matrices and in bits for copies. Transcribed from there, in its own units.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from unspool.matmul.cuda import layouts
from unspool.matmul.cuda.layouts import FRAGMENTS, Field


@dataclass(frozen=True)
class Cute:
    """A thread-value layout: sizes and strides of the digits of thread and value."""

    threads: tuple[tuple[int, int], ...]
    values: tuple[tuple[int, int], ...]

    def indices(self) -> np.ndarray:
        return _sums(self.threads)[:, None] + _sums(self.values)[None]


def _sums(digits: tuple[tuple[int, int], ...]) -> np.ndarray:
    total = np.zeros(1, np.int64)
    for size, stride in digits:
        total = (np.arange(size)[:, None] * stride + total[None]).reshape(-1)
    return total


@dataclass(frozen=True)
class Second:
    """A CuTe layout and how its indices become rows and columns of ours."""

    layout: Cute
    #: rows of the matrix that the index runs down first; for copies, bits of a row
    rows: int
    #: CuTe values per register: only the first of each is looked at
    per_register: int
    copy: bool = False

    def places(self) -> np.ndarray:
        index = self.layout.indices()[:, :: self.per_register]
        if self.copy:  # bits: a row of tensor memory after another; 32 bits to a column
            return np.stack((index // self.rows, index % self.rows // 32), -1)
        return np.stack((index % self.rows, index // self.rows // self.per_register), -1)


# mma_traits_sm80.hpp: SM80_16x8x16_F32F16F16F32_TN (A and B of two values a register)
SM80_A = Cute(((4, 32), (8, 1)), ((2, 16), (2, 8), (2, 128)))
SM80_B = Cute(((4, 16), (8, 1)), ((2, 8), (2, 64)))
SM80_D = Cute(((4, 32), (8, 1)), ((2, 16), (2, 8)))
# mma_traits_sm80.hpp: SM80_16x8x32_S32S8S8S32_TN, four values a register
SM80_A8 = Cute(((4, 64), (8, 1)), ((4, 16), (2, 8), (2, 256)))
SM80_B8 = Cute(((4, 32), (8, 1)), ((4, 8), (2, 128)))
# mma_traits_sm89.hpp: four values a register
SM89_A = Cute(((4, 64), (8, 1)), ((4, 16), (2, 8), (2, 256)))
SM89_B = Cute(((4, 32), (8, 1)), ((4, 8), (2, 128)))
# mma_traits_sm120.hpp, SM120_16x8x64_TN_VS: eight values a register; SFALayout, SFBLayout: a scale
# for sixteen values, of which a byte is looked at
SM120_A = Cute(((4, 128), (8, 1)), ((8, 16), (2, 8), (2, 512)))
SM120_B = Cute(((4, 64), (8, 1)), ((8, 8), (2, 256)))
SM120_SFA = Cute(((2, 8), (2, 0), (8, 1)), ((64, 16),))
SM120_SFB = Cute(((4, 0), (8, 1)), ((64, 8),))
# mma_traits_sm90_gmma.hpp: ALayout_64x16, ALayout_64x32, CLayout_64xN
GMMA_A16 = Cute(((4, 128), (8, 1), (4, 16)), ((2, 64), (2, 8), (2, 512)))
GMMA_A8 = Cute(((4, 256), (8, 1), (4, 16)), ((4, 64), (2, 8), (2, 1024)))
GMMA_D = Cute(((4, 128), (8, 1), (4, 16)), ((2, 64), (2, 8), (32, 512)))
# copy_traits_sm100.hpp, in bits: SM100_TMEM_LOAD_16dp128b2x, _16dp256b1x, _32dp32b1x
TMEM_128 = Cute(((4, 32), (8, 256)), ((32, 1), (2, 2048), (2, 128)))
TMEM_256 = Cute(((4, 64), (8, 256)), ((64, 1), (2, 2048)))
TMEM_32 = Cute(((32, 32),), ((32, 1),))
# copy_traits_sm100.hpp, in bits: SM100_UTCCP_4x32dp128bit_1cta, ValID
UTCCP = Cute(((32, 128),), ((128, 1), (4, 4096)))
# mma_traits_sm100.hpp, tmem_sf_frg of 128 rows and four scales, in bytes: lanes first
TMEM_SF = Cute(((32, 1), (4, 512)), ((4, 128), (4, 32)))
# copy_traits_sm75.hpp, in bits: SM75_U32x4_LDSM_N; a row's address is a lane's, 128 bits each
LDSM = Cute(((32, 32),), ((32, 1), (4, 1024)))

SECOND = [
    ("a_spot", Second(SM80_A, 16, 2)),
    ("a_spot", Second(SM80_A8, 16, 4)),
    ("a_spot", Second(SM89_A, 16, 4)),
    ("b_spot", Second(SM80_B, 8, 2)),
    ("b_spot", Second(SM80_B8, 8, 4)),
    ("b_spot", Second(SM89_B, 8, 4)),
    ("a_spot", Second(SM120_A, 16, 8)),
    ("b_spot", Second(SM120_B, 8, 8)),
    ("scale_a_spot", Second(SM120_SFA, 16, 16)),
    ("scale_b_spot", Second(SM120_SFB, 8, 16)),
    ("d_spot", Second(SM80_D, 16, 1)),
    ("group_a_spot", Second(GMMA_A16, 64, 2)),
    ("group_a_spot", Second(GMMA_A8, 64, 4)),
    ("group_d_spot", Second(GMMA_D, 64, 1)),
    ("store_spot", Second(TMEM_128, 256, 32, copy=True)),
    ("load_spot", Second(TMEM_256, 256, 32, copy=True)),
    ("row_spot", Second(TMEM_32, 32, 32, copy=True)),
    ("copy_spot", Second(UTCCP, 128, 32, copy=True)),
    ("memory_scale_spot", Second(TMEM_SF, 128, 1)),
    ("matrix_spot", Second(LDSM, 128, 32, copy=True)),
]


@pytest.mark.parametrize(("name", "second"), SECOND, ids=lambda x: x if isinstance(x, str) else "")
def test_fragments_are_those_of_cutlass(name: str, second: Second) -> None:
    ours, theirs = FRAGMENTS[name].places(), second.places()
    registers = theirs.shape[1]  # .32x32b is given for one column
    assert np.array_equal(ours[:, :registers], theirs)


def test_every_fragment_has_a_second_source() -> None:
    assert {name for name, _ in SECOND} == set(FRAGMENTS)


SELECTED = {"scale_a_spot": (2, 2), "scale_b_spot": (1, 4)}
"""Threads of a quad that look alike: in steps of, and how many (PTX ISA: thread-id-a is 0 or 1 and
names threads 0 and 1 or 2 and 3 of a quad, thread-id-b is 0 to 3 and names one)."""


@pytest.mark.parametrize("name", SELECTED)
def test_every_selector_names_threads_that_have_all_scales_once(name: str) -> None:
    places, (step, count) = FRAGMENTS[name].places(), SELECTED[name]
    for selector in range(count):
        chosen = [thread for thread in range(32) if thread // step % count == selector]
        found = {tuple(place) for place in places[chosen].reshape(-1, 2)}
        assert len(found) == 4 * len(chosen) == 4 * (32 // count)
    assert f"return thread / {step} % {count};" in FRAGMENTS[name].cpp(name)


@pytest.mark.parametrize("name", sorted(set(FRAGMENTS) - {"row_spot", *SELECTED}))
def test_a_fragment_covers_its_matrix_once(name: str) -> None:
    places = FRAGMENTS[name].places().reshape(-1, 2)
    rows, columns = places.max(0) + 1
    assert len({tuple(place) for place in places}) == rows * columns == len(places)


# mma_sm90_desc.hpp, union GmmaDescriptor; mma_sm100_desc.hpp, SmemDescriptor and InstrDescriptor:
# sizes of the bit fields in order, None: unused; 4, 3 and 4 low bits are not included
CUTLASS_FIELDS = {
    "WGMMA_DESCRIPTOR": [
        ("start", 14), (None, 2), ("leading", 14), (None, 2), ("stride", 14), (None, 2),
        (None, 1), ("base", 3), (None, 4), (None, 6), ("swizzle", 2),
    ],
    "TENSOR_DESCRIPTOR": [
        ("start", 14), (None, 2), ("leading", 14), (None, 2), ("stride", 14), ("version", 2),
        (None, 1), ("base", 3), ("leading_mode", 1), (None, 3), (None, 5), ("swizzle", 3),
    ],
    "INSTRUCTION_DESCRIPTOR": [
        (None, 2), ("sparse", 1), ("saturate", 1), ("d_format", 2), (None, 1), ("a_format", 3),
        ("b_format", 3), ("negate", 2), ("transpose", 2), ("n", 6), (None, 1), ("m", 5), (None, 3),
    ],
}  # fmt: skip
# InstrDescriptorBlockScaled
CUTLASS_FIELDS["SCALED_DESCRIPTOR"] = [
    (None, 2), ("sparse", 1), (None, 1), ("b_scale", 2), (None, 1), ("a_format", 3),
    ("b_format", 3), ("negate", 2), ("transpose", 2), ("n", 6), ("scale_format", 1), ("m", 5),
    ("a_scale", 2), ("k", 1),
]  # fmt: skip
DROPPED = {"start": 4, "leading": 4, "stride": 4, "n": 3, "m": 4}


@pytest.mark.parametrize("name", sorted(CUTLASS_FIELDS))
def test_descriptor_fields_are_those_of_cutlass(name: str) -> None:
    first, theirs = 0, {}
    for field, bits in CUTLASS_FIELDS[name]:
        if field:
            theirs[field] = Field(first=first, bits=bits, dropped=DROPPED.get(field, 0))
        first += bits
    ours = dict(getattr(layouts, name))
    if "version" in ours:  # the PTX ISA gives it the unused bit above as well: fixed 0b001
        assert (ours.pop("version").first, theirs.pop("version").first) == (46, 46)
    assert ours == theirs


def test_operand_b_lies_as_cute_lays_it_without_swizzle() -> None:
    # mma_traits_sm90_gmma.hpp, K-major INTERLEAVE in units of 16 bytes: ((8,n),2):((1,SBO),LBO)
    leading, stride = 512, 128
    for column in range(32):
        for word in range(8):
            unit = column % 8 + column // 8 * (stride // 16) + word // 4 * (leading // 16)
            assert layouts.operand_offset(column, word, leading, stride) == 16 * unit + word % 4 * 4


def test_formats_are_those_of_cutlass() -> None:
    # enum class MXF8F6F4Format; F16F32Format::F16; MXF4Format::E2M1; S8Format::INT8
    a = {"e4m3": 0, "e5m2": 1, "f8f6f4_e2m3": 3, "f8f6f4_e3m2": 4, "f8f6f4_e2m1": 5, "f16": 0}
    a |= {"mxf4nvf4": 1, "s8": 1}
    b = dict.fromkeys(a, a["e4m3"]) | {kind: a[kind] for kind in ("f16", "mxf4nvf4", "s8")}
    # enum class CFormat: F32, S32; InstrDescriptorBlockScaled has none
    d = dict.fromkeys(a, 1) | {"s8": 2, "mxf4nvf4": 0}
    assert dict(layouts.FORMATS) == {kind: (a[kind], b[kind], d[kind]) for kind in a}


def test_formats_of_scales_are_those_of_cutlass() -> None:
    # enum class ScaleFormat: UE4M3, UE8M0; DeepGEMM's sm100_fp8_fp4_gemm_1d1d selects a byte of a
    # word of E8M0 slice by slice; kinds without scales have 0 here
    of_e8m0 = {kind for kind, what in layouts.SCALE_FORMATS.items() if what == 1}
    assert of_e8m0 == set(layouts.FORMATS) - {"f16", "mxf4nvf4", "s8"}
    assert list(layouts.SCALE_FORMATS) == list(layouts.FORMATS)


def test_four_bits_stand_where_cutlass_shifts_them() -> None:
    # mma_traits_sm120.hpp, fp4_shift_A: 0b0000ABCD -> 0b00ABCD00; not for six and eight bits
    theirs = {kind: 2 if kind == "f8f6f4_e2m1" else 0 for kind in layouts.FORMATS}
    assert dict(layouts.CONTAINER_SHIFTS) == theirs


def test_kinds_are_in_the_order_of_the_wrappers() -> None:
    text = (Path(layouts.__file__).parent / "hardware" / "mma_sync.cuh").read_text()
    (names,) = re.findall(r"enum class Kind \{ (.*?) \};", text)
    assert names.split(", ") == list(layouts.FORMATS) == list(layouts.CONTAINER_SHIFTS)
