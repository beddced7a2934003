"""Tables: wide ones are the narrow ones side by side, small ones are shared."""

from __future__ import annotations

import numpy as np
import pytest

from unspool.decode.interpret import state_values
from unspool.matmul.choose import choose
from unspool.matmul.native_matrix import native_matrix, nibbles_of_a_product
from unspool.matmul.tables import WIDE_BYTES, int8_unit, integer_levels, levels
from unspool.pack.words import unpack
from unspool.spec.catalog import FORMATS, parse

TABULATED = [name for name, fmt in FORMATS.items() if not fmt.code.program.parameters]
LOOKED_UP = ("x1-e2m1", "x1.5-e2m1-fine", "x3.5-e4m3", "x4-e4m3")
"""Codes whose windows of a row are more than a word, or too many for a table of levels: operands
are looked up instead."""
FLOATS_LOOKED_UP = (("x2.5-e4m3", False), ("x2.5-e4m3-fine", False))
"""The same of float32 levels, of two weights and 15 bits."""
INTEGER = [name for name, fmt in FORMATS.items() if choose(fmt, "numpy").activations == "int8"]


@pytest.mark.parametrize(
    ("name", "integer"), [*((n, False) for n in TABULATED), *((n, True) for n in INTEGER)]
)
def test_a_wide_entry_is_what_successive_steps_emit(name, integer):
    code = parse(name).code
    found = levels(code, integer=integer)
    if found is None:
        assert name in LOOKED_UP or (name, integer) in FLOATS_LOOKED_UP
        return
    if integer:
        assert found.table.dtype == np.int8
    values = state_values(code)
    rng = np.random.default_rng(0)
    ring = unpack(rng.integers(0, 1 << 32, (1, code.words), np.uint64).astype(np.uint32), code)[0]
    for first in range(0, code.steps - found.steps, found.steps):
        steps = ring[first : first + found.steps].astype(np.int64)
        index, low, union_low = 0, 0, 0
        for plane in code.planes:
            windows = steps >> low & (1 << plane.window) - 1
            union = sum(int(w) >> 0 << i * plane.stride for i, w in enumerate(windows[:1]))
            for i, window in enumerate(windows[1:], 1):
                union |= int(window) << i * plane.stride
            index |= union << union_low
            low += plane.window
            union_low += plane.window + (found.steps - 1) * plane.stride
        expected = values[steps].ravel()
        same = np.float32(found.unit) * found.table[index].astype(np.float32) == expected
        assert (same | np.isnan(expected)).all()


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        ([0.5, -6.0], 0.5),
        ([0.125, 7.5], 0.125),
        ([1.0, 127.0], 1.0),
        ([1.0, -128.0], 1.0),
        ([2.0, -254.0], 2.0),
        ([0.0], 1.0),
        ([1.0, 128.0], None),
        ([1.0, -129.0], None),
        ([0.1], None),
        ([np.nan], None),
    ],
)
def test_the_int8_unit(values, unit):
    found = int8_unit(np.array(values, np.float32))
    if unit is None:
        assert found is None
        return
    scaled = np.array(values) / found
    assert (scaled == np.rint(scaled)).all()
    assert scaled.min() >= -128
    assert scaled.max() <= 127
    assert found >= unit


@pytest.mark.parametrize(
    ("name", "unit", "largest"),
    [("mxfp4", 0.5, 12), ("t3-e2m3", 0.125, 60), ("int4", 1, 8), ("int8", 1, 128)],
)
def test_levels_are_small_integers(name, unit, largest):
    found = integer_levels(parse(name).code)
    assert (found.unit, found.largest) == (unit, largest)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in INTEGER])
def test_other_codes_have_no_integer_levels(name):
    assert integer_levels(parse(name).code) is None


@pytest.mark.parametrize("name", ["t2-e2m1", "t3-e2m3", "mxfp4", "fp8-e4m3", "t2.5-e2m3"])
def test_tables_of_small_codes_fit_half_the_first_cache(name):
    assert levels(parse(name).code, integer=False).table.nbytes <= WIDE_BYTES


def test_layers_share_tables_and_read_their_arrays_in_place(random_matrix):
    matrices = [random_matrix("t2-e2m1", 64, 256, seed) for seed in (0, 1)]
    first, second = (native_matrix(matrix) for matrix in matrices)
    assert first.fast == second.fast
    assert first.entries == second.entries
    assert first.codes == matrices[0].codes.ctypes.data
    assert first.scale == matrices[0].scale.ctypes.data


@pytest.mark.parametrize(
    ("name", "integer"), [*((n, False) for n in FORMATS), *((n, True) for n in INTEGER)]
)
def test_what_the_library_reads_of_a_layer_is_its_arrays_and_tables(random_matrix, name, integer):
    small, large = (random_matrix(name, n, 512) for n in (64, 512))
    sizes = [
        sum(array.nbytes for array in native_matrix(matrix, integer=integer).keep) - matrix.nbytes
        for matrix in (small, large)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", FORMATS)
def test_only_a_product_of_two_bytes_may_be_multiplied_in_registers(name):
    """The strip kernel takes it in tiles of 16 columns, which m2-e2m1 has."""
    constants = nibbles_of_a_product(parse(name).code)
    if name in ("m2-e2m1", "x2-e2m1"):
        spread, product, total = parse(name).code.program.instructions
        assert constants == (spread.arguments[2], product.arguments[1], total.arguments[1])
    else:
        assert constants is None
