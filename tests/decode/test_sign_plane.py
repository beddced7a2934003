"""A plane of signs is recognized where moving its bits changes nothing else, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unspool.decode.sign_plane import sign_plane, stored_bits
from unspool.explore.genome import Genome, Step
from unspool.explore.space import Space
from unspool.spec.code import Code
from unspool.spec.operand import E2M1, E4M3, FP16
from unspool.spec.program import Instruction

PRODUCT = Step("multiply", 0, constant=0x9E3779B1, addend=5)


def signed(operand, lanes: int) -> Code:
    return Space.of(2, operand).code(Genome(8 + lanes, lanes, (PRODUCT,), signs=True))


@pytest.mark.parametrize(
    ("operand", "lanes"), [(E4M3, 4), (E4M3, 2), (E4M3, 1), (E2M1, 4), (E2M1, 2), (FP16, 2)]
)
def test_the_plain_bits_of_a_word_are_those_of_whole_steps(operand, lanes):
    code = signed(operand, lanes)
    plane = sign_plane(code)
    assert plane is not None
    assert len(plane.amounts) * lanes == 32
    bits = stored_bits(code, plane)
    assert sorted(bits) == list(range(32 * code.words))
    ring = code.plane_bits[0]
    assert bits[:ring] == tuple(range(ring))
    for word in range(ring, len(bits), 32):
        assert sorted(bits[word : word + 32]) == list(range(word, word + 32))


def instruction(code: Code, name: str, *arguments: str | int) -> Code:
    """The code with other arguments of an instruction, or with one more."""
    made = {i.result: i for i in code.program.instructions}
    made[name] = Instruction(name, made[name].op if name in made else "not", arguments)
    return replace(code, program=replace(code.program, instructions=tuple(made.values())))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("spread", ("plain", 0x11111111)),  # the same bit at every sign
        ("spread", ("plain", 1 << 4 | 1 << 13 | 1 << 22 | 1 << 24 | 1 << 31)),  # copies that meet
        ("spread", ("plain", 1 << 4)),  # all but one of the signs are not there
        ("plain", ("state", 11)),  # a bit of the window among them
        ("also", ("spread",)),
        ("word", ("spread", 0x80808080, "fields", 0xEA)),  # or, not xor
    ],
)
def test_what_is_no_plane_of_signs_is_left_alone(name, arguments):
    code = signed(E4M3, 4)
    assert sign_plane(code) is not None
    assert sign_plane(instruction(code, name, *arguments)) is None


def test_one_plane_has_no_signs_beside():
    assert sign_plane(Space.of(2, E4M3).code(Genome(16, 4, (PRODUCT,)))) is None
