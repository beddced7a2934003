"""Machine instructions per weight of a decoder, read from what ptxas made of it.

    kernel with 1 ring    load words, decode, store registers
    kernel with 3 rings   the same three times             count = (three - one) / 2 / weights

The difference takes out what happens once: the set-up, constants that stay in registers. The words
come from memory and the registers go there, so that nothing is known and nothing is dropped. Moves
count; loads and stores of global memory and their addresses do not. This is a count of issued
instructions: it says nothing of bank conflicts, latency or what else a kernel does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unspool.decode.emit_cuda import emit, header
from unspool.decode.lower import lower_each, slots
from unspool.decode.lower_scaled import scaled, scaled_slots, takes_scales
from unspool.decode.lowering import Lowering
from unspool.decode.machine import BYTES, Machine, Slot
from unspool.errors import DeclarationError
from unspool.perf.machine_code import PIPES, Kernel, kernels
from unspool.perf.toolchain import Toolchain
from unspool.spec.format import Format
from unspool.spec.operand import E2M1

FEW, MANY = 1, 3
DIGITS = 4
SHARED_BYTES = 48 * 1024

PACKED_FP4 = Slot(E2M1)
"""Machines with it multiply FP4 as it is stored."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Instructions per weight by pipe, registers of a thread that holds one ring, spills."""

    alu: float
    fma: float
    lds: float
    cvt: float
    other: float
    total: float
    registers: int
    spills: int
    traps: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The count of a format's chosen lowering for a slot of a target."""

    format: str
    target: str
    operand: str
    container: str
    #: what the matrix unit multiplies such weights with
    activations: str
    lowering: str
    #: what stands in the registers is value * 2**exponent
    exponent: int
    #: whether the block scales are in it, by a table that the kernel moves once per block
    block_scale: bool = False
    count: Count


def count_format(
    fmt: Format, machine: Machine, tools: Toolchain, wanted: Sequence[Slot] | None = None
) -> list[Counted]:
    """The counts of a format in the given slots of a machine, or in all that hold its values.

    Raises DeclarationError where there is none, and UnspoolError of the toolchain.
    """
    held = slots(fmt.code, machine)
    chosen = [(lowering, False) for lowering in lower_each(fmt.code, wanted or held, machine)]
    if not chosen:
        raise DeclarationError("no slot of this target holds the values", where=fmt.name)
    if takes_scales(fmt):
        tables = [slot for slot in scaled_slots(machine) if slot in (wanted or held)]
        chosen += [(scaled(fmt.code, slot), True) for slot in tables]
    counts = count([lowering for lowering, _ in chosen], machine, tools)
    return [
        Counted(
            format=fmt.name,
            target=machine.name,
            operand=lowering.slot.operand.name,
            container=lowering.slot.container,
            activations=activations(lowering.slot),
            lowering=lowering.name,
            exponent=lowering.exponent,
            block_scale=with_scale,
            count=found,
        )
        for (lowering, with_scale), found in zip(chosen, counts, strict=True)
    ]


def activations(slot: Slot) -> str:
    """What the matrix unit multiplies with an operand in that slot."""
    eight = slot.container == BYTES or (slot.operand.bits == 8 and not slot.operand.integer)
    return "8-bit floats" if eight else slot.operand.name


def count(lowerings: Sequence[Lowering], machine: Machine, tools: Toolchain) -> list[Count]:
    """Compiles all lowerings in one go and counts each."""
    source = header() + "".join(
        emit(lowering, number) + _kernel(number, FEW) + _kernel(number, MANY)
        for number, lowering in enumerate(lowerings)
    )
    cubin = tools.cubin(source, machine.architecture)
    found = kernels(tools.disassemble(cubin), cubin)
    return [
        _difference(found[_name(i, FEW)], found[_name(i, MANY)], lowering.weights)
        for i, lowering in enumerate(lowerings)
    ]


def _difference(few: Kernel, many: Kernel, weights: int) -> Count:
    per = {
        pipe: round((many.pipes[pipe] - few.pipes[pipe]) / (MANY - FEW) / weights, DIGITS)
        for pipe in PIPES
    }
    total = (many.pipes.total() - few.pipes.total()) / (MANY - FEW) / weights
    traps = tuple(dict.fromkeys((*few.traps, *many.traps)))
    spills = few.spills + many.spills
    return Count(
        **per, total=round(total, DIGITS), registers=few.registers, spills=spills, traps=traps
    )


def _name(number: int, copies: int) -> str:
    return f"count_{number}_{copies}"


def _kernel(number: int, copies: int) -> str:
    """A kernel that decodes so many rings of words that the compiler knows nothing of."""
    return f"""
extern "C" __global__ void {_name(number, copies)}(
    const volatile unsigned* in, volatile unsigned* out, const volatile unsigned* given) {{
    using namespace unspool::code_{number};
    __shared__ unsigned table[{SHARED_BYTES // 4}];
    in += threadIdx.x, out += threadIdx.x, given += threadIdx.x;  // else all would be uniform
    table[threadIdx.x] = given[0];
    __syncthreads();
    unsigned levels[level_count + held_count + 1];
    for (int i = 0; i < held_count; ++i) levels[level_count + i] = given[i];
    #pragma unroll
    for (int copy = 0; copy < {copies}; ++copy) {{
        unsigned words[word_count], registers[register_count];
        for (int i = 0; i < word_count; ++i) words[i] = in[copy * word_count + i];
        for (int i = 0; i < level_count; ++i) levels[i] = given[(copy + 1) * 32 + i];
        decode(words, registers, table, levels);
        for (int i = 0; i < register_count; ++i) out[copy * register_count + i] = registers[i];
    }}
}}
"""
