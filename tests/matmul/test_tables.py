"""Tables: wide ones are the narrow ones side by side, small ones are shared."""

from __future__ import annotations

import numpy as np
import pytest

from unspool.decode.interpret import state_values
from unspool.matmul.kernel import Kernel
from unspool.matmul.native_matrix import native_matrix
from unspool.matmul.tables import WIDE_BYTES, int8_unit, levels
from unspool.pack.words import unpack
from unspool.spec.catalog import FORMATS, parse

TABULATED = [name for name, fmt in FORMATS.items() if not fmt.code.program.parameters]


@pytest.mark.parametrize("name", TABULATED)
def test_a_wide_entry_is_what_successive_steps_emit(name):
    code = parse(name).code
    found = levels(code)
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
        ([2.0, -254.0], 2.0),
        ([0.0], 1.0),
        ([1.0, 129.0], None),
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
    assert np.abs(scaled).max() <= 127
    assert found >= unit


@pytest.mark.parametrize("name", ["t2-e2m1", "t3-e2m3", "mxfp4", "fp8-e4m3", "t2.5-e2m3"])
def test_tables_of_small_codes_fit_half_the_first_cache(name):
    assert levels(parse(name).code).table.nbytes <= WIDE_BYTES


def test_layers_share_tables_and_read_their_arrays_in_place(random_matrix):
    matrices = [random_matrix("t2-e2m1", 64, 256, seed) for seed in (0, 1)]
    first, second = (native_matrix(matrix) for matrix in matrices)
    assert first.fast == second.fast
    assert first.entries == second.entries
    assert first.codes == matrices[0].codes.ctypes.data
    assert first.scale == matrices[0].scale.ctypes.data


@pytest.mark.parametrize("name", FORMATS)
def test_a_prepared_layer_adds_nothing_of_its_size(random_matrix, name):
    small, large = (random_matrix(name, n, 512) for n in (64, 512))
    sizes = [
        sum(array.nbytes for array in native_matrix(matrix).keep) - matrix.nbytes
        for matrix in (small, large)
    ]
    assert sizes[0] == sizes[1]


def test_a_kernel_says_what_it_runs(random_matrix):
    kernel = Kernel(random_matrix("t2-e2m1", 64, 256), target="portable")
    assert kernel.target == "portable"
    assert "forced by the caller" in kernel.why
    assert kernel.choice(1).path == "panel-portable"
