"""The explorer's space: every genome is a total program, and what differs in name alone is one."""

from __future__ import annotations

import numpy as np
import pytest

from unspool.decode.interpret import state_values
from unspool.errors import DeclarationError
from unspool.explore.space import FIELDS, Genome, Space, Step
from unspool.spec.operand import E2M1, E4M3, OPERANDS


@pytest.mark.parametrize("operand", FIELDS, ids=str)
@pytest.mark.parametrize("bits", [1, 1.5, 2, 3])
def test_all_that_is_drawn_or_changed_is_a_code_of_finite_values(operand, bits):
    space, random = Space.of(bits, operand), np.random.default_rng(3)
    genome = space.draw(random)
    for _ in range(12):
        genome = space.changed(random, genome if random.random() < 0.7 else space.draw(random))
        code = space.code(genome)
        assert code.bits_per_weight == bits
        if code.state_bits <= 16:
            assert np.isfinite(state_values(code)).all()
        assert genome == genome.pruned()
        assert len(genome.steps) >= 1


def test_steps_that_nothing_reads_go_and_sums_have_one_order():
    used = Step("multiply", 0, constant=5, addend=7)
    padded = Genome(16, 4, (Step("permute", 0, constant=0x1010), used, Step("xor", 2, 0)))
    assert padded.pruned() == Genome(16, 4, (used, Step("xor", 0, 1)))


def test_e4m3_fields_are_never_nan_whatever_the_program():
    space = Space.of(2, E4M3)
    everything = Genome(16, 4, (Step("multiply", 0, constant=0xFFFFFFFF, addend=0xFFFFFFFF),))
    assert np.abs(state_values(space.code(everything))).max() <= 0.5


@pytest.mark.parametrize(
    ("bits", "operand"), [(2, "INT8"), (2.1, "E2M1"), (7, "E4M3"), (float("nan"), "E2M1")]
)
def test_a_space_without_codes_says_what_there_is(bits, operand):
    with pytest.raises(DeclarationError, match="no codes"):
        Space.of(bits, OPERANDS[operand])


def test_nibbles_come_from_the_top_of_the_word():
    code = Space.of(2, E2M1).code(Genome(16, 4, (Step("multiply", 0, constant=1, addend=0),)))
    assert [offset for _, offset in code.program.outputs] == [16, 20, 24, 28]
