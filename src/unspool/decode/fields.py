"""Fields: registers full of operands in one arrangement, and the way from one to another.

    E2M1 in nibbles    s e e m s e e m ...                   source
    E4M3 in bytes      s 0 0 e e m 0 0                       destination: the same bits, spread

A float whose exponent and mantissa fields are no wider than another's becomes it by moving bits:
subnormals stay subnormals, and the difference of the biases is a power of two for the row scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from unspool.decode.lowering import AND_OR, Tape
from unspool.decode.machine import Machine, Slot
from unspool.decode.values import bits_of
from unspool.errors import DeclarationError
from unspool.spec.operand import BF16, E2M1, E4M3, FP16, INT8, Operand

BFLOAT_POWER_LIMIT = 127


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Operands in the fields of registers; a field's other bits are zero where `clean`."""

    operand: Operand
    width: int
    #: position of every bit of the operand in its field, lowest first
    at: tuple[int, ...]
    registers: tuple[str, ...]
    #: the weight in every field, lowest field first
    places: tuple[int, ...]
    exponent: int = 0
    clean: bool = False
    #: bits that a register can have at all
    ones: Mapping[str, int] = field(default_factory=dict)

    @property
    def per_register(self) -> int:
        """Fields of a register."""
        return 32 // self.width


def positions(operand: Operand, slot: Slot) -> tuple[int, ...]:
    """Where an operand's bits, lowest first, stand in the slot of a wider float (or its own)."""
    target = slot.operand
    if target is operand:
        return tuple(slot.low + bit for bit in range(operand.bits))
    mantissa = target.mantissa_bits - operand.mantissa_bits
    magnitude = tuple(slot.low + mantissa + bit for bit in range(operand.bits - 1))
    return (*magnitude, slot.low + target.bits - 1)


def why_not_wider(operand: Operand, target: Operand) -> str:
    """Why an operand's bits, moved, are not the target's; empty where they are."""
    if operand is target:
        return ""
    if operand.integer or target.integer:
        return f"{operand.name} and {target.name} are not both floats"
    short = operand.exponent_bits > target.exponent_bits
    if short or operand.mantissa_bits > target.mantissa_bits:
        return f"{operand.name} has more bits than {target.name}"
    return ""


def shifted(operand: Operand, target: Operand) -> int:
    """Exponent that moving the bits adds: emitted = value * 2**shifted."""
    return 0 if operand is target else operand.bias - target.bias


def convert(
    tape: Tape, fields: Fields, slot: Slot, machine: Machine, *, cvt: bool, exponent: int = 0
) -> Fields:
    """Fields as the slot holds them; `cvt`: by a conversion instruction where there is one.

    Raises DeclarationError where the slot cannot hold them exactly. For INT8 the caller knows the
    `exponent` that makes the floats integers.
    """
    operand, target = fields.operand, slot.operand
    if cvt:
        return _by_instruction(tape, fields, machine)
    if operand.integer and target is not operand:
        return _from_integers(tape, fields, slot)
    if target is INT8 and operand is E2M1 and fields.at == tuple(range(fields.width)):
        return _nibbles_to_integers(tape, fields, exponent)
    if target is INT8 and not operand.integer:
        halves = convert(tape, fields, Slot(FP16), machine, cvt=False)
        return _to_integers(tape, halves, exponent)
    reason = why_not_wider(operand, target)
    if reason:
        raise DeclarationError("no moving of bits", found=reason)
    moved = _move(tape, fields, slot)
    scaled = target is BF16 and operand is not BF16
    return _scaled(tape, moved, -shifted(operand, BF16)) if scaled else moved


def _move(tape: Tape, fields: Fields, slot: Slot) -> Fields:
    """Every bit of an operand to its place in the slot; a register becomes one, two or four."""
    at = positions(fields.operand, slot)
    same = fields.width == slot.width and fields.at == at
    exponent = fields.exponent + shifted(fields.operand, slot.operand)
    if same and fields.clean:
        return replace(fields, exponent=exponent)
    ratio = slot.width // fields.width
    registers: list[str] = []
    places: list[int] = []
    for index, register in enumerate(fields.registers):
        for part in range(ratio):
            pieces = _pieces(fields, at, part, slot.width)
            merged = [(register, amount, mask) for amount, mask in pieces]
            registers.append(tape.merge(merged, fields.ones))
            first = index * fields.per_register + part
            places += fields.places[first : first + fields.per_register - part : ratio]
    return Fields(
        operand=fields.operand,
        width=slot.width,
        at=at,
        registers=tuple(registers),
        places=tuple(places),
        exponent=exponent,
        clean=True,
    )


def _pieces(fields: Fields, at: tuple[int, ...], part: int, width: int) -> list[tuple[int, int]]:
    """(rotation right, mask in the destination) for the `part`-th of every group of fields."""
    masks: dict[int, int] = {}
    for source, destination in zip(fields.at, at, strict=True):
        amount = (part * fields.width + source - destination) % 32
        every = sum(1 << (destination + place) for place in range(0, 32, width))
        masks[amount] = masks.get(amount, 0) | every
    return sorted(masks.items())


