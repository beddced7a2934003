"""The explorer's space: every genome is a total program, and what differs in name alone is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unspool.decode.interpret import state_values, tabulate
from unspool.decode.lower import lowerings, operations
from unspool.decode.lowering import reorder, run
from unspool.decode.machine import MACHINES, Slot
from unspool.errors import DeclarationError
from unspool.explore.genome import SUM, TABLE, TAIL, End, Genome, Step
from unspool.explore.moves import changed, drawn
from unspool.explore.programs import FIELDS
from unspool.explore.score import estimated
from unspool.explore.space import Space
from unspool.pack.proof import expected, rings, wrong
from unspool.spec.operand import E2M1, E4M3, INT8, OPERANDS

PRODUCT = Step("multiply", 0, constant=0x97E6B60B, addend=5)


@pytest.mark.parametrize("operand", FIELDS, ids=str)
@pytest.mark.parametrize("bits", [1, 1.5, 2, 3])
def test_all_that_is_drawn_or_changed_is_a_code_of_finite_values(operand, bits):
    space, random = Space.of(bits, operand), np.random.default_rng(3)
    genome = drawn(space, random)
    for _ in range(12):
        genome = changed(space, random, genome if random.random() < 0.7 else drawn(space, random))
        code = space.code(genome)
        assert code.bits_per_weight == bits
        if code.state_bits <= 16:
            assert np.isfinite(state_values(code)).all()
        assert genome == genome.normal()
        assert len(genome.steps) >= 1


def test_four_weights_a_step_have_the_memory_that_a_window_has_room_for():
    shapes = {bits: Space.of(bits, E4M3, lanes=4).shapes for bits in (2, 3, 3.5, 4)}
    assert shapes == {2: ((16, 4),), 3: ((20, 4),), 3.5: ((20, 4),), 4: ((20, 4),)}


def test_steps_that_nothing_reads_go_and_sums_have_one_order():
    used = Step("multiply", 0, constant=5, addend=7)
    padded = Genome(16, 4, (Step("permute", 0, constant=0x1010), used, Step("xor", 2, 0)))
    assert padded.normal() == Genome(16, 4, (used, Step("xor", 0, 1)))


SCRAMBLED = Step("fold", 0, constant=0x9E3779B1)


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ((PRODUCT, Step("multiply", 1, constant=77, addend=9)), 1),
        ((SCRAMBLED, Step("permute", 1, constant=0x3120), Step("permute", 2, constant=0x0213)), 2),
        ((SCRAMBLED, Step("shift", 1, constant=5), Step("shift", 2, constant=3)), 2),
        ((SCRAMBLED, Step("add", 1, 1), Step("multiply", 2, constant=3)), 2),
        ((SCRAMBLED, Step("thin", 1, 1, constant=0x0F0F0F0F)), 1),
        ((SCRAMBLED, SCRAMBLED, Step("multiply", 2, constant=5), Step("add", 1, 3)), 3),
        ((Step("permute", 0, constant=0x10), SCRAMBLED, PRODUCT, Step("xor", 3, 2)), 3),
    ],
)
def test_what_is_written_otherwise_is_the_same_program(steps, left):
    space = Space.of(2, E4M3)
    for end in (None, End(TAIL, 1, 6)):
        genome = Genome(16, 4, steps, end)
        made = genome.normal()
        assert len(made.steps) in (left, left + (end is not None))  # what a tail reads stays
        assert (tabulate(space.code(made)) == tabulate(space.code(genome))).all()
        assert made.normal() == made


def test_nothing_is_drawn_or_kept_that_makes_zeros():
    zeros = Genome(16, 4, (PRODUCT, Step("xor", 1, 1), Step("fold", 2, constant=7)))
    assert zeros.normal().steps == (PRODUCT, Step("fold", 1, constant=7))
    alone = Genome(16, 4, (Step("xor", 0, 0),))
    assert alone.normal() == alone
    space, random = Space.of(2, INT8), np.random.default_rng(6)
    for _ in range(300):
        steps = drawn(space, random).steps
        assert all(len(set(step.sources)) == len(step.sources) for step in steps)


@pytest.mark.parametrize("operand", [E2M1, E4M3], ids=str)
def test_a_change_is_a_change_and_an_end_changes_field_by_field(operand):
    space, random = Space.of(2, operand), np.random.default_rng(7)
    parents = [drawn(space, random) for _ in range(60)]
    assert all(changed(space, random, each) != each for each in parents for _ in range(10))
    if operand is not E4M3:
        return
    tailed = Genome(16, 4, (PRODUCT, replace(SCRAMBLED, a=1)), End(TAIL, 1, 6))
    children = [changed(space, random, tailed) for _ in range(2000)]
    alone = [each.end for each in children if each.end and each.steps == tailed.steps]
    assert {"bits", "register", "thinned"} == {
        name
        for end in alone
        for name in ("bits", "register", "thinned")
        if end == replace(tailed.end, **{name: getattr(end, name)})
    }


def test_a_permute_names_all_bytes_of_a_product():
    space, random, named = Space.of(2, E4M3), np.random.default_rng(8), {0: set(), 1: set()}
    for _ in range(600):
        for step in drawn(space, random).steps:
            if step.op == "permute":
                named[min(step.a, 1)] |= {step.constant >> 4 * i & 15 for i in range(4)}
    assert max(named[0]) < 3
    assert named[1] == {0, 1, 2, 3}


def test_e4m3_fields_are_never_nan_whatever_the_program():
    space = Space.of(2, E4M3)
    everything = Genome(16, 4, (Step("multiply", 0, constant=0xFFFFFFFF, addend=0xFFFFFFFF),))
    assert np.abs(state_values(space.code(everything))).max() <= 0.5
    tailed = Genome(16, 4, everything.steps, end=End(TAIL, 1, FIELDS[E4M3].room))
    assert np.isfinite(state_values(space.code(tailed))).all()


def test_a_tail_adds_bits_of_a_register_to_every_field():
    space = Space.of(2, E4M3)
    plain, tailed = (space.code(Genome(16, 4, (PRODUCT,), end)) for end in (None, End(TAIL, 0, 6)))
    window = np.arange(1 << 16)
    lanes = tabulate(plain) + (window[:, None] >> np.array([0, 8, 16, 24]) & 6)
    assert (tabulate(tailed) == lanes).all()


def test_a_thinned_tail_adds_the_bits_that_two_registers_have():
    space, end = Space.of(2, E4M3), End(TAIL, 0, 6, thinned=1)
    steps = (PRODUCT, Step("xor", 0, 1))
    plain, tailed = (space.code(Genome(16, 4, steps, each)) for each in (None, end))
    states = np.arange(1 << 16, dtype=np.uint64)
    both = states & (states * np.uint64(PRODUCT.constant) + np.uint64(PRODUCT.addend))
    at = np.arange(0, 32, 8, dtype=np.uint64)
    assert (tabulate(tailed) == tabulate(plain) + (both[:, None] >> at & np.uint64(6))).all()


def test_half_of_the_tails_that_are_drawn_are_thinned():
    random = np.random.default_rng(4)
    ends = [drawn(Space.of(2, E4M3, end="tail"), random).end for _ in range(200)]
    thinned = [end for end in ends if end and end.thinned is not None]
    assert 60 < len(thinned) < 140
    assert all(end.register < (end.thinned or 0) for end in thinned)


def test_bits_in_common_are_of_two_registers_in_order():
    ends = [End(TAIL, 1, 6, thinned=0), End(TAIL, 0, 6, thinned=1), End(TAIL, 1, 6, thinned=1)]
    found = [Genome(16, 4, (PRODUCT,), end).normal().end for end in ends]
    assert found == [ends[1], ends[1], End(TAIL, 1, 6)]


def test_a_program_without_a_step_keeps_the_registers_of_its_tail():
    steps = (PRODUCT, Step("permute", 0, constant=0x0110), Step("shift", 0, constant=3), PRODUCT)
    genome = Genome(16, 4, steps, End(TAIL, 0, 6, thinned=3)).normal()
    assert genome.steps == (steps[2], PRODUCT)
    assert genome.end == End(TAIL, 0, 6, thinned=1)


def test_a_fold_is_both_words_of_a_product_and_its_tail_reads_the_low_one():
    folds = (Step("permute", 0, constant=0x1010), Step("fold", 1, constant=0x9E3779B1))
    plain, tailed = (
        Space.of(2, E4M3).code(Genome(16, 4, folds, end)) for end in (None, End(TAIL, 2, 5))
    )
    window = np.arange(1 << 16, dtype=np.uint64)
    product = (window << np.uint64(16) | window) * np.uint64(0x9E3779B1)
    low, high = product & np.uint64(0xFFFFFFFF), product >> np.uint64(32)
    at = np.array([0, 8, 16, 24], np.uint64)
    lanes = (low ^ high)[:, None] >> at & np.uint64(0x9F)
    assert (tabulate(plain) == lanes).all()
    assert (tabulate(tailed) == lanes + (low[:, None] >> at & np.uint64(5))).all()


def test_a_fold_is_one_instruction_and_a_mask():
    folds = (Step("permute", 0, constant=0x1010), Step("fold", 1, constant=0x9E3779B1))
    assert estimated(Space.of(2, E4M3).code(Genome(16, 4, folds)), MACHINES["sm90"]) == 0.75


def test_a_thinned_bit_is_one_where_it_is_in_both():
    steps = (PRODUCT, Step("thin", 1, 0, constant=0xF0F0F0F0))
    product, thinned = (Space.of(1, E2M1).code(Genome(16, 8, steps[:n])) for n in (1, 2))
    window = np.arange(1 << 16)
    kept = (window | 0xF0F0F0F0)[:, None] >> 4 * np.arange(8) & 15
    assert (tabulate(thinned) == tabulate(product) & kept).all()


def test_bytes_are_masked_before_they_are_permuted_where_nothing_else_reads_them():
    tail = End(TAIL, 2, 6)
    alone = Genome(16, 4, (PRODUCT, Step("permute", 0, constant=0x0110), Step("add", 1, 1)), tail)
    shared = Genome(16, 4, (PRODUCT, Step("permute", 0, constant=0x0110), Step("xor", 1, 2)), tail)
    names = []
    for genome in (alone, shared):
        code = Space.of(2, E4M3).code(genome)
        words = rings(code)
        want = expected(code, words, {})
        found = lowerings(code, Slot(E4M3), MACHINES["sm90"])
        assert {each.name for each in found} == {"steps", "masked-steps"}
        for each in found:
            assert wrong(each, run(each, reorder(each, words)), want) == 0
        names.append(found[0].name)
    assert names == ["masked-steps", "steps"]


@pytest.mark.parametrize(
    ("bits", "operand"), [(2, "E5M2"), (2.1, "E2M1"), (7, "E4M3"), (float("nan"), "E2M1")]
)
def test_a_space_without_codes_says_what_there_is(bits, operand):
    with pytest.raises(DeclarationError, match="no codes"):
        Space.of(bits, OPERANDS[operand])


def test_nibbles_come_from_the_top_of_the_word():
    code = Space.of(2, E2M1).code(Genome(16, 4, (Step("multiply", 0, constant=1, addend=0),)))
    assert [offset for _, offset in code.program.outputs] == [16, 20, 24, 28]


@pytest.mark.parametrize(("end", "saved"), [(None, 0), (End(TAIL, 1, 7), 1), (End(TAIL, 2, 5), 2)])
def test_what_steps_do_to_bytes_is_done_once_behind_their_gathering(end, saved):
    code = Space.of(4, E4M3).code(Genome(16, 2, (PRODUCT, Step("fold", 1, constant=77)), end))
    words = rings(code)
    found = {each.name: each for each in lowerings(code, Slot(E4M3), MACHINES["sm90"])}
    for each in found.values():
        assert wrong(each, run(each, reorder(each, words)), expected(code, words, {})) == 0
    early, late = (operations(found[name]).total() for name in ("steps", "late-steps"))
    assert early - late == saved * code.steps // 2


def test_a_sum_that_carries_into_the_next_byte_is_left_to_its_step():
    carries = (PRODUCT, Step("add", 1, 1))
    code = Space.of(4, E2M1).code(Genome(16, 2, carries))
    words = rings(code)
    for each in lowerings(code, Slot(E4M3), MACHINES["sm90"]):
        assert wrong(each, run(each, reorder(each, words)), expected(code, words, {})) == 0


def test_a_space_of_one_end_and_so_many_weights_a_step_has_nothing_else():
    space, random = Space.of(2, E4M3, memory=9, lanes=4, end=TABLE), np.random.default_rng(5)
    assert space.shapes == ((17, 4),)
    genome = drawn(space, random)
    for _ in range(20):
        assert (genome.lanes, genome.end.op) == (4, TABLE)
        genome = changed(space, random, genome)
    sums = Space.of(2, INT8, memory=8, end=SUM)
    assert {lanes for _, lanes in sums.shapes} == {1, 2}
    assert all(drawn(sums, random).end.op == SUM for _ in range(20))
    with pytest.raises(DeclarationError, match=r"^lanes: .*found 3; allowed: \[2, 4, 8\]"):
        Space.of(1, E2M1, lanes=3)
    with pytest.raises(DeclarationError, match=r"no such end to E2M1; .*found halves"):
        Space.of(2, E2M1, end="halves")
