"""Our products in the GPU run, on a CPU that plays a GPU of two multiprocessors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from gpu import ours
from gpu.correctness import check_batch
from gpu.product import activations
from gpu.stage import AbsentError

from unspool.decode.machine import MACHINES
from unspool.matmul.cuda import simulate

K = 520


@pytest.fixture
def played():
    if simulate.why_not():
        pytest.skip(simulate.why_not())

    def board(machine: str) -> SimpleNamespace:
        return SimpleNamespace(torch=torch, device="cpu", machine=MACHINES[machine])

    return board


@pytest.mark.parametrize(("machine", "rounded"), [("sm90", "fp8"), ("sm80", "float16")])
def test_every_check_of_the_run_holds_for_our_products(played, machine, rounded):
    product = ours.CodedProduct(played(machine), "s3-e4m3", rounded, (264, K), 1)
    x = activations(9, K)
    alone = product.result(x[:1])
    measured = check_batch(product, x, alone)
    assert measured == measured | {"wrong": 0, "repeatable": True, "rows_alike": True}
    assert measured["relative_error"] < 0.001


def test_a_wrong_scale_is_out_of_bounds(played):
    product = ours.CodedProduct(played("sm90"), "s3-e4m3", "fp8", (264, K), 1)
    product._copies[0].row_scales.view(torch.float32)[7] *= 1.01
    assert check_batch(product, activations(2, K), None)["wrong"] > 0


def test_copies_stand_apart_in_memory_and_multiply_alike(played):
    product = ours.CodedProduct(played("sm90"), "s3-e4m3", "fp8", (264, K), 2)
    call = product.queue(1)
    assert torch.equal(call(0), call(1))
    first, second = product._copies
    assert first.units.data_ptr() != second.units.data_ptr()
    assert product.nbytes >= 264 * K * 3 / 8


def test_what_a_machine_does_not_multiply_is_absent_with_the_reason(played):
    with pytest.raises(AbsentError, match="sm80.*8-bit floats"):
        ours.CodedProduct(played("sm80"), "s3-e4m3", "fp8", (264, K), 1)
