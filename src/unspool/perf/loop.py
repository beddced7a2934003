"""The main loop of a fused product, counted whole: decode, loads, products, addresses, control.

The loop is found in the machine code: the shortest stretch between a label and a jump back to it
in which all weights reach the matrix unit (code that waits may stand far off, and jump back into
the loop: such a stretch has some of them). One turn of it is one stage, 256 rows x 256 columns over
128 threads; where steps are a loop inside, that loop goes round several times for one turn of the
next.
What a warp of its own does beside it (bringing stages, issuing products) is not in it. FP32 sums of
wgmma's narrower ones, which a branch jumps over in most stages, count as often as they are made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from unspool.errors import UnspoolError
from unspool.matmul.cuda.geometry import BLOCK_ROWS, THREADS
from unspool.matmul.cuda.jit import OPTIONS
from unspool.matmul.cuda.launch import tokens_of
from unspool.matmul.cuda.recipe import Recipe
from unspool.matmul.cuda.source import (
    Kernel,
    multiply_kernel,
    promoted_stages,
    unrolled_steps,
)
from unspool.perf.count import DIGITS, count
from unspool.perf.machine_code import PIPES, instructions_of, kernels, pipes_of
from unspool.perf.toolchain import Toolchain

SLOTS = 4
"""Stages in flight; no count depends on it."""

_FEEDS = re.compile(r"^[HQIO]MMA|^[HQI]GMMA|^STT")
"""mma.sync, wgmma, and the store to tensor memory."""

Code = Sequence[tuple[str, int | None]]
"""Opcodes in order, each with the index it jumps to, if it does."""

Stretch = tuple[int, int]
"""The first and the last of some opcodes."""


@dataclass(frozen=True, kw_only=True)
class LoopCount:
    """Instructions per weight of a main loop, uniform ones and control included."""

    format: str
    target: str
    activations: str
    kind: str
    tokens: int
    #: columns of the product: tokens times terms
    columns: int
    total: float
    decode: float
    #: by opcode, of one turn of the loop
    opcodes: dict[str, int]
    #: of these, what comes once in PROMOTED_STAGES turns
    seldom: int
    registers: int
    spills: int
    traps: tuple[str, ...]

    @property
    def beside(self) -> float:
        """What the loop takes beside decoding."""
        return round(self.total - self.decode, DIGITS)

    @property
    def pipes(self) -> dict[str, float]:
        """Instructions per weight of the pipes that have a rate of their own."""
        counted = pipes_of(self.opcodes)
        whole = sum(self.opcodes.values())
        return {p: self.total * counted[p] / whole for p in PIPES if p != "other"}


def count_loop(made: Recipe, tokens: int, tools: Toolchain) -> LoopCount:
    """Compiles a recipe's fused product for tiles that hold so many tokens and counts its loop.

    Raises UnspoolError of the toolchain, or where the machine code has no such loop.
    """
    tile = tokens_of(made, tokens)
    kernel = multiply_kernel(made, tokens=tile, output="bfloat16", slots=SLOTS)
    cubin = kernel.compiled(lambda text: tools.cubin(text, kernel.architecture, OPTIONS))
    text = tools.disassemble(cubin)
    found = kernels(text, cubin)[kernel.name]
    turns = made.geometry.steps // unrolled_steps(made, tile)
    body, seldom = _stage(text, kernel, turns)
    promoted = promoted_stages(made)
    seldom = seldom if promoted else 0
    often = sum(body.values()) - seldom * (1 - 1 / (promoted or 1))
    (decoder,) = count([made.geometry.lowering], made.machine, tools)
    weights = BLOCK_ROWS * made.geometry.stage_columns / THREADS
    return LoopCount(
        format=made.format.name,
        target=made.machine.name,
        activations=made.activations,
        kind=made.kind,
        tokens=tile,
        columns=tile * made.terms,
        total=round(often / weights, DIGITS),
        decode=decoder.total,
        opcodes=dict(body.most_common()),
        seldom=seldom,
        registers=found.registers,
        spills=found.spills,
        traps=tuple(t for t in found.traps if made.kind != "f16" or "emulated" not in t),
    )


def _stage(disassembly: str, kernel: Kernel, turns: int) -> tuple[Counter[str], int]:
    """Opcodes of one stage, in which the loop goes round so often, and how many of them FP32 sums
    are that a branch jumps over."""
    code = instructions_of(disassembly, kernel.name)
    loops = [(target, last) for last, (_, target) in enumerate(code) if target is not None]
    loops = [(first, last) for first, last in loops if first <= last]
    fed = {loop: _fed(code, loop) for loop in loops}
    feeding = [loop for loop in loops if fed[loop] == max(fed.values()) > 0]
    if not feeding:
        raise UnspoolError("a kernel's machine code has no main loop", where=kernel.name)
    inner = min(feeding, key=_length)
    body = _opcodes(code, inner)
    if turns == 1:
        return body, _summing(code, inner)
    around = [loop for loop in feeding if loop[0] <= inner[0] and inner[1] <= loop[1]]
    outer = min((loop for loop in around if loop != inner), key=_length)
    whole = _opcodes(code, outer)
    return Counter({name: whole[name] + (turns - 1) * body[name] for name in whole}), 0


def _summing(code: Code, loop: Stretch) -> int:
    """Instructions of the longest FP32 sum in a loop that a branch of it jumps over."""
    first, last = loop
    jumps = [(at, code[at][1]) for at in range(first, last)]
    over = [(at + 1, target - 1) for at, target in jumps if target and at < target <= last]
    sums = [each for each in over if _opcodes(code, each)["FADD"] and not _fed(code, each)]
    return max(map(_length, sums), default=0)


def _fed(code: Code, stretch: Stretch) -> int:
    """How often weights reach the matrix unit."""
    return sum(bool(_FEEDS.match(name)) for name, _ in _body(code, stretch))


def _length(stretch: Stretch) -> int:
    return stretch[1] - stretch[0] + 1


def _body(code: Code, stretch: Stretch) -> Code:
    return code[stretch[0] : stretch[1] + 1]


def _opcodes(code: Code, stretch: Stretch) -> Counter[str]:
    return Counter(name.split(".")[0] for name, _ in _body(code, stretch))
