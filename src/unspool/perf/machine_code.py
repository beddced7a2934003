"""Disassembled machine code: which instructions a kernel has, on which pipes, and what is amiss."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from unspool.matmul.cuda.cubin import registers

PIPES = ("alu", "fma", "lds", "cvt", "other")

#: pipe -> stems of its opcodes; IMAD and the half-precision pair share the FMA pipe's rate class
_STEMS: Mapping[str, tuple[str, ...]] = {
    "alu": (
        "LOP3", "SHF", "PRMT", "IADD3", "IADD", "VIADD", "LEA", "SEL", "MOV", "SGXT", "BMSK",
        "ISETP", "VABSDIFF", "VABSDIFF4", "VIMNMX", "VIADDMNMX", "IMNMX", "PLOP3", "IABS", "SHL",
        "SHR", "LOP",
    ),
    "fma": ("IMAD", "IMUL", "FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2", "IDP", "IDP4A"),
    "lds": ("LDS", "LDSM"),
    "cvt": ("F2FP", "F2F", "F2I", "I2F", "I2FP", "F2IP", "I2IP"),
}  # fmt: skip
_PIPE_OF = {stem: pipe for pipe, stems in _STEMS.items() for stem in stems}

#: loads, stores, addresses in uniform registers, control: no part of decoding
_EXCLUDED = frozenset((
    "LDG", "STG", "LD", "ST", "LDC", "LDCU", "ULDC", "S2R", "S2UR", "CS2R", "EXIT", "BRA", "NOP",
    "BAR", "RET", "MEMBAR", "DEPBAR", "LDGDEPBAR", "STS", "R2UR", "UMOV", "WARPSYNC", "BSSY",
    "BSYNC", "ERRBAR", "CCTL",
))  # fmt: skip

_SPILLS = ("LDL", "STL")
_MATRIX = re.compile(r"^[HIQBO]MMA|^[HIQ]GMMA|^UTC")

_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_NEAR_CALL = re.compile(r"CALL\S* `\((\.L_x_|\S*_guardrail_trap_)")
"""A call to a label of the kernel itself is a jump, one to a guard of tensor memory never happens:
what ptxas has no instruction for, it calls by name."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Opcodes of a kernel, modifiers included, in order; registers a thread of it takes."""

    opcodes: tuple[str, ...]
    registers: int

    @property
    def pipes(self) -> Counter[str]:
        """Instructions by pipe, without loads, stores, addresses and control."""
        stems = Counter(opcode.split(".")[0] for opcode in self.opcodes)
        return pipes_of({s: n for s, n in stems.items() if s not in _EXCLUDED | set(_SPILLS)})

    @property
    def spills(self) -> int:
        """Loads and stores of registers that did not fit."""
        return sum(opcode.split(".")[0] in _SPILLS for opcode in self.opcodes)

    @property
    def traps(self) -> tuple[str, ...]:
        """What makes a kernel slow without a word from the compiler."""
        found = []
        if self.spills:
            found.append("spills")
        if any(opcode.startswith("CALL") for opcode in self.opcodes):
            found.append("a call to an emulation")
        unpacked = [o for o in self.opcodes if o.startswith("F2FP") and "UNPACK" in o]
        if unpacked and any(opcode.startswith("HMMA") for opcode in self.opcodes):
            found.append("an FP8 matrix product emulated by binary16")
        return tuple(found)

    @property
    def matrix_products(self) -> int:
        """Instructions for the matrix unit."""
        return sum(bool(_MATRIX.match(opcode)) for opcode in self.opcodes)


def pipes_of(stems: Mapping[str, int]) -> Counter[str]:
    """Instructions by pipe, of opcodes without modifiers and how often each stands there."""
    found: Counter[str] = Counter()
    for stem, number in stems.items():
        found[_PIPE_OF.get(stem, "other")] += number
    return found


def instructions_of(disassembly: str, name: str) -> list[tuple[str, int | None]]:
    """A kernel's opcodes in order, each with the index it jumps to, if it does."""
    current = ""
    opcodes: list[str] = []
    jumps: list[str | None] = []
    labels: dict[str, int] = {}
    for line in disassembly.splitlines():
        section = _SECTION.match(line)
        if section:
            current = section[1]
        if current != name:
            continue
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif instruction := _INSTRUCTION.match(line):
            target = _TARGET.search(line)
            opcodes.append(instruction[1])
            jumps.append(target[1] if target else None)
    return [
        (opcode, labels.get(jump) if jump else None)
        for opcode, jump in zip(opcodes, jumps, strict=True)
    ]


def loops(disassembly: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The opcodes of every loop of every kernel: from a label to the branch back to it."""
    names = dict.fromkeys(_SECTION.findall(disassembly))
    found = {}
    for name in names:
        code = instructions_of(disassembly, name)
        opcodes = tuple(opcode for opcode, _ in code)
        # the endless one behind EXIT, which fills a kernel up, branches to itself
        found[name] = tuple(
            opcodes[target : last + 1]
            for last, (opcode, target) in enumerate(code)
            if opcode.startswith("BRA") and target is not None and target < last
        )
    return found


def kernels(disassembly: str, cubin: bytes) -> dict[str, Kernel]:
    """The kernels of a cubin by name."""
    opcodes: dict[str, list[str]] = {}
    name = ""
    for line in disassembly.splitlines():
        section = _SECTION.match(line)
        if section:
            name = section[1]
        elif name and (instruction := _INSTRUCTION.match(line)):
            jump = _NEAR_CALL.search(line)
            opcodes.setdefault(name, []).append("BRA" if jump else instruction[1])
    taken = registers(cubin)
    return {
        name: Kernel(opcodes=tuple(found), registers=taken.get(name, 0))
        for name, found in opcodes.items()
    }
