"""From a genome to the program of a code: the steps one by one, then the fields of an operand.

    word     the last register without the bits that its fields must not have, or what the end
             makes of it
    lanes    fields of the word from the top down: nibbles are E2M1, bytes E2M3, E3M2, E4M3 or
             INT8, halves FP16

Every program is total: fields that are masked so are never NaN or infinite, nor are sums of two
halves below 2, or of four bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from unspool.decode.lower_steps import EVERY_BYTE
from unspool.decode.lowering import AND_XOR
from unspool.explore.genome import HALVES, SUM, TAIL, Genome, Step
from unspool.spec.catalog.multiply import E2M3_MASK, E4M3_MASK, XOR_AND
from unspool.spec.code import WORD_BITS
from unspool.spec.operand import E2M1, E2M3, E3M2, E4M3, FP16, INT8, Operand
from unspool.spec.program import STATE, Instruction, Program

THIN = 0xE0
"""lop3 truth table of a & (b | c)."""

E3M2_MASK = 0x2F2F2F2F
"""Sign, two exponent and two mantissa bits: four binades, as E4M3's mask leaves."""

HALVES_MASK, HALVES_BITS = 0x8FFF8FFF, 0x3B603B60
"""Sign, two exponent bits and mantissa of two binary16; the other exponent bits of numbers from
2**-3 to 2: the constants of QTIP's 3INST."""

SUM_BITS, SUM_CENTRE = 0x6400, 0xE5FE
"""The binary16 1024, whose unit in the last place is 1, so that a sum of bytes stands in its low
bits; and -1534: QTIP's 1MAD. The middle of four bytes is 510."""

BYTE_SUM_MASK, BYTE_SUM_CENTRE = 0x3F3F3F3F, 0x82
"""Six bits of every byte, whose sum stays below 253, and what moves its middle to 256: zero."""

PAIR = 0x5410
"""Selector of the lower halves of two registers."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Where an operand's lanes stand in the word, which bits of it they may have, the ends that it
    has, and how large a number of a tail can be added: up to 0x27 E4M3 is 120 times its least
    value, up to 0x17 E3M2 112 times, so that CPUs multiply them in int8; without a carry into the
    sign in any case."""

    width: int
    mask: int | None = None
    room: int = 0
    ends: tuple[str, ...] = ()
    #: share of drawn genomes that have an end
    ended: float = 0.3


FIELDS: Mapping[Operand, Fields] = {
    E2M1: Fields(width=4),
    E2M3: Fields(width=8, mask=E2M3_MASK),
    E3M2: Fields(width=8, mask=E3M2_MASK, room=8, ends=(TAIL,)),
    E4M3: Fields(width=8, mask=E4M3_MASK, room=8, ends=(TAIL,)),
    INT8: Fields(width=8, ends=(SUM,)),
    FP16: Fields(width=16, mask=HALVES_MASK, room=0x400, ends=(TAIL, HALVES, SUM), ended=0.8),
}

MOST_SUMS = 2
"""Weights a step of which each is the sum of a register of its own."""


def ends(operand: Operand, lanes: int) -> tuple[str, ...]:
    """The ends of an operand with so many weights a step."""
    return tuple(op for op in FIELDS[operand].ends if op != SUM or lanes <= MOST_SUMS)


def program(genome: Genome, operand: Operand) -> Program:
    """The program of a genome to an operand."""
    fields, lanes = FIELDS[operand], genome.lanes
    made = [i for place, step in enumerate(genome.steps, 1) for i in _step(place, step)]
    if genome.end is None:
        made = _masked(made, fields.mask, "word")
    else:
        made = _ENDS[genome.end.op](genome, operand, made)
    first = WORD_BITS - fields.width * lanes
    outputs = [("word", first + fields.width * lane) for lane in range(lanes)]
    if genome.end and genome.end.op in (HALVES, SUM):
        outputs = [("word", fields.width * lane) for lane in range(lanes)]
        if operand.integer:
            outputs = [(f"sum{lane}", 0) for lane in range(lanes)]
    return Program(instructions=tuple(made), outputs=tuple(outputs))


