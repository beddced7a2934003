"""Our products in the GPU run, on a CPU that plays a GPU of two multiprocessors."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from unspool.decode.machine import MACHINES
from unspool.matmul.cuda import simulate

K = 520


@pytest.fixture
def coded():
    """coded(machine, activations, copies): our product, 264 x 520."""
    if simulate.why_not():
        pytest.skip(simulate.why_not())
    from gpu.ours import CodedProduct

    def make(machine: str, rounded: str = "fp8", copies: int = 1, shape=(264, K)):
        board = SimpleNamespace(torch=torch, device="cpu", machine=MACHINES[machine])
        name = "nvfp4" if rounded == "fp4" else "s3-e4m3"
        return CodedProduct(board, name, rounded, shape, copies)

    return make


@pytest.fixture
def check():
    from gpu.correctness import check_batch

    return check_batch


@pytest.fixture
def rows():
    from gpu.product import activations

    return lambda m: activations(m, K)


@pytest.mark.parametrize(
    ("machine", "rounded"),
    [
        ("sm90", "fp8"),
        ("sm80", "float16"),
        ("sm120", "fp4"),
        ("sm100", "fp4"),
        ("sm80", "int8"),
        ("sm100", "int8"),
    ],
)
def test_every_check_of_the_run_holds_for_our_products(coded, check, rows, machine, rounded):
    product = coded(machine, rounded)
    x = rows(9)
    alone = product.result(x[:1])
    measured = check(product, x, alone)
    assert measured == measured | {"wrong": 0, "repeatable": True, "rows_alike": True}
    assert measured["relative_error"] < 0.001


@pytest.mark.parametrize(("machine", "rounded"), [("sm90", "fp8"), ("sm120", "fp4")])
def test_many_rows_are_checked_as_the_librarys(coded, check, rows, monkeypatch, machine, rounded):
    from gpu import correctness

    monkeypatch.setattr(correctness, "FUSED_ROWS", 8)
    product = coded(machine, rounded)
    product._copies[0].library_rows = 12
    measured = check(product, rows(12), None)
    assert measured == measured | {"wrong": 0, "repeatable": True}
    product._copies[0].library.row_scales[0, 7] *= 1.02
    assert check(product, rows(12), None)["wrong"] > 0


def test_a_wrong_scale_is_out_of_bounds(coded, check, rows):
    product = coded("sm90")
    product._copies[0].row_scales.view(torch.float32)[7] *= 1.01
    assert check(product, rows(2), None)["wrong"] > 0


def test_copies_stand_apart_in_memory_and_multiply_alike(coded):
    product = coded("sm90", copies=2)
    call = product.queue(1)
    assert torch.equal(call(0), call(1))
    first, second = product._copies
    assert first.units.data_ptr() != second.units.data_ptr()
    assert product.nbytes >= 264 * K * 3 / 8


def test_what_a_machine_does_not_multiply_is_absent_with_the_reason(coded):
    from gpu.stage import AbsentError

    with pytest.raises(AbsentError, match=r"sm80.*8-bit floats"):
        coded("sm80")


def test_a_large_matrix_repeats_a_block_and_is_checked_the_same(coded, check, monkeypatch):
    from gpu import ours
    from gpu.product import activations

    monkeypatch.setattr(ours, "REPEATED", 256)
    monkeypatch.setattr(ours, "SMALL", 1 << 16)
    product = coded("sm90", shape=(512, 768))
    assert product._block.shape == (256, 256)
    assert check(product, activations(3, 768), None)["wrong"] == 0
    product._copies[0].row_scales.view(torch.float32)[300] *= 1.01
    assert check(product, activations(3, 768), None)["wrong"] > 0


def test_the_block_of_a_deep_matrix_is_of_an_odd_number_of_whole_stages():
    from gpu import correctness, ours
    from gpu.stage import AbsentError

    from unspool.matmul.cuda.geometry import STAGE_COLUMNS

    wide = ours.REPEATED_ACROSS
    assert correctness.DEEP_SHAPE[1] % wide == 0
    assert wide // STAGE_COLUMNS == 7  # no multiple of it is a number of places, 2 to 6
    for machine in MACHINES.values():
        for name in ours.FORMATS_OF_OURS:
            for activations in (each for together in ours.ACTIVATIONS for each in together):
                with contextlib.suppress(AbsentError):
                    made = ours._recipe(name, machine, activations)
                    assert wide % made.geometry.stage_columns == 0


@pytest.mark.parametrize(("machine", "rounded"), [("sm90", "fp8x2"), ("sm120", "fp4")])
def test_what_is_compiled_before_is_what_products_take(coded, monkeypatch, machine, rounded):
    from gpu import ours

    taken = []
    monkeypatch.setattr(simulate, "build", taken.append)
    product = coded(machine, rounded, shape=(264, 1040))
    matrix = product._copies[0]
    batches = 1, 9, 64, 256, 8192
    matrix.warm_up(batches, torch.bfloat16)
    runs = matrix.processor
    facts = SimpleNamespace(
        shared_bytes=runs.per_block, processor_shared_bytes=runs.per_processor, multiprocessors=2
    )
    board = SimpleNamespace(machine=MACHINES[machine], gpu=SimpleNamespace(facts=facts))
    sources = ours._sources(product.format, rounded)
    assert list(sources(board, (264, 1040), batches, "bfloat16")) == taken
    assert len(taken) == 10


def test_what_a_machine_does_not_multiply_has_no_sources():
    from gpu import ours

    board = SimpleNamespace(machine=MACHINES["sm80"])
    assert list(ours._sources("m2-e4m3", "fp8")(board, (264, 1040), (1,), "bfloat16")) == []


def test_binary16_is_left_out_where_fp8_multiplies_the_format(coded):
    from gpu.stage import AbsentError

    with pytest.raises(AbsentError, match="binary16 is for"):
        coded("sm90", "float16")
