"""Lowerings: straight-line instructions from the stored words of a ring to operand registers.

    words of a ring   w0 w1 ...          (canonical, or after a declared bijection of their bits)
       | instructions of spec.program, and the few conversions below
    registers         r0 r1 ...          each holds 2, 4 or 8 operands, slot 0 in the low bits

A lowering is data: it is run here on numpy arrays, printed as CUDA by `emit_cuda`, and both are
compared with the interpreter over every state of the code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.interpret import execute, permute_bytes
from unspool.decode.machine import Slot
from unspool.errors import DeclarationError
from unspool.spec.operand import E2M1, E2M3, E3M2, E4M3, Operand
from unspool.spec.program import ARITY, Instruction

if TYPE_CHECKING:
    from jaxtyping import UInt32

    Word = UInt32[np.ndarray, "..."]


#: a & b & c
AND_AND = 0x80
#: (a & b) | c
AND_OR = 0xEA
#: (a & b) ^ c
AND_XOR = 0x6A
FULL = 0xFFFFFFFF

#: rows of a truth table where c is one, where it is zero
WHERE_ONE, WHERE_ZERO = 0xAA, 0x55

#: instruction -> operand whose two lowest fields it turns into two binary16 (PTX `cvt`, exact)
CONVERSIONS: Mapping[str, Operand] = {
    "half2-of-e4m3": E4M3,
    "half2-of-e2m1": E2M1,  # two nibbles of the lowest byte
    "half2-of-e2m3": E2M3,
    "half2-of-e3m2": E3M2,
}

#: what a lowering may use beyond a program: operation -> arguments
EXTRA: Mapping[str, int] = {
    **dict.fromkeys(CONVERSIONS, 1),
    "select-bytes": 3,  # permute-bytes by a selector that has the top bit of every nibble clear
    "bfloat2-scale": 2,  # two bfloat16 times a power of two (its bfloat16 pattern twice); exact
    "load-at": 1,  # the entry at a byte offset: an index times four costs nothing when it is cut
    "load": 2,  # (first entry, index): an entry of the lowering's table in shared memory
    "level": 1,  # one of the registers that the kernel fills once
}


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """What one trick makes of a code for a slot; `emitted = value * 2**exponent`."""

    #: the trick, for people: steps, wide-table, scatter, permute-table, ...
    name: str
    slot: Slot
    words: int
    instructions: tuple[Instruction, ...]
    registers: tuple[str, ...]
    #: the weight (row-major in the tile) in every slot of every register
    places: tuple[int, ...]
    #: which canonical bit of the ring stands at each bit of the words; None: as stored
    bits: tuple[int, ...] | None = None
    exponent: int = 0
    #: entries of the table in shared memory
    table: tuple[int, ...] = ()
    #: registers that a kernel fills per ring: four levels of a parameter, or a row's block scale
    levels: int = 0
    #: constants that it keeps in the registers behind these: left to the compiler, they are moved
    #: there again and again (0.4 instructions per weight for a table of 16)
    held: tuple[int, ...] = ()
    #: entries of parameters that the kernel puts behind `table`, row-major in (row, entry)
    shared: int = 0

    def __post_init__(self) -> None:
        known = {f"w{i}" for i in range(self.words)}
        for instruction in self.instructions:
            _check(instruction, known, self)
            known.add(instruction.result)
        if not set(self.registers) <= known:
            raise DeclarationError("a lowering returns what it did not compute", where=self.name)
        if sorted(self.places) != list(range(len(self.registers) * self.slot.per_register)):
            raise DeclarationError("a lowering loses or repeats a weight", where=self.name)
        if self.bits is not None and sorted(self.bits) != list(range(32 * self.words)):
            raise DeclarationError("a reordering of bits is no bijection", where=self.name)

    @property
    def weights(self) -> int:
        """Weights of a ring."""
        return len(self.places)


def _check(instruction: Instruction, known: set[str], lowering: Lowering) -> None:
    arity = {**ARITY, **EXTRA}.get(instruction.op) if instruction.op != "table" else None
    arguments = instruction.arguments
    fits = arity == len(arguments) and all(
        argument in known if isinstance(argument, str) else 0 <= argument <= FULL
        for argument in arguments
    )
    if instruction.op == "level":
        fits = fits and arguments[0] in range(lowering.levels + len(lowering.held))
    if instruction.op == "load":
        fits = fits and arguments[0] in range(len(lowering.table) + lowering.shared)
    if not fits or instruction.result in known:
        raise DeclarationError("no legal step of a lowering", where=str(instruction))


@dataclass(kw_only=True)
class Tape:
    """Instructions being written down; equal ones are written once."""

    instructions: list[Instruction] = field(default_factory=list)
    #: registers that a kernel fills per ring
    levels: int = 0
    held: list[int] = field(default_factory=list)
    _results: dict[tuple[str | int, ...], str] = field(default_factory=dict)

    def __call__(self, op: str, *arguments: str | int) -> str:
        """Appends one instruction; its result's register."""
        key = (op, *arguments)
        if key not in self._results:
            name = f"t{len(self.instructions)}"
            self.instructions.append(Instruction(name, op, arguments))
            self._results[key] = name
        return self._results[key]

    def hold(self, constant: int) -> str:
        """A constant that stays in a register, behind what a kernel fills per ring."""
        if constant not in self.held:
            self.held.append(constant)
        return self("level", self.levels + self.held.index(constant))

    def mask(self, register: str, mask: int) -> str:
        """`register & mask`."""
        return register if mask == FULL else self("and", register, mask)

    def rotate(self, register: str, amount: int, mask: int = FULL) -> str:
        """The register rotated right; as a plain shift where `mask` drops what wraps around."""
        amount %= 32
        if not amount:
            return register
        if mask & ~(FULL >> amount) == 0:
            return self("shr", register, amount)
        if mask & ((1 << (32 - amount)) - 1) == 0:
            return self("shl", register, 32 - amount)
        return self("funnel-shift", register, register, amount)

    def merge(self, pieces: list[tuple[str, int, int]], ones: Mapping[str, int]) -> str:
        """The or of `(register rotated right by amount) & mask` over (register, amount, mask).

        `ones` are the bits that a register can have at all; a mask of more is left out.
        """
        result = ""
        for register, amount, mask in pieces:
            turned = self.rotate(register, amount, mask)
            possible = ones.get(register, FULL)
            possible = (possible >> amount | possible << (32 - amount)) & FULL
            if turned != register and self._op(turned) == "shr":
                possible &= FULL >> amount
            if possible & ~mask == 0:
                result = self("or", result, turned) if result else turned
            elif result:
                result = self("lop3", turned, mask, result, AND_OR)
            else:
                result = self.mask(turned, mask)
        return result

    def made(self, register: str) -> Instruction | None:
        """The instruction that wrote a register; None for a stored word."""
        return self.instructions[int(register[1:])] if register.startswith("t") else None

    def most(self, register: str | int) -> int:
        """Bits that a register can have: of its mask, where it was made by one."""
        if isinstance(register, int):
            return register
        made = self.made(register)
        if made and made.op == "and":
            return min(a if isinstance(a, int) else FULL for a in made.arguments)
        if made and made.op == "lop3" and all(isinstance(a, int) for a in made.arguments[2:]):
            mask, truth = (int(a) for a in made.arguments[2:])
            return (mask if truth & WHERE_ONE else 0) | (~mask & FULL if truth & WHERE_ZERO else 0)
        return FULL

    def carries_no_byte(self, total: Instruction) -> bool:
        """Whether no byte of a sum of two reaches the next."""
        a, b = map(self.most, total.arguments)
        return all((a >> at & 0xFF) + (b >> at & 0xFF) <= 0xFF for at in range(0, 32, 8))

    def _op(self, register: str) -> str:
        return self.instructions[int(register[1:])].op

    def reached(self, registers: tuple[str, ...]) -> tuple[Instruction, ...]:
        """The instructions that the registers depend on."""
        wanted, kept = set(registers), []
        for instruction in reversed(self.instructions):
            if instruction.result in wanted:
                kept.append(instruction)
                wanted |= {a for a in instruction.arguments if isinstance(a, str)}
        return tuple(reversed(kept))


