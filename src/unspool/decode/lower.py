"""From a code to the lowerings of one machine, and the choice among them.

Every way that gives exactly the code's values is written down; the choice is by counted cost.
`cost` here is the count of a lowering's own instructions, and a test holds it against machine code.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

from unspool.decode.fields import Fields, convert, why_not_wider
from unspool.decode.lower_plain import plain_fields
from unspool.decode.lower_steps import gathers, masks_bytes, step_fields
from unspool.decode.lower_table import wide_fields
from unspool.decode.lowering import Lowering, Tape
from unspool.decode.machine import Machine, Slot
from unspool.decode.sign_plane import sign_plane, stored_bits
from unspool.decode.values import exponent_for, tabulated
from unspool.errors import DeclarationError
from unspool.spec.code import Code
from unspool.spec.operand import FP16

LOAD_COST = 6
"""ALU slots of a look-up: shared memory serves 32 lanes a clock where the ALU takes 64, and 32
random indices meet about threefold in 32 banks."""

LOADS = ("load", "load-at")


def why_not(code: Code, slot: Slot, machine: Machine) -> str:
    """Why a machine cannot take a code's values in that slot; empty where it can."""
    if slot not in machine.slots:
        return f"{machine.name} does not read {slot}"
    if exponent_for(code, slot.operand) is not None:
        return ""
    unknown = not tabulated(code)
    if unknown and not why_not_wider(code.operand, slot.operand):
        return ""
    kind = "parameters" if unknown else "values"
    return f"the {kind} of the code are not {slot.operand.name} times a power of two"


def slots(code: Code, machine: Machine) -> tuple[Slot, ...]:
    """The slots of a machine that hold a code's values, the narrowest first."""
    return tuple(slot for slot in machine.slots if not why_not(code, slot, machine))


@functools.lru_cache(maxsize=32)
def lowerings(code: Code, slot: Slot, machine: Machine) -> tuple[Lowering, ...]:
    """Every lowering of a code to a slot, the cheapest first.

    Raises DeclarationError where the machine or the slot cannot hold the values.
    """
    reason = why_not(code, slot, machine)
    if reason:
        able = [str(other) for other in slots(code, machine)]
        raise DeclarationError(reason, found=str(slot), allowed=able or "nothing on this target")
    found = [*_plain(code, slot, machine), *_wide(code, slot), *_steps(code, slot, machine)]
    if not found:
        raise DeclarationError(
            f"no lowering to {slot} gives the code's values exactly", where=f"code {code.name}"
        )
    return tuple(sorted(found, key=cost))


def lower(code: Code, slot: Slot, machine: Machine) -> Lowering:
    """The cheapest lowering of a code to a slot of a machine."""
    return lowerings(code, slot, machine)[0]


def lower_each(code: Code, held: Iterable[Slot], machine: Machine) -> list[Lowering]:
    """The cheapest lowering to each of the slots that has one: that values fit an operand is not
    always seen in their fields. Raises DeclarationError where none of some slots has."""
    found, refused = [], None
    for slot in held:
        try:
            found.append(lower(code, slot, machine))
        except DeclarationError as error:
            refused = error
    if refused and not found:
        raise refused
    return found


def operations(lowering: Lowering) -> Counter[str]:
    """Instructions of a ring by operation.

    A product and the sum behind it are one, and so are both words of a product (IMAD.WIDE).
    """
    products = {i.result for i in lowering.instructions if i.op == "mul"}
    factors = {i.arguments for i in lowering.instructions if i.op == "mul"}
    return Counter(
        i.op
        for i in lowering.instructions
        if i.op != "level"
        and not (i.op == "add" and products & set(map(str, i.arguments)))
        and not (i.op == "mul-high" and i.arguments in factors)
    )


def cost(lowering: Lowering) -> float:
    """Estimated instructions per weight, look-ups at what they are worth of the ALU."""
    found = operations(lowering)
    loads = sum(found[op] for op in LOADS)
    return (found.total() + (LOAD_COST - 1) * loads) / lowering.weights


def _plain(code: Code, slot: Slot, machine: Machine) -> Iterator[Lowering]:
    for name, tape, fields, bits in plain_fields(code, slot):
        for made in _converted(code, tape, fields, slot, machine):
            yield _lowering(code, slot, name, tape, made, bits=bits)


def _wide(code: Code, slot: Slot) -> Iterator[Lowering]:
    for tape, fields, table in wide_fields(code, slot):
        yield _lowering(code, slot, "wide-table", tape, fields, table=table)


def _steps(code: Code, slot: Slot, machine: Machine) -> Iterator[Lowering]:
    table: list[int] = []
    loads: dict[str, tuple[int, int]] = {}
    for constant in code.program.tables:
        loads[constant.name] = len(table), len(constant.entries)
        table += constant.entries
    shared = 0
    for parameter in code.program.parameters:
        loads[parameter.name] = len(table), parameter.length
        rows = code.tile[0] if parameter.scope == "row" else 1
        shared = rows * parameter.length
    signs = sign_plane(code)
    masked, late = (False, True)[: 1 + bool(masks_bytes(code))], (False, True)[: 1 + gathers(code)]
    for masks, waits, plane in itertools.product(masked, late, (None, signs) if signs else (None,)):
        tape = Tape()
        fields = step_fields(tape, code, loads, masked=masks, late=waits, signs=plane)
        name = "masked-" * masks + "late-" * waits + "steps" + ("-and-signs" if plane else "")
        bits = stored_bits(code, plane) if plane else None
        for made in _converted(code, tape, fields, slot, machine):
            yield _lowering(
                code, slot, name, tape, made, bits=bits, table=tuple(table), shared=shared
            )


def _converted(
    code: Code, tape: Tape, fields: Fields, slot: Slot, machine: Machine
) -> Iterator[Fields]:
    """The fields in a slot, by moving bits and by an instruction, where these ways exist."""
    power = exponent_for(code, slot.operand) or 0
    for cvt in (False, True) if slot.operand is FP16 else (False,):
        try:
            yield convert(tape, fields, slot, machine, cvt=cvt, exponent=power)
        except DeclarationError:
            continue


def _lowering(
    code: Code,
    slot: Slot,
    name: str,
    tape: Tape,
    fields: Fields,
    *,
    bits: tuple[int, ...] | None = None,
    table: tuple[int, ...] = (),
    shared: int = 0,
) -> Lowering:
    identity = bits is not None and bits == tuple(range(len(bits)))
    return Lowering(
        name=name,
        slot=slot,
        words=code.words,
        instructions=tape.reached(fields.registers),
        registers=fields.registers,
        places=fields.places,
        bits=None if identity else bits,
        exponent=fields.exponent,
        table=table,
        levels=tape.levels,
        held=tuple(tape.held),
        shared=shared,
    )
