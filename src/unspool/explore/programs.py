"""From a genome to the program of a code: the steps one by one, then the fields of an operand.

    word     the last register without the bits that its fields must not have, or what the end
             makes of it
    lanes    fields of the word from the top down: nibbles are E2M1, bytes E2M3, E3M2, E4M3 or
             INT8, halves FP16; or of entries of a table from the bottom up

Every program is total: fields that are masked so are never NaN or infinite, nor are sums of two
halves below 2, or of four bytes, nor what a book holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from unspool.decode.fields import pack
from unspool.decode.lower_steps import EVERY_BYTE
from unspool.decode.lowering import AND_AND, AND_OR, AND_XOR
from unspool.explore.books import quantiles
from unspool.explore.genome import FOLD, HALVES, LEVELS, SUM, TABLE, TAIL, Book, Genome, Step
from unspool.spec.catalog.multiply import E2M3_MASK, E4M3_MASK, XOR_AND
from unspool.spec.code import WORD_BITS
from unspool.spec.operand import E2M1, E2M3, E3M2, E4M3, FP16, INT8, Operand
from unspool.spec.program import STATE, Instruction, Program, Table

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

WINDOW = "window"
"""The register of the first plane's window, where there is a second."""

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
    E2M1: Fields(width=4, ends=(TABLE,), ended=0.15),
    E2M3: Fields(width=8, mask=E2M3_MASK, ends=(LEVELS, TABLE)),
    E3M2: Fields(width=8, mask=E3M2_MASK, room=8, ends=(TAIL, LEVELS, TABLE), ended=0.5),
    E4M3: Fields(width=8, mask=E4M3_MASK, room=8, ends=(TAIL, LEVELS, TABLE), ended=0.5),
    INT8: Fields(width=8, ends=(SUM, LEVELS, TABLE), ended=0.5),
    FP16: Fields(
        width=16, mask=HALVES_MASK, room=0x400, ends=(TAIL, HALVES, SUM, TABLE), ended=0.8
    ),
}

MOST_SUMS = 2
"""Weights a step of which each is the sum of a register of its own."""

SIGNED_INDEX = 3
"""Bits of a number of eight magnitudes: the fourth bit of a nibble is left for signs."""

NIBBLES, TOPS, PLACES = 0x7777, 0x4444, 0x3210
"""Of the four nibbles that select bytes: the bits that number eight of them, the place of their
fourth bit a bit lower, and each byte's own place."""


def may_have_signs(operand: Operand, lanes: int) -> bool:
    """Whether a plane of signs can be brought to so many fields: not to integers, whose sign is no
    bit of its own, nor to eight nibbles."""
    return not operand.integer and lanes <= FIELDS[operand].width + 1


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
    tables: tuple[Table, ...] = ()
    if genome.end and genome.end.op == TABLE:
        outputs, tables = _table(genome, operand)
    if genome.signs:
        made = _signed(genome, operand, made, [first for _, first in outputs])
    return Program(instructions=tuple(made), outputs=tuple(outputs), tables=tables)


def book_of(genome: Genome) -> Book:
    """The book of a genome that ends in one."""
    assert genome.end is not None
    assert genome.end.book is not None
    return genome.end.book


def operands(genome: Genome, operand: Operand) -> tuple[int, ...]:
    """The operands of a genome's book: trained ones, or those that training starts from."""
    book = book_of(genome)
    signed = not signed_by_top(genome)
    return book.operands or quantiles(operand, 1 << book.index, book.each, book.start, signed)


def signed_by_top(genome: Genome) -> bool:
    """Whether the entries are magnitudes, and the top has the signs."""
    end = genome.end
    return end is not None and end.op == LEVELS and book_of(genome).index == SIGNED_INDEX


def _step(place: int, step: Step) -> list[Instruction]:
    result, a, b = f"r{place}", name(step.a), name(step.b)
    constant = step.constant
    if step.op == "multiply":
        product = Instruction(f"p{place}", "mul", (a, constant))
        return [product, Instruction(result, "add", (product.result, step.addend))]
    if step.op == FOLD:
        halves = f"p{place}", f"h{place}"
        low = Instruction(halves[0], "mul", (a, constant))
        high = Instruction(halves[1], "mul-high", (a, constant))
        return [low, high, Instruction(result, "xor", halves)]
    if step.op == "difference":
        parts = [
            Instruction(f"{x}{place}", "and", (of, constant)) for x, of in (("a", a), ("b", b))
        ]
        return [*parts, Instruction(result, "sub", (parts[0].result, parts[1].result))]
    if step.op == "permute":
        return [Instruction(result, "permute-bytes", (a, 0, constant))]
    if step.op == "high":
        return [Instruction(result, "mul-high", (a, constant))]
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
    sources = [_low(genome, register) for register in end.registers]
    alone = name(len(genome.steps)) not in sources
    op, table = ("and", ()) if end.thinned is None else ("lop3", (AND_AND,))
    return [
        *_masked(made, fields.mask, "top", alone=alone),
        Instruction("tail", op, (*sources, end.bits * every, *table)),
        Instruction("word", "add", ("top", "tail")),
    ]


