"""Threads, slices and stored order: nothing is lost, nothing stands twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unspool.decode.lower import lower, slots
from unspool.decode.lower_scaled import row_tables
from unspool.decode.lowering import emitted, run
from unspool.decode.machine import MACHINES, Machine
from unspool.errors import DeclarationError, WeightError
from unspool.matmul.cuda.arrange import arrange, recipe_of
from unspool.matmul.cuda.geometry import BLOCK_ROWS, QUARTER, ROWS, THREADS, Geometry, geometry
from unspool.matmul.cuda.launch import slots_of, tokens_of
from unspool.matmul.cuda.recipe import ACTIVATIONS, SUMS, TABLE, Recipe, recipe
from unspool.matmul.reference import decode_values
from unspool.pack.matrix import CodedMatrix
from unspool.pack.random import random_matrix
from unspool.spec.catalog import FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_a_steps_columns_stand_once_in_the_slots_of_its_slices(name):
    code = FORMATS[name].code
    for machine in (MACHINES["sm80"], MACHINES["sm90"], MACHINES["sm120"]):
        for slot in slots(code, machine):
            made = geometry(code, lower(code, slot, machine))
            columns = made.columns()
            assert columns.shape == (made.slices, 2, QUARTER, slot.per_register)
            assert sorted(columns.reshape(-1)) == list(range(made.step_columns))
            placed = columns.reshape(-1)[made.positions()]
            assert (placed == np.arange(made.step_columns)).all()
            assert sum(width for _, width in made.vectors) == made.step_words


def stored_words(units: np.ndarray, made: Geometry) -> np.ndarray:
    """Words `[row block, stage, step, thread, word]` as a kernel loads them."""
    codes = np.ascontiguousarray(units[..., : made.code_bytes]).view("<u4")
    steps = codes.reshape(*units.shape[:2], made.steps, -1)
    parts, at = [], 0
    for _, width in made.vectors:
        part = steps[..., at : at + width * THREADS]
        parts.append(part.reshape(*steps.shape[:3], THREADS, width))
        at += width * THREADS
    return np.concatenate(parts, axis=-1)[..., np.argsort(made.words())]


def decoded(units: np.ndarray, made: Recipe, levels: np.ndarray) -> np.ndarray:
    """Operand bits `[rows, columns]` of stored units, by the lowering in numpy."""
    shape = made.geometry
    words = stored_words(units, shape)
    rings = words.reshape(*words.shape[:4], shape.rings, -1)
    registers = run(shape.lowering, rings.reshape(-1, rings.shape[-1]), levels)
    bits = emitted(shape.lowering, registers).reshape(*rings.shape[:5], ROWS, shape.tile_columns)
    (blocks, stages), across, together = bits.shape[:2], shape.across(), shape.together
    split = bits.reshape(
        blocks, stages, -1, together, BLOCK_ROWS // ROWS, QUARTER, shape.rings, ROWS,
        shape.tile_columns,
    )  # fmt: skip
    # block, ring down, row | stage, span | step of it, ring of it, thread | column
    dealt = split.transpose(0, 4, 7, 1, 2, 3, 6, 5, 8)
    placed = np.empty((*dealt.shape[:5], across.size, shape.tile_columns), bits.dtype)
    placed[:, :, :, :, :, across] = dealt
    return placed.reshape(blocks * BLOCK_ROWS, -1)


@pytest.mark.parametrize("name", ["t2-e2m1", "m3-e4m3", "v1.5-e2m1", "mxfp4", "nvfp4", "t3.5-e2m3"])
@pytest.mark.parametrize("machine", ["sm80", "sm90", "sm100"])
def test_arranged_units_decode_to_the_matrix(name, machine):
    made = recipe(FORMATS[name], MACHINES[machine])
    matrix = random_matrix(made.format, 264, 640)
    found = arrange(matrix, made)
    unmoved = row_tables(np.zeros(ROWS, np.int64)).ravel()
    bits = decoded(found.units, made, unmoved if made.scales == TABLE else np.zeros(0, np.uint32))
    slot = made.geometry.lowering.slot
    values = slot.operand.values()[bits >> slot.low & ((1 << slot.operand.bits) - 1)]
    n, k = made.format.padded(264, 640)
    operands = values[:n, :k] * 2.0**-made.geometry.lowering.exponent
    ones = replace(matrix, scale=None, tensor_scale=None)
    np.testing.assert_array_equal(operands, decode_values(ones))


def spread(first: int, second: int) -> CodedMatrix:
    """MXFP4 of two powers of two in row 5, and one in all others."""
    matrix = random_matrix(FORMATS["mxfp4"], 16, 128)
    scale = np.full_like(matrix.scale, 100)
    scale[5, 1], scale[5, 2] = first, second
    return replace(matrix, scale=scale)


@pytest.mark.parametrize(
    ("target", "activations"),
    [("sm80", "auto"), ("sm89", "auto"), ("sm90", "auto"), ("sm100", "float16")],
)
def test_a_table_moves_as_far_as_its_exponents_go(target, activations):
    near, far = spread(100, 74), spread(100, 73)
    made = recipe_of((near,), MACHINES[target], activations)
    assert made.scales == TABLE
    assert arrange(near, made).units.nbytes < 256 * 256 * (4.25 / 8) + 1  # bits per weight
    with pytest.raises(WeightError, match=r"row 5.*factor of 2\*\*26"):
        arrange(far, made)
    assert recipe_of((near, far), MACHINES[target], activations).scales == SUMS


def test_a_block_of_zeros_has_whatever_scale_is_near():
    matrix = spread(100, 0)
    codes = matrix.codes.copy()
    codes[0, 8:12, 5] &= 0x88888888  # columns 64 to 95 of row 5: signs alone
    made = recipe_of((replace(matrix, codes=codes),), MACHINES["sm90"])
    assert made.scales == TABLE
    codes[0, 9, 5] |= 0x400
    assert recipe_of((replace(matrix, codes=codes),), MACHINES["sm90"]).scales == SUMS


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_runs_on_every_machine_and_what_does_not_has_a_reason(name):
    for machine in MACHINES.values():
        assert recipe(FORMATS[name], machine, "auto").geometry.steps % 2 == 0
        for activations in ACTIVATIONS:
            made, reason = attempt(name, machine, activations)
            assert (made is None) == ("no product of" in reason)
            assert made is None or made.geometry.code_bytes % 16 == made.unit_bytes % 16 == 0


def attempt(name: str, machine: Machine, activations: str) -> tuple[Recipe | None, str]:
    try:
        return recipe(FORMATS[name], machine, activations), ""
    except DeclarationError as error:
        return None, str(error)


def test_activations_that_do_not_exist_are_named():
    with pytest.raises(DeclarationError, match=r"no such activations.*fp7.*fp8x2"):
        recipe(FORMATS["t2-e2m1"], MACHINES["sm90"], "fp7")


def test_tiles_of_other_heights_are_refused():
    code = FORMATS["mxfp4"].code
    lowering = lower(code, MACHINES["sm90"].slots[0], MACHINES["sm90"])
    with pytest.raises(DeclarationError, match=r"no CUDA kernel for tiles.*16 x 8"):
        geometry(replace(code, tile=(16, 8)), lowering)


@pytest.mark.parametrize(
    ("name", "target", "activations"),
    [
        ("fp8-e4m3", "sm120", "fp8"),
        ("mxfp8", "sm89", "fp8x2"),
        ("mxfp6-e2m3", "sm120", "int8"),
        ("int8", "sm80", "int8"),
        ("nvfp4", "sm89", "float16"),
        ("t4-e2m3", "sm80", "float16"),
    ],
)
def test_two_stages_fit_the_least_shared_memory_of_a_target(name, target, activations):
    """8.6, 8.9 and 12.0 give a block 99 KiB: stages of 256 columns of 8-bit codes did not fit."""
    made = recipe(FORMATS[name], MACHINES[target], activations)
    for m in (1, 64, 256):
        slots_of(made, tokens_of(made, m), per_block=99 << 10, per_processor=100 << 10)
