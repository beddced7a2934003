"""Programs say no to what they cannot mean, and survive a trip through JSON."""

import json

import pytest

from unspool.errors import DeclarationError
from unspool.spec.operand import E4M3
from unspool.spec.program import STATE, Instruction, Parameter, Program, Table

PROGRAM = Program(
    instructions=(
        Instruction("spread", "permute-bytes", (STATE, 0, 0x1010)),
        Instruction("level", "table", ("levels", "spread")),
    ),
    outputs=(("level", 0), ("spread", 16)),
    tables=(Table(name="levels", entries=(3, 1, 4, 1)),),
    parameters=(Parameter(name="fitted", length=8, operand=E4M3, scope="tile", tile=(8, 64)),),
)


def test_a_program_survives_json() -> None:
    assert Program.from_json(json.loads(json.dumps(PROGRAM.to_json()))) == PROGRAM


def test_a_program_is_hashable() -> None:
    assert hash(PROGRAM) == hash(Program.from_json(PROGRAM.to_json()))


def test_an_instruction_prints_as_assembly() -> None:
    assert str(PROGRAM.instructions[0]) == "spread = permute-bytes state, 0x0, 0x1010"


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (Instruction("x", "divide", (STATE, 3)), "no such instruction"),
        (Instruction("x", "add", (STATE,)), "wrong number of arguments"),
        (Instruction("x", "add", (STATE, "y")), "neither a register"),
        (Instruction("x", "add", (STATE, 1 << 32)), "neither a register"),
        (Instruction("x", "add", (STATE, -1)), "neither a register"),
        (Instruction(STATE, "add", (STATE, 1)), "written twice"),
        (Instruction("x", "table", ("t", STATE)), "no such table"),
    ],
)
def test_an_instruction_that_means_nothing_is_refused(
    instruction: Instruction, message: str
) -> None:
    with pytest.raises(DeclarationError, match=message):
        Program(instructions=(instruction,), outputs=((STATE, 0),))


def test_a_lane_outside_the_registers_is_refused() -> None:
    with pytest.raises(DeclarationError, match="reads outside"):
        Program(outputs=(("word", 0),))


def test_a_table_of_three_entries_is_refused() -> None:
    with pytest.raises(DeclarationError, match="power of two"):
        Table(name="t", entries=(1, 2, 3))