def run(
    lowering: Lowering, words: UInt32[np.ndarray, "rings words"], levels: Word | None = None
) -> UInt32[np.ndarray, "rings registers"]:
    """Runs a lowering on rings of (reordered) words.

    `levels` is what the kernel gives of parameters: registers (`levels`) or entries (`shared`).
    """
    registers = {f"w{i}": words[..., i] for i in range(lowering.words)}
    given = np.zeros(0, np.uint32) if levels is None else levels
    table = np.concatenate([np.array(lowering.table, np.uint32), given])
    given = np.concatenate([given, np.array(lowering.held, np.uint32)])
    for instruction in lowering.instructions:
        name, op, arguments = instruction.result, instruction.op, instruction.arguments
        values = [registers[a] if isinstance(a, str) else np.uint32(a) for a in arguments]
        if op == "level":
            registers[name] = given[int(arguments[0])]
        elif op == "load-at":
            registers[name] = table[values[0].astype(np.int64) >> 2]
        elif op == "load":
            registers[name] = table[values[0].astype(np.int64) + values[1].astype(np.int64)]
        elif op in EXTRA:
            registers[name] = _EXTRA_OPERATIONS[op](*values)
        else:
            registers[name] = execute(instruction, registers, {})
    shape = words.shape[:-1]
    return np.stack([np.broadcast_to(registers[r], shape) for r in lowering.registers], axis=-1)