def _scaled(tape: Tape, fields: Fields, power: int) -> Fields:
    """bfloat16 times 2**power: left alone, products would be as small as FP32 goes."""
    pattern = (min(power, BFLOAT_POWER_LIMIT) + BF16.bias) << BF16.mantissa_bits
    registers = tuple(
        tape("bfloat2-scale", register, pattern | pattern << 16) for register in fields.registers
    )
    return Fields(
        operand=BF16,
        width=16,
        at=positions(BF16, Slot(BF16)),
        registers=registers,
        places=fields.places,
        exponent=fields.exponent + power,
        clean=True,
    )


def _by_instruction(tape: Tape, fields: Fields, machine: Machine) -> Fields:
    """Two fields at a time to binary16 with their true values (cvt.rn.f16x2)."""
    operand, exponent = fields.operand, fields.exponent
    expected, at = 4 if operand is E2M1 else 8, tuple(range(operand.bits))
    if fields.at == E4M3_IS_E2M3:
        operand, at, exponent = E4M3, fields.at, exponent + shifted(operand, E4M3)
    op = f"half2-of-{operand.name.lower()}"
    if op not in machine.converts or fields.width != expected or fields.at != at:
        raise DeclarationError("no conversion instruction", found=op)
    registers = [
        tape(op, tape.rotate(register, shift, (1 << (2 * fields.width)) - 1))
        for register in fields.registers
        for shift in range(0, 32, 2 * fields.width)
    ]
    return Fields(
        operand=FP16,
        width=16,
        at=positions(FP16, Slot(FP16)),
        registers=tuple(registers),
        places=fields.places,
        exponent=exponent,
        clean=True,
    )


def _from_integers(tape: Tape, fields: Fields, slot: Slot) -> Fields:
    """Bytes of two's complement to binary16: 0x64 above a byte is 1024 + byte."""
    if slot.operand is not FP16 or fields.width != 8 or not fields.clean:
        raise DeclarationError("no way from integers", found=slot.operand.name, allowed="FP16")
    registers: list[str] = []
    places: list[int] = []
    for index, register in enumerate(fields.registers):
        biased = tape("xor", register, 0x80808080)
        for low, selector in ((0, 0x4140), (2, 0x4342)):
            magic = tape("permute-bytes", biased, 0x64646464, selector)
            registers.append(tape("half2-add", magic, 0xE480E480))  # - (1024 + 128)
            places += fields.places[4 * index + low : 4 * index + low + 2]
    return Fields(
        operand=FP16,
        width=16,
        at=positions(FP16, slot),
        registers=tuple(registers),
        places=tuple(places),
        exponent=fields.exponent,
        clean=True,
    )


def _to_integers(tape: Tape, halves: Fields, exponent: int) -> Fields:
    """Binary16 to bytes: added to 1536, an integer stands in the low bits of the mantissa."""
    power = exponent - halves.exponent
    registers = list(halves.registers)
    while power > FP16.bias:  # FP16's largest power of two: subnormals take a step more
        registers = [tape("half2-fma", r, _half2_power(FP16.bias), NO_SUM) for r in registers]
        power -= FP16.bias
    summed = [tape("half2-fma", r, _half2_power(power), MAGIC_1536) for r in registers]
    packed = [
        tape("permute-bytes", low, high, 0x6420)
        for low, high in zip(summed[::2], summed[1::2], strict=True)
    ]
    return Fields(
        operand=INT8,
        width=8,
        at=tuple(range(8)),
        registers=tuple(packed),
        places=halves.places,
        exponent=exponent,
        clean=True,
    )


def _nibbles_to_integers(tape: Tape, fields: Fields, exponent: int) -> Fields:
    """Packed E2M1 to bytes by a table of all sixteen: 1.375 instructions a weight, not 2.625."""
    table = bits_of(E2M1.values(), INT8, exponent - fields.exponent)
    entries = [int(entry) for entry in table]
    found = [r for register in fields.registers for r in look_up_nibbles(tape, register, entries)]
    return Fields(
        operand=INT8,
        width=8,
        at=tuple(range(8)),
        registers=tuple(found),
        places=fields.places,
        exponent=exponent,
        clean=True,
    )


def look_up_nibbles(tape: Tape, register: str, table: Sequence[int]) -> list[str]:
    """The bytes of eight nibbles in two registers: two tables of eight entries each, and a choice
    between their results by the fourth bit of a nibble.
    """
    packed = [tape.hold(pack(table[first : first + 4])) for first in range(0, 16, 4)]
    places = tape.hold(0x32103210)
    index = tape("and", register, 0x77777777)
    choice = tape("lop3", tape("shr", register, 1), 0x44444444, places, AND_OR)
    registers = []
    for shift in (0, 16):
        at = tape.rotate(index, shift, 0xFFFF)
        low = tape("select-bytes", packed[0], packed[1], at)
        high = tape("select-bytes", packed[2], packed[3], at)
        chosen = tape.rotate(choice, shift, 0xFFFF)
        registers.append(tape("select-bytes", low, high, chosen))
    return registers


def pack(entries: Sequence[int]) -> int:
    """Bytes as a word, the first the lowest."""
    return sum(entry << (8 * place) for place, entry in enumerate(entries))


NO_SUM, MAGIC_1536 = 0x80008000, 0x66006600
"""Two binary16: -0, which changes no sum, and 1536, whose unit in the last place is 1."""


def _half2_power(power: int) -> int:
    return ((FP16.bias + power) << FP16.mantissa_bits) * 0x10001


E4M3_IS_E2M3 = (0, 1, 2, 3, 4, 7)
"""Where E2M3 stands in an E4M3 whose upper two exponent bits are zero: value = E2M3 * 2**-6."""
