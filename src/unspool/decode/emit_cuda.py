"""A lowering printed as one CUDA device function, which is plain C++ as well.

    unspool::code_0::decode(words of a ring, registers, table in shared memory, levels)

Only integers and the names in this file reach the text: a lowering was checked at birth, and its
registers are numbered here anew, whatever they were called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources

from unspool.decode.lowering import CONVERSIONS, Lowering
from unspool.errors import DeclarationError
from unspool.spec.program import Instruction

HEADER = "instructions.cuh"

_ENTRIES_PER_LINE = 8

_INFIX = {"and": "&", "or": "|", "xor": "^", "add": "+", "sub": "-", "mul": "*"}

_CALLS = {
    "mul-high": "multiply_high",
    "funnel-shift": "funnel_shift",
    "bit-reverse": "bit_reverse",
    "byte-sum": "byte_sum",
    "half2-add": "half2_add",
    "half2-fma": "half2_fma",
    "select-bytes": "permute_bytes",
    "bfloat2-scale": "bfloat2_scale",
    **{name: name.replace("-", "_") for name in CONVERSIONS},
}


def header() -> str:
    """The text of the header that emitted functions need."""
    folder = resources.files("unspool") / "decode" / "cuda"
    return (folder / HEADER).read_text(encoding="utf-8")


def emit(lowering: Lowering, number: int = 0) -> str:
    """The source of a lowering's function, to be compiled behind the header.

    `number` keeps several apart in one source.
    """
    names = {f"w{i}": f"w{i}" for i in range(lowering.words)}
    lines = []
    for line, instruction in enumerate(lowering.instructions):
        names[instruction.result] = f"t{line}"
        expression = _expression(instruction, names)
        lines.append(f"    const word t{line} = {expression};")
    results = [
        f"    registers[{place}] = {names[register]};"
        for place, register in enumerate(lowering.registers)
    ]
    loads = [f"    const word w{i} = words[{i}];" for i in range(lowering.words)]
    unused = "    (void)table, (void)levels;"
    return "\n".join((
        *_comment(lowering),
        f"namespace unspool::code_{int(number)} {{",
        *_constants(lowering),
        "UNSPOOL_DEVICE void decode(",
        "    const word* words, word* registers, const word* table, const word* levels) {",
        *loads, *lines, *results, unused,
        "}",
        "}  // namespace",
        "",
    ))  # fmt: skip


def _comment(lowering: Lowering) -> tuple[str, ...]:
    slot = lowering.slot
    return (
        f"// {lowering.words} words -> {len(lowering.registers)} registers of "
        f"{slot.per_register} {slot.operand.name}, {slot.width} bits each;",
        f"// what stands in them is value * 2**{lowering.exponent}.",
    )


def _constants(lowering: Lowering) -> list[str]:
    """Sizes; entries, which a kernel copies to shared memory; what it holds in registers."""
    return [
        f"constexpr int word_count = {lowering.words};",
        f"constexpr int register_count = {len(lowering.registers)};",
        f"constexpr int entry_count = {len(lowering.table)};",
        f"constexpr int level_count = {lowering.levels};",
        f"constexpr int held_count = {len(lowering.held)};",
        *(_array("entries", lowering.table) if lowering.table else ()),
        *(_array("held", lowering.held) if lowering.held else ()),
    ]


def _array(name: str, words: Sequence[int]) -> list[str]:
    shown = [f"0x{word:x}u" for word in words]
    rows = [
        "    " + ", ".join(shown[i : i + _ENTRIES_PER_LINE]) + ","
        for i in range(0, len(shown), _ENTRIES_PER_LINE)
    ]
    return [f"UNSPOOL_TABLE word {name}[{len(shown)}] = {{", *rows, "};"]


def _expression(instruction: Instruction, names: Mapping[str, str]) -> str:
    op = instruction.op
    arguments = [_argument(argument, names) for argument in instruction.arguments]
    if op in _INFIX:
        return f"{arguments[0]} {_INFIX[op]} {arguments[1]}"
    if op in _CALLS:
        return f"{_CALLS[op]}({', '.join(arguments)})"
    if op not in _SPECIAL:
        raise DeclarationError("no CUDA for this instruction", where=str(instruction))
    return _SPECIAL[op](instruction, arguments)


def _argument(argument: str | int, names: Mapping[str, str]) -> str:
    return names[argument] if isinstance(argument, str) else f"0x{int(argument):x}u"


def _shift(symbol: str) -> Callable[[Instruction, list[str]], str]:
    def shift(instruction: Instruction, arguments: list[str]) -> str:
        amount = instruction.arguments[1]
        by = str(amount & 31) if isinstance(amount, int) else f"({arguments[1]} & 31u)"
        return f"{arguments[0]} {symbol} {by}"

    return shift


def _permute(instruction: Instruction, arguments: list[str]) -> str:
    """The program's permute looks at three bits of a nibble, the machine's at four."""
    selector = instruction.arguments[2]
    masked = (
        f"0x{selector & 0x7777:x}u" if isinstance(selector, int) else f"{arguments[2]} & 0x7777u"
    )
    return f"permute_bytes({arguments[0]}, {arguments[1]}, {masked})"


def _lop3(instruction: Instruction, arguments: list[str]) -> str:
    """By its truth table; written out where a register holds that."""
    truth = instruction.arguments[3]
    a, b, c, table = arguments
    if isinstance(truth, int):
        return f"lop3<0x{truth & 0xFF:x}u>({a}, {b}, {c})"
    rows = [
        f"((0u - ({table} >> {row} & 1u)) & lop3<0x{1 << row:x}u>({a}, {b}, {c}))"
        for row in range(8)
    ]
    return " | ".join(rows)


_SPECIAL: Mapping[str, Callable[[Instruction, list[str]], str]] = {
    "not": lambda _, arguments: f"~{arguments[0]}",
    "shl": _shift("<<"),
    "shr": _shift(">>"),
    "permute-bytes": _permute,
    "lop3": _lop3,
    "load": lambda i, arguments: f"table[{int(i.arguments[0])} + {arguments[1]}]",
    "load-at": lambda _, arguments: f"entry_at(table, {arguments[0]})",
    "level": lambda i, _: f"levels[{int(i.arguments[0])}]",
}
