"""A lowering carried on into a wider slot: the same words, the same stored bits, other registers.

    words --lowering--> E2M1, E2M3, ... --bits moved--> E4M3, FP16

Weights are stored as one lowering reads them. What reads the same memory and wants other operands
(a library's matrix product) goes on from that lowering's registers.
"""

from __future__ import annotations

from dataclasses import replace

from unspool.decode.fields import Fields, convert, positions
from unspool.decode.lowering import Lowering, Tape
from unspool.decode.machine import Machine, Slot
from unspool.errors import DeclarationError
from unspool.spec.program import Instruction


def widened(lowering: Lowering, slot: Slot, machine: Machine) -> Lowering:
    """The weights of a lowering in a slot of a machine, exactly, up to a power of two.

    Raises DeclarationError where the slot does not hold them.
    """
    own = lowering.slot
    if slot == own:
        return lowering
    tape, registers = _continued(lowering)
    fields = Fields(
        operand=own.operand,
        width=own.width,
        at=positions(own.operand, own),
        registers=registers,
        places=lowering.places,
        exponent=lowering.exponent,
        clean=True,
    )
    made = convert(tape, fields, slot, machine, cvt=False)
    return replace(
        lowering,
        slot=slot,
        instructions=tape.reached(made.registers),
        registers=made.registers,
        places=made.places,
        exponent=made.exponent,
    )


def why_not_widened(lowering: Lowering, slot: Slot, machine: Machine) -> str:
    """Why a slot does not hold a lowering's weights; empty where it does."""
    try:
        widened(lowering, slot, machine)
    except DeclarationError as error:
        return str(error)
    return ""


def _continued(lowering: Lowering) -> tuple[Tape, tuple[str, ...]]:
    """A tape that ends where a lowering does, and its registers: numbered as tapes number them."""
    names = {f"w{i}": f"w{i}" for i in range(lowering.words)}
    tape = Tape(levels=lowering.levels, held=list(lowering.held))
    for instruction in lowering.instructions:
        names[instruction.result] = name = f"t{len(tape.instructions)}"
        given = (names[a] if isinstance(a, str) else a for a in instruction.arguments)
        tape.instructions.append(Instruction(name, instruction.op, tuple(given)))
    return tape, tuple(names[register] for register in lowering.registers)
