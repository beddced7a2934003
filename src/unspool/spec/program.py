"""Programs: what a few integer instructions do to a window of bits.

A program is straight-line code over uint32 registers. The register `state` holds the windows of all
planes side by side; every instruction names a new register; each lane of the step reads its operand
at a bit offset of one of them. There are no branches and every input is legal: shift amounts count
modulo 32, table indices modulo the table's length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unspool.errors import DeclarationError
from unspool.spec.operand import OPERANDS, Operand

#: operation -> number of arguments, a table's name not counted
ARITY: Mapping[str, int] = {
    "and": 2,
    "or": 2,
    "xor": 2,
    "not": 1,
    "add": 2,
    "sub": 2,
    "mul": 2,  # low 32 bits of the product
    "mul-high": 2,  # high 32 bits of the unsigned product
    "shl": 2,
    "shr": 2,
    "funnel-shift": 3,  # (low, high, amount): low 32 bits of high:low >> amount
    "lop3": 4,  # (a, b, c, truth table): bit i of the table is f at i = a << 2 | b << 1 | c
    "permute-bytes": 3,  # (low, high, selector): nibble i picks byte i from high:low
    "bit-reverse": 1,
    "byte-sum": 2,  # (a, b): sum of a's four bytes, unsigned, plus b
    "half2-add": 2,  # two IEEE binary16 sums, round to nearest even
    "half2-fma": 3,  # two IEEE binary16 a * b + c, rounded once
    "table": 1,
}

STATE = "state"

Argument = str | int

MOST_INSTRUCTIONS = 64
MOST_TABLE_BYTES = 1 << 16


@dataclass(frozen=True)
class Instruction:
    """One instruction: `result = op(arguments)`; a string names a register, an int is a constant.

    For `table` the first argument is the table's or the parameter's name.
    """

    result: str
    op: str
    arguments: tuple[Argument, ...]

    def __str__(self) -> str:
        shown = (a if isinstance(a, str) else f"{a:#x}" for a in self.arguments)
        return f"{self.result} = {self.op} {', '.join(shown)}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A constant table of uint32 entries, a power of two of them."""

    name: str
    entries: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_length(self.name, len(self.entries))
        if any(not 0 <= entry < 1 << 32 for entry in self.entries):
            raise DeclarationError("a table entry is not a uint32", where=self.name)


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A table stored with the weights: one per tensor, row or tile; its bits count as overhead."""

    name: str
    length: int
    operand: Operand
    scope: str
    #: rows and columns of a "tile" scope; multiples of the code's tile
    tile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_length(self.name, self.length)
        if self.scope not in ("tensor", "row", "tile"):
            raise DeclarationError(
                "a parameter has no such scope",
                where=self.name,
                found=self.scope,
                allowed="tensor, row, tile",
            )
        if (self.scope == "tile") != (self.tile is not None):
            raise DeclarationError("a tile scope names its tile, no other does", where=self.name)

    @property
    def bits(self) -> int:
        """Stored bits per unit."""
        return self.length * self.operand.bits

    def units(self, n: int, k: int) -> tuple[int, int]:
        """Units along the rows and along the columns of an `[n, k]` matrix."""
        if self.scope == "tensor":
            return 1, 1
        rows, columns = self.tile if self.tile else (1, k)
        return -(-n // rows), -(-k // columns)


@dataclass(frozen=True, kw_only=True)
class Program:
    """Straight-line instructions; `outputs` gives each lane's (register, bit offset)."""

    instructions: tuple[Instruction, ...] = ()
    outputs: tuple[tuple[str, int], ...]
    tables: tuple[Table, ...] = ()
    parameters: tuple[Parameter, ...] = ()

    def __post_init__(self) -> None:
        size = 4 * sum(len(table.entries) for table in self.tables)
        for found, most, what in (
            (len(self.instructions), MOST_INSTRUCTIONS, "instructions"),
            (size, MOST_TABLE_BYTES, "bytes of tables"),
        ):
            if found > most:
                raise DeclarationError(f"a program has too many {what}", found=found, allowed=most)
        registers = {STATE}
        tables = {table.name for table in self.tables} | {p.name for p in self.parameters}
        for instruction in self.instructions:
            _check_instruction(instruction, registers, tables)
            registers.add(instruction.result)
        for register, offset in self.outputs:
            if register not in registers or not 0 <= offset < 32:
                raise DeclarationError(
                    "a lane reads outside the program", found=f"{register} at bit {offset}"
                )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` turns back into an equal program."""
        return {
            "instructions": [[i.result, i.op, *i.arguments] for i in self.instructions],
            "outputs": [list(output) for output in self.outputs],
            "tables": {table.name: list(table.entries) for table in self.tables},
            "parameters": [_parameter_to_json(parameter) for parameter in self.parameters],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Program:
        """The program that `to_json` wrote; raises DeclarationError on anything else."""
        return cls(
            instructions=tuple(
                Instruction(result, op, tuple(arguments))
                for result, op, *arguments in data["instructions"]
            ),
            outputs=tuple((register, offset) for register, offset in data["outputs"]),
            tables=tuple(
                Table(name=name, entries=tuple(entries)) for name, entries in data["tables"].items()
            ),
            parameters=tuple(_parameter_from_json(entry) for entry in data["parameters"]),
        )


def _check_length(name: str, length: int) -> None:
    if length < 1 or length & (length - 1):
        raise DeclarationError("a table's length is not a power of two", where=name, found=length)


def _check_instruction(instruction: Instruction, registers: set[str], tables: set[str]) -> None:
    where = str(instruction)
    if instruction.op not in ARITY:
        raise DeclarationError(
            "no such instruction", where=where, found=instruction.op, allowed=ARITY
        )
    arguments = instruction.arguments
    if instruction.op == "table":
        if not arguments or arguments[0] not in tables:
            raise DeclarationError("no such table", where=where, allowed=sorted(tables))
        arguments = arguments[1:]
    if len(arguments) != ARITY[instruction.op]:
        raise DeclarationError(
            "wrong number of arguments",
            where=where,
            found=len(arguments),
            allowed=ARITY[instruction.op],
        )
    for argument in arguments:
        known = argument in registers if isinstance(argument, str) else 0 <= argument < 1 << 32
        if not known:
            raise DeclarationError(
                "an argument is neither a register written before nor a uint32",
                where=where,
                found=argument,
            )
    if instruction.result in registers:
        raise DeclarationError("a register is written twice", where=where)


def _parameter_to_json(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "length": parameter.length,
        "operand": parameter.operand.name,
        "scope": parameter.scope,
        "tile": list(parameter.tile) if parameter.tile else None,
    }


def _parameter_from_json(data: Mapping[str, Any]) -> Parameter:
    return Parameter(
        name=data["name"],
        length=data["length"],
        operand=OPERANDS[data["operand"]],
        scope=data["scope"],
        tile=tuple(data["tile"]) if data["tile"] else None,
    )