def _step(place: int, step: Step) -> list[Instruction]:
    result, a, b = f"r{place}", _name(step.a), _name(step.b)
    constant = step.constant
    if step.op == "multiply":
        product = Instruction(f"p{place}", "mul", (a, constant))
        return [product, Instruction(result, "add", (product.result, step.addend))]
    if step.op == "difference":
        parts = [Instruction(f"{x}{place}", "and", (of, constant)) for x, of in (("a", a), ("b", b))]
        return [*parts, Instruction(result, "sub", (parts[0].result, parts[1].result))]
    if step.op == "permute":
        return [Instruction(result, "permute-bytes", (a, 0, constant))]
    if step.op == "shift":
        return [Instruction(result, "shr", (a, constant))]
    if step.op == "thin":
        return [Instruction(result, "lop3", (a, b, constant, THIN))]
    return [Instruction(result, step.op, (a, b))]


def _masked(
    made: list[Instruction], mask: int | None, result: str, *, alone: bool = True
) -> list[Instruction]:
    """The program whose last register has the fields' bits alone; where nothing else reads that
    register (`alone`), a xor before is one instruction with the mask."""
    *before, last = made
    if mask is None:
        return [*before, replace(last, result=result)]
    if last.op == "xor" and alone:
        return [*before, Instruction(result, "lop3", (*last.arguments, mask, XOR_AND))]
    return [*made, Instruction(result, "and", (last.result, mask))]


def _tail(genome: Genome, operand: Operand, made: list[Instruction]) -> list[Instruction]:
    fields, end = FIELDS[operand], genome.end
    assert end is not None
    every = sum(1 << bit for bit in range(0, WORD_BITS, fields.width))
    alone = end.register != len(genome.steps)
    return [
        *_masked(made, fields.mask, "top", alone=alone),
        Instruction("tail", "and", (_name(end.register), end.bits * every)),
        Instruction("word", "add", ("top", "tail")),
    ]


def _halves(genome: Genome, operand: Operand, made: list[Instruction]) -> list[Instruction]:
    top, other = _pair(genome)
    second = Instruction("other", "lop3", (other, HALVES_MASK, HALVES_BITS, AND_XOR))
    if genome.lanes == 1:
        second = Instruction("other", "shr", ("top", 16))
    return [
        *made,
        Instruction("top", "lop3", (top, HALVES_MASK, HALVES_BITS, AND_XOR)),
        second,
        Instruction("word", "half2-add", ("top", "other")),
    ]


def _sum(genome: Genome, operand: Operand, made: list[Instruction]) -> list[Instruction]:
    made, summed = list(made), _pair(genome)[: genome.lanes]
    for lane, register in enumerate(summed):
        bits = SUM_BITS
        if operand.integer:
            made.append(Instruction(f"low{lane}", "and", (register, BYTE_SUM_MASK)))
            register, bits = f"low{lane}", BYTE_SUM_CENTRE
        made.append(Instruction(f"sum{lane}", "byte-sum", (register, bits)))
    if operand.integer:
        return made
    both, centre = made[-1].result, SUM_CENTRE
    if genome.lanes == MOST_SUMS:
        both, centre = "sums", SUM_CENTRE | SUM_CENTRE << 16
        made.append(Instruction(both, "permute-bytes", ("sum0", "sum1", PAIR)))
    return [*made, Instruction("word", "half2-add", (both, centre))]


_ENDS: Mapping[str, Callable[[Genome, Operand, list[Instruction]], list[Instruction]]] = {
    TAIL: _tail, HALVES: _halves, SUM: _sum,
}  # fmt: skip


def _pair(genome: Genome) -> tuple[str, str]:
    """The top and the register beside it."""
    assert genome.end is not None
    return _name(len(genome.steps)), _name(genome.end.register)


def _name(register: int) -> str:
    return f"r{register}" if register else STATE
