"""Every format's decoder over every state, in every slot of this machine, against the interpreter.

One thread decodes one ring; the registers go to memory and are compared as the tests compare them.
The decoders are those that the products include.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu.board import STRUCT, Arguments
from gpu.stage import AbsentError, Given, Stage, said
from unspool.decode.emit_cuda import emit, header
from unspool.decode.lower import lower, slots
from unspool.decode.lower_scaled import LEVELS, row_tables, scaled, scaled_slots, takes_scales
from unspool.decode.lowering import Lowering, reorder, run
from unspool.decode.machine import Machine
from unspool.pack.proof import MOST_BITS, expected, given, parameters, rings, wrong
from unspool.spec.catalog import FORMATS
from unspool.spec.code import Code

if TYPE_CHECKING:
    from gpu.board import Board

THREADS = 128
BLOCKS_PER_MULTIPROCESSOR = 8

MANY_RINGS = 4096
"""Random ones where not every state is tried: 2**20 cost the interpreter ten seconds a code."""

Decoder = Callable[[Sequence[Lowering]], Callable[[int, np.ndarray, np.ndarray], np.ndarray]]
"""Lowerings -> (which of them, reordered words, what is given of a parameter) -> registers."""


def codes(names: Sequence[str] = ()) -> dict[Code, list[str]]:
    """The catalog's codes with the formats that share each."""
    found: dict[Code, list[str]] = {}
    for name, fmt in FORMATS.items():
        if not names or name in names:
            found.setdefault(fmt.code, []).append(name)
    return found


def chosen(code: Code, machine: Machine) -> list[Lowering]:
    """What decodes a code on a machine, slot by slot."""
    return [lower(code, slot, machine) for slot in slots(code, machine)]


def lowerings(code: Code, names: Sequence[str], machine: Machine) -> list[Lowering]:
    """All that is checked of a code: with those that take block scales of one of its formats."""
    found = chosen(code, machine)
    if any(takes_scales(FORMATS[name]) for name in names):
        found += [scaled(code, slot) for slot in scaled_slots(machine)]
    return found


def check(given_: Given, decoder: Decoder) -> None:
    """Fills in a row per code and slot; a code that breaks is wrong, and others go on."""
    found, machine = given_.findings, given_.board.machine
    wanted = codes(given_.formats)
    if not wanted:
        raise AbsentError("none of these is a format")
    texts = [source(lowerings(code, names, machine)) for code, names in wanted.items()]
    given_.board.ready(texts, given_.deadline.left)
    for code, names in wanted.items():
        if given_.deadline.over:
            found.cut = True
            return
        start = time.monotonic()
        try:
            rows = list(check_code(code, names, machine, decoder))
        except Exception as error:  # noqa: BLE001  whatever is wrong with one, others follow
            found.wrong.append(f"{' '.join(names)}: {said(error)}")
            given_.go_on(error)
            continue
        found.rows += rows
        found.wrong += [
            f"{row['formats']} in {row['slot']}: {row['wrong']} of {row['weights']} weights, "
            f"{row['other_registers']} registers"
            for row in rows
            if row["wrong"] or row["other_registers"]
        ]
        given_.say(f"   {names[0]:20} {len(rows)} slots {time.monotonic() - start:6.2f} s")
        given_.keep()


def check_code(
    code: Code, names: Sequence[str], machine: Machine, decoder: Decoder
) -> Iterator[dict[str, Any]]:
    """A row per slot: how many weights are wrong."""
    more = {} if code.state_bits <= MOST_BITS else {"random_rings": MANY_RINGS}
    words, (tables, stored) = rings(code, **more), parameters(code)
    want, tried = expected(code, words, tables), lowerings(code, names, machine)
    decode = decoder(tried)
    for which, lowering in enumerate(tried):
        handed, target = given(lowering, stored), want
        if lowering.name == "scaled-table":
            levels = np.linspace(LEVELS[0], LEVELS[-1], code.tile[0]).astype(int)
            handed = row_tables(levels).ravel()
            target = np.ldexp(want, np.repeat(levels, code.tile[1]))
        ordered = reorder(lowering, words)
        registers = decode(which, ordered, handed)
        yield {
            "formats": " ".join(names),
            "slot": str(lowering.slot),
            "trick": lowering.name,
            "rings": len(words),
            "weights": int(np.isfinite(target).sum()),
            "every_state": code.state_bits <= MOST_BITS,
            "wrong": wrong(lowering, registers, target),
            "other_registers": int((registers != run(lowering, ordered, handed)).sum()),
        }


def on_gpu(board: Board) -> Decoder:
    """Decoders that run on the GPU."""

    def decoder(lowerings: Sequence[Lowering]) -> Callable[..., np.ndarray]:
        text, names = source(lowerings), [f"decode_{i}" for i in range(len(lowerings))]
        kernels = board.kernels(text, names)
        blocks = BLOCKS_PER_MULTIPROCESSOR * board.gpu.facts.multiprocessors

        def decode(which: int, words: np.ndarray, handed: np.ndarray) -> np.ndarray:
            count = len(lowerings[which].registers)
            buffers = board.upload(words), board.upload(handed.astype(np.uint32))
            out = board.empty(4 * len(words) * count)
            places = board.address(buffers[0]), board.address(out), board.address(buffers[1])
            arguments = Arguments(*places, len(words), 0)
            kernels[which].launch((blocks, 1, 1), THREADS, arguments, board.stream)
            found = board.download(out, np.uint32)
            return found[: len(words) * count].reshape(len(words), count)

        return decode

    return decoder


def source(lowerings: Sequence[Lowering]) -> str:
    """A kernel `decode_N` for every lowering."""
    units = (emit(lowering, n) + _kernel(n, lowering) for n, lowering in enumerate(lowerings))
    return header() + STRUCT + "".join(units)


def _kernel(number: int, lowering: Lowering) -> str:
    entries = "table[i] = entries[i]" if lowering.table else ""
    kept = "levels[level_count + i] = held[i]" if lowering.held else ""
    return f"""
extern "C" __global__ void __launch_bounds__({THREADS}) decode_{number}(const Arguments a) {{
    using namespace unspool::code_{number};
    constexpr int shared = {int(lowering.shared)};
    __shared__ unsigned table[entry_count + shared + 1];
    for (int i = threadIdx.x; i < entry_count; i += blockDim.x) {{ {entries}; }}
    for (int i = threadIdx.x; i < shared; i += blockDim.x) table[entry_count + i] = a.more[i];
    __syncthreads();
    unsigned levels[level_count + held_count + 1];
    for (int i = 0; i < level_count; ++i) levels[i] = a.more[i];
    for (int i = 0; i < held_count; ++i) {{ {kept}; }}
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    const unsigned long long first = blockIdx.x * blockDim.x + threadIdx.x;
    for (unsigned long long ring = first; ring < a.count; ring += step)
        decode(a.given + ring * word_count, a.out + ring * register_count, table, levels);
}}
"""


STAGE = Stage(name="decode", run=lambda g: check(g, on_gpu(g.board)), seconds=55)
