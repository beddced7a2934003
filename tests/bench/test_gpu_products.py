"""Products in the GPU run: checked element by element.

On a fake GPU: compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import dataclasses

import pytest


def entrant(*arguments, **named):
    from exact_product import entrant

    return entrant(*arguments, **named)


@pytest.fixture
def checked(board_of, given_of, monkeypatch):
    def check(*faults: str):
        from gpu import correctness

        monkeypatch.setattr(correctness, "SHAPES", ((24, 40),))
        given = given_of(board_of())
        correctness.check(given, [entrant(fault) for fault in faults or ("",)])
        return given.findings

    return check


def test_a_right_product_passes(checked):
    found = checked()
    assert found.wrong == []
    assert [row["m"] for row in found.rows] == [1, 2, 3, 7, 8, 16, 17, 32, 64, 100, 256]
    assert max(row["relative_error"] for row in found.rows) < 1e-6


def test_of_many_rows_some_are_compared_as_rows_of_many(board_of, given_of, monkeypatch):
    from gpu import correctness

    monkeypatch.setattr(correctness, "SHAPES", ((24, 40),))
    monkeypatch.setattr(correctness, "MANY_SHAPE", (24, 40))
    for fault, wrong in (("", 0), ("batch", 32 * 24)):
        given = given_of(board_of())
        correctness.check(given, [entrant(fault)])
        last = given.findings.rows[-1]
        assert (last["m"], last["wrong"]) == (8192, wrong)
        assert [found[:13] for found in given.findings.wrong] == ["exact 24x40 m"] * bool(wrong)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("element", "m=7: {'wrong': 1"),
        ("nan", "m=8: {'wrong': 1"),
        ("rows", "'rows_alike': False"),
        ("unsteady", "'repeatable': False"),
    ],
)
def test_a_fault_is_found(checked, fault, said):
    assert said in " ".join(checked(fault).wrong)


def test_one_that_breaks_is_wrong_and_the_others_go_on(checked):
    found = checked("raises", "")
    assert found.wrong == ["exact 24x40: RuntimeError: no such kernel"]
    assert len(found.rows) == 11


def test_whose_turn_it_is_is_written_down_before(board_of, given_of, monkeypatch):
    from gpu import correctness

    kept = []
    monkeypatch.setattr(correctness, "SHAPES", ((24, 40),))
    given = given_of(board_of())
    facts = given.findings.facts
    given = dataclasses.replace(given, keep=lambda: kept.append(facts.get("trying")))
    correctness.check(given, [entrant(), entrant(name="other")])
    assert kept == ["exact", None, "other", None]


def test_a_gpu_that_is_broken_ends_the_stage_with_what_was_found(board_of, given_of, monkeypatch):
    from gpu import correctness
    from gpu.stage import GpuBrokenError

    monkeypatch.setattr(correctness, "SHAPES", ((24, 40),))
    given = given_of(board_of())
    given.board.fault = "an illegal access"
    with pytest.raises(GpuBrokenError, match="no such kernel; since then every call fails"):
        correctness.check(given, [entrant(), entrant("raises"), entrant()])
    assert (len(given.findings.rows), len(given.findings.wrong)) == (11, 1)
    assert given.findings.facts["broken_by"] == "exact"


def test_a_block_of_every_gpu_uses_each_place_of_its_pipeline_again():
    from gpu import correctness

    from unspool.matmul.cuda.geometry import BLOCK_ROWS, STAGE_COLUMNS
    from unspool.matmul.cuda.launch import MOST_BLOCKS, SLOTS

    n, k = correctness.DEEP_SHAPE
    units = n // BLOCK_ROWS * (k // STAGE_COLUMNS)
    assert correctness.DEEP_SHAPE in correctness.SHAPES
    for multiprocessors, each in ((132, 2), (160, 2), (170, MOST_BLOCKS["mma_sync"])):
        assert units / (multiprocessors * each) > max(SLOTS)
    assert max(correctness.batches_of(correctness.DEEP_SHAPE)) == 64


def test_no_product_of_ours_is_told(board_of, given_of):
    from gpu import correctness
    from gpu.stage import AbsentError

    with pytest.raises(AbsentError, match=r"bench/gpu/entrants\.py"):
        correctness.check(given_of(board_of()), [])


def test_a_shape_that_a_product_refuses_is_a_row(board_of, given_of, monkeypatch):
    from gpu import correctness
    from gpu.product import Entrant
    from gpu.stage import AbsentError

    def refuse(*_):
        raise AbsentError("n is odd")

    monkeypatch.setattr(correctness, "SHAPES", ((24, 40),))
    given = given_of(board_of())
    correctness.check(given, [Entrant(name="x", make=refuse, bits=2), entrant()])
    assert len(given.findings.rows) == 1 + 11
    given = given_of(board_of())
    with pytest.raises(AbsentError, match="none of these products is here: n is odd"):
        correctness.check(given, [Entrant(name="x", make=refuse, bits=2)])
    assert {row["absent"] for row in given.findings.rows} == {"n is odd"}