def reorder(lowering: Lowering, words: UInt32[np.ndarray, "... words"]) -> Word:
    """Canonical words in the order that the lowering reads."""
    if lowering.bits is None:
        return words
    stored = np.ascontiguousarray(words, "<u4").view(np.uint8)
    bits = np.unpackbits(stored, axis=-1, bitorder="little")[..., list(lowering.bits)]
    return np.ascontiguousarray(np.packbits(bits, axis=-1, bitorder="little")).view("<u4")


def emitted(
    lowering: Lowering, registers: UInt32[np.ndarray, "rings registers"]
) -> UInt32[np.ndarray, "rings weights"]:
    """Operand bits of every weight, row-major in the tile."""
    slot = lowering.slot
    shifts = np.arange(slot.per_register, dtype=np.uint32) * np.uint32(slot.width)
    fields = registers[..., None] >> shifts & np.uint32((1 << slot.width) - 1)
    flat = fields.reshape(*registers.shape[:-1], -1)
    result = np.empty_like(flat)
    result[..., list(lowering.places)] = flat
    return result


def _half2_of(operand: Operand) -> Callable[[Word], Word]:
    width = 4 if operand is E2M1 else 8
    halves = operand.values().astype(np.float16)
    bits = np.where(np.isnan(halves), np.uint16(0x7FFF), halves.view(np.uint16))
    patterns = bits.astype(np.uint32)
    mask = np.uint32((1 << operand.bits) - 1)

    def convert(a: Word) -> Word:
        low, high = patterns[a & mask], patterns[a >> np.uint32(width) & mask]
        return low | high << np.uint32(16)

    return convert


def _bfloat2_scale(a: Word, factor: Word) -> Word:
    power = ((factor & np.uint32(0xFFFF)) << np.uint32(16)).view(np.float32)
    halves = [np.asarray(a << np.uint32(16)), np.asarray(a & np.uint32(0xFFFF0000))]
    low, high = ((half.view(np.float32) * power).view(np.uint32) for half in halves)
    return low >> np.uint32(16) | high & np.uint32(0xFFFF0000)


_EXTRA_OPERATIONS: Mapping[str, Callable[..., Word]] = {
    **{name: _half2_of(operand) for name, operand in CONVERSIONS.items()},
    "select-bytes": permute_bytes,
    "bfloat2-scale": _bfloat2_scale,
}