def _low(genome: Genome, register: int) -> str:
    """A register, of a fold the low word: the other would undo what folding does."""
    folded = register > 0 and genome.steps[register - 1].op == FOLD
    return f"p{register}" if folded else name(register)


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


def _levels(genome: Genome, operand: Operand, made: list[Instruction]) -> list[Instruction]:
    """Eight bytes are two registers, of which a permute picks four; sixteen two such picks and a
    choice between them by the fourth bit of a nibble."""
    assert genome.end is not None
    top, _ = _pair(genome)
    numbers, made = top, list(made)
    if genome.end.bits:
        numbers = "numbers"
        made.append(Instruction(numbers, "shr", (top, genome.end.bits)))
    made.append(Instruction("picks", "and", (numbers, NIBBLES)))
    entries = operands(genome, operand)
    words = [pack(entries[first : first + 4]) for first in range(0, len(entries), 4)]
    if signed_by_top(genome):
        signs = 0x80 * EVERY_BYTE
        return [
            *made,
            Instruction("found", "permute-bytes", (*words, "picks")),
            Instruction("word", "lop3", (top, signs, "found", AND_XOR)),
        ]
    return [
        *made,
        Instruction("lower", "permute-bytes", (*words[:2], "picks")),
        Instruction("upper", "permute-bytes", (*words[2:], "picks")),
        Instruction("tops", "shr", (numbers, 1)),
        Instruction("choice", "lop3", ("tops", TOPS, PLACES, AND_OR)),
        Instruction("word", "permute-bytes", ("lower", "upper", "choice")),
    ]


def _look_ups(genome: Genome, operand: Operand, made: list[Instruction]) -> list[Instruction]:
    """An entry for every part of the top; where there is but one its signs turned."""
    assert genome.end is not None
    (top, other), book = _pair(genome), book_of(genome)
    count, found = genome.lanes // book.each, list(made)
    part = WORD_BITS // count
    for place in range(count):
        shift = part * place + (genome.end.bits or part - book.index)
        found.append(Instruction(f"number{place}", "shr", (top, shift)))
        found.append(Instruction(_entry(place, count), "table", ("book", f"number{place}")))
    if genome.end.signs:
        found[-1] = replace(found[-1], result="entry")
        signs = sum(1 << (first + operand.bits - 1) for first in _lanes(genome, operand))
        found.append(Instruction("word", "lop3", (other, signs, "entry", AND_XOR)))
    return found


def _lanes(genome: Genome, operand: Operand) -> list[int]:
    """The lowest bit of every lane of an entry, in its upper bits: those of a register mix most."""
    width, each = FIELDS[operand].width, book_of(genome).each
    return [WORD_BITS - width * (each - lane) for lane in range(each)]


def _table(genome: Genome, operand: Operand) -> tuple[list[tuple[str, int]], tuple[Table, ...]]:
    """Where the lanes stand in entries, and the entries."""
    book, lanes = book_of(genome), _lanes(genome, operand)
    found, count = operands(genome, operand), genome.lanes // book.each
    entries = tuple(
        sum(bits << lane for bits, lane in zip(found[i : i + book.each], lanes, strict=True))
        for i in range(0, len(found), book.each)
    )
    outputs = [
        (_entry(lane // book.each, count), lanes[lane % book.each]) for lane in range(genome.lanes)
    ]
    return outputs, (Table(name="book", entries=entries),)


def _entry(place: int, count: int) -> str:
    return "word" if count == 1 else f"entry{place}"


_ENDS: Mapping[str, Callable[[Genome, Operand, list[Instruction]], list[Instruction]]] = {
    TAIL: _tail, HALVES: _halves, SUM: _sum, LEVELS: _levels, TABLE: _look_ups,
}  # fmt: skip


def _signed(
    genome: Genome, operand: Operand, made: list[Instruction], lanes: list[int]
) -> list[Instruction]:
    """Steps on the first plane's window alone, and the second plane's bits on the word's signs.

    A product with sparse ones takes a bit to each of them, the last bit to the first lane: so the
    copies of the bits do not overlap where fields are one bit narrower than bits are many.
    """
    steps = [
        replace(i, arguments=tuple(WINDOW if a == STATE else a for a in i.arguments)) for i in made
    ]
    places = [first + operand.bits - 1 for first in lanes]
    spread = sum(1 << (place - (len(places) - 1 - lane)) for lane, place in enumerate(places))
    signs = sum(1 << place for place in places)
    return [
        Instruction(WINDOW, "and", (STATE, (1 << genome.window) - 1)),
        *steps[:-1],
        replace(steps[-1], result="fields"),
        Instruction("plain", "shr", (STATE, genome.window)),
        Instruction("spread", "mul", ("plain", spread)),
        Instruction("word", "lop3", ("spread", signs, "fields", AND_XOR)),
    ]


def _pair(genome: Genome) -> tuple[str, str]:
    """The top and the register beside it."""
    assert genome.end is not None
    return name(len(genome.steps)), name(genome.end.register)


def name(register: int, genome: Genome | None = None) -> str:
    """A register of a genome as its program calls it: the window of a plane beside signs too."""
    if register:
        return f"r{register}"
    return WINDOW if genome is not None and genome.signs else STATE
