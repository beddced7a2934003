"""Faults put into the real kernels: each is caught, or spoils the product.

The text of a kernel is compiled once per main loop, with every fault in it, asleep until its number
is chosen.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

from unspool.decode.emit_cuda import header
from unspool.errors import UnspoolError
from unspool.matmul.cuda import simulate

N, K, TOKENS = 261, 1800, 5

Case = tuple[str, str, str]
"""Format, machine, activations."""

Fault = tuple[str, str]
"""Right text, wrong text. FAULT is 1 where the fault is chosen, else 0."""


def skip(text: str, *, after: str = "") -> Fault:
    """A statement that is left out; what precedes and what follows it tell it from others."""
    return after + text, f"{after}if (!FAULT) {text}"


FINISH = (
    skip("fence_global();", after="place);\n        "),
    skip("sync_named(1, threads);\n        if"),
    skip("sync_named(1, threads);\n        const"),
    skip("fence_global();", after="return;\n        "),
    ("before == last - first", "before == last - first - FAULT"),
    ("block <= last; ++block) add", "block <= last - FAULT; ++block) add"),
    ("16 * (threads * i + thread)", "16 * (threads * i + thread + FAULT)"),
)

MMA_SYNC = (
    ("copy_wait<slots - 2>();", "if (FAULT) copy_wait<slots - 1>(); else copy_wait<slots - 2>();"),
    skip("sync_block();  // the stage"),
    skip("copy_commit();  // also"),
    ("ahead < slots - 1", "ahead < slots - 1 - FAULT"),
    ("if (++feed.slot == slots)", "if (++feed.slot == slots - FAULT)"),
    ("if (++feed.stage == a.stages)", "if (++feed.stage == a.stages + FAULT)"),
    ("128 * matrices * slices * step", "128 * matrices * slices * (step ^ FAULT)"),
    ("copy_async(shared + at + 16 * thread,", "copy_async(shared + at + 16 * (thread ^ FAULT),"),
)

TWO_COLUMN_BLOCKS = (  # loaded at once
    ("lane % 8 * 16;\n    const char* single", "(lane % 8 ^ FAULT) * 16;\n    const char* single"),
    ("block = lane / 16", "block = lane / 16 ^ FAULT"),
)

PIPELINE = (
    skip("barrier_wait(pipeline.empty"),
    ("turn.round ^ 1);  // the first", "turn.round ^ 1 ^ FAULT);  // the first"),
    ("barrier_expect(full, stage_bytes)", "barrier_expect(full, stage_bytes - 16 * FAULT)"),
    ("if (++stage == a.stages) stage", "if (++stage == a.stages + FAULT) stage"),
    ("empty + slot, readers)", "empty + slot, readers - FAULT)"),
    ("barrier_init(pipeline.full + slot, 1)", "barrier_init(pipeline.full + slot, 1 + FAULT)"),
    ("slot = 0, turn.round ^= 1;", "slot = 0, turn.round ^= !FAULT;"),
)

WGMMA = (
    skip("barrier_init_fence();\n}\n\n// The whole work"),
    skip("barrier_wait(pipeline.full + turn.slot, turn.round);\n            use"),
    skip("sync_named(1, consumers);"),
    skip("wgmma_fence();\n#pragma"),
    skip("wgmma_commit();\n}\n\nUNSPOOL_DEVICE void add("),
    skip("wgmma_wait<0>();\n        add("),
    ("column_blocks, 128);\n}", "column_blocks, 128 + 16 * FAULT);\n}"),
    ("descriptor(stage, 128", "descriptor(stage, (128 - 16 * FAULT)"),
    ("2 * columns * slices * step", "2 * columns * slices * (step ^ FAULT)"),
    skip("sync_block();\n    if (thread < consumers)"),
)

WGMMA_TWO_SETS = (
    skip("wgmma_wait<0>();\n        finish"),
    (
        "wgmma_wait<operand_sets - 1>();",
        "if (FAULT) wgmma_wait<operand_sets>(); else wgmma_wait<operand_sets - 1>();",
    ),
    ("if (step == operand_sets - 1 && previous)", "if (step == 1 - FAULT && previous)"),
    ("mine.weights[step % operand_sets]", "mine.weights[FAULT ? 0 : step % operand_sets]"),
)

WGMMA_ONE_SET = (
    (
        "wgmma_wait<operand_sets - 1>();",
        "if (FAULT) wgmma_wait<operand_sets>(); else wgmma_wait<operand_sets - 1>();",
    ),
    skip("wgmma_wait<0>();\n        add("),
)

TCGEN05 = (
    skip("tmem_store_wait();\n    tmem"),
    skip("tmem_fence_before();\n}\n\ntemplate"),
    skip("tmem_fence_after();\n#pragma"),
    skip("sync_named(1, decoders);"),
    skip("tmem_load_wait();\n"),
    skip("barrier_wait(hands.sums_ready"),
    skip("barrier_arrive(hands.sums_free)"),
    skip("barrier_wait(hands.free + buffer"),
    skip("tmem_fence_after();\n    store"),
    skip("barrier_arrive(hands.ready + buffer)"),
    skip("barrier_wait(hands.ready + buffer"),
    skip("tmem_fence_after();\n            if (scale"),
    ("!begins || q > 0);", "FAULT || !begins || q > 0);"),
    skip("tmem_commit(hands.free + buffer)"),
    skip("tmem_commit(pipeline.empty"),
    ("warp, j % 2), weights[q][j]", "warp, j % 2 ^ FAULT), weights[q][j]"),
    ("128 * column_blocks, 128),\n", "128 * column_blocks, 128 + 16 * FAULT),\n"),
    ("if (warp == 5) tmem_release", "if (warp == 5 && !FAULT) tmem_release"),
    skip("barrier_wait(pipeline.full + slot, mine"),
    skip("barrier_arrive(pipeline.empty + slot)"),
)

UNIT_SCALES = (
    ("128 * b + 4 * place.lane", "(128 * b + 4 * place.lane ^ 4 * FAULT)"),  # another slice
    ("128 * b + 4 * place.lane", "(128 * b + 4 * place.lane ^ 16 * FAULT)"),  # another token
    ("threads * set + place.thread", "(threads * set + place.thread ^ FAULT)"),  # another row
    ("threads * set + place.thread", "(threads * set + place.thread ^ 4 * FAULT)"),
    ("threads * set + place.thread", "(threads * set + place.thread ^ threads * FAULT)"),
    ("[set][1] = four.y;", "[set][1] = FAULT ? four.x : four.y;"),  # the rows above
    ("slice % 2, slice", "slice % 2 ^ FAULT, slice"),
    ("slice % 4);\n    else if", "slice % 4 ^ FAULT);\n    else if"),
    ("slice / 2][j]", "slice / 2 ^ FAULT][j]"),
    ("scales.weights[slice / 2", "FAULT ? four_ones : scales.weights[slice / 2"),
    ("scales.tokens[block],", "FAULT ? scales.tokens[block] >> 8 : scales.tokens[block],"),
    ("activations + operand_stage_bytes,", "activations + operand_stage_bytes - 128 * FAULT,"),
)

TOKEN_SCALES_TCGEN05 = (
    ("if (scale_columns && step", "if (scale_columns && !FAULT && step"),
    ("step == 0) copy_scales", "step == FAULT) copy_scales"),
    ("odd ^= 1;", "odd ^= !FAULT;"),  # into what products still read
    ("from, 0, 128)", "from, 0, 128 + 16 * FAULT)"),
    ("tmem_descriptor(from", "tmem_descriptor(from + 16 * FAULT"),  # another token
    ("columns + slice * scale_words", "columns + (slice ^ FAULT) * scale_words"),
    ("scale_words : ones", "scale_words + FAULT : ones"),  # an odd column
    ("of_b = four | integer", "of_b = (four && !FAULT) | integer"),
    ("format << 7 | of_b", "format << 7 | word(FAULT) << 23 | of_b"),  # E8M0 scales
    ("sums = four ? 0", "sums = four && !FAULT ? 0"),  # other bytes of a word of scales
    skip("tmem_fence_after();\n            if (scale"),
    skip("barrier_wait(hands.ready + buffer"),
    skip("tmem_commit(pipeline.empty"),
)

WEIGHT_SCALES_TCGEN05 = (
    ("code_bytes + 128 * i", "code_bytes + 128 * (i ^ 4 * FAULT)"),  # the other tile's
    ("? stage + code_bytes", "? stage + 1024 * FAULT + code_bytes"),  # another slice's
    ("* tiles + tile) : ones", "* tiles + (tile ^ FAULT)) : ones"),
    ("(slice / word_slices * tiles", "((slice / word_slices ^ FAULT) * tiles"),
    ("scales + weight_scale_columns", "scales + weight_scale_columns * !FAULT"),
)

ONES_TCGEN05 = (
    ("if (one_columns) tmem_store", "if (one_columns && !FAULT) tmem_store"),
    ("ones[4] = {four_ones,", "ones[4] = {FAULT ? four_ones + 8 : four_ones,"),
    ("ones_from, warp", "ones_from, warp ^ FAULT"),
    ("0), ones", "FAULT), ones"),
    skip("tmem_store_wait();\n    tmem"),
)

UNIT_MX_TCGEN05 = (
    ("slice % word_slices, !", "slice % word_slices ^ FAULT, !"),  # another slice's byte
    ("(slice / word_slices * tiles", "((slice / word_slices ^ FAULT) * tiles"),
    ("* tiles + tile) : ones", "* tiles + (tile ^ FAULT)) : ones"),
    ("code_bytes + 128 * i", "code_bytes + 128 * (i ^ 4 * FAULT)"),
    ("? stage + code_bytes", "? stage + 16 * FAULT + code_bytes"),  # another row's
    ("1u << 23 | word(byte", "word(!FAULT) << 23 | word(byte"),  # E4M3 scales
    ("(what & ~(3u << 4))", "(FAULT ? what : what & ~(3u << 4))"),  # another byte of columns'
    ("ones[4] = {four_ones,", "ones[4] = {FAULT ? four_ones + 1 : four_ones,"),
    ("if (one_columns) tmem_store", "if (one_columns && !FAULT) tmem_store"),
    ("if (scale_columns && step", "if (scale_columns && !FAULT && step"),
    ("odd ^= 1;", "odd ^= !FAULT;"),
)

UNIT_MX = (
    ("8][j], slice / 4 % 2", "8][j], slice / 4 % 2 ^ FAULT"),  # another four slices
    ("slice % 4);\n    else\n", "slice % 4 ^ FAULT);\n    else\n"),  # another of four
    ("threads * set + place.thread", "(threads * set + place.thread ^ FAULT)"),  # another row
    ("threads * set + place.thread", "(threads * set + place.thread ^ 4 * FAULT)"),
    ("[set][1] = four.y;", "[set][1] = FAULT ? four.x : four.y;"),
    ("if (block_scaled || scale_mode", "if (block_scaled || !FAULT && scale_mode"),
)

TABLES = (
    ("0x4440 + row % 4", "0x4440 + row % 4 * !FAULT"),  # the first row's level
    ("move_tables(tables, scales, step / ", "move_tables(tables, scales, step * !FAULT / "),
    (
        "scales + 8 * (threads * block + thread)",
        "scales + 8 * (threads * block + (thread ^ FAULT))",
    ),
    ("level * 0x01010100 +", "level * (0x01010100 + FAULT) +"),  # zeros become powers of two
)

WHOLE = (
    ("sum = int(bits); }", "sum = FAULT ? int(as_float(bits)) : int(bits); }"),
    ("total[i] = float(part[i]);", "total[i] = FAULT ? as_float(part[i]) : float(part[i]);"),
)

WHOLE_BLOCKS = (
    ("in_parts && step % scale_steps == 0;", "in_parts && step % scale_steps == FAULT;"),
    ("begins && q == 0", "begins && q == FAULT"),
    ("(step + 1) % scale_steps == 0", "(step + 1) % (scale_steps + FAULT) == 0"),
    ("- as_float(start)", "- as_float(start + FAULT)"),
    ("i & 2 ? odd : even", "(i & 2) != 2 * FAULT ? odd : even"),
)

WHOLE_TCGEN05 = (
    ("integer = kind == Kind::s8;", "integer = kind == Kind::s8 && !FAULT;"),
    skip("tmem_load_wait();\n"),
    skip("barrier_wait(hands.sums_ready"),
    skip("barrier_arrive(hands.sums_free)"),
    ("!begins || q > 0);", "FAULT || !begins || q > 0);"),
)

WHOLE_BLOCKS_TCGEN05 = (
    ("return (step + 1) % scale_steps == 0;", "return (step + 1 + FAULT) % scale_steps == 0;"),
    ("scale_mode != in_sums || (step + 1) %", "scale_mode != in_sums || (step + 1 + FAULT) %"),
    ("parts ^ 1);\n", "parts ^ 1 ^ FAULT);\n"),
    ("i & 2 ? odd : even", "(i & 2) != 2 * FAULT ? odd : even"),
)

FAULTS: dict[Case, tuple[Fault, ...]] = {
    ("t2-e2m1", "sm89", "fp8x2"): FINISH + MMA_SYNC + TWO_COLUMN_BLOCKS,
    ("t2-e2m1", "sm90", "fp8x2"): FINISH + PIPELINE + WGMMA,
    ("t2-e2m1", "sm90", "fp8"): WGMMA_TWO_SETS,
    ("t2-e2m1", "sm90", "fp8x3"): WGMMA_ONE_SET,
    ("t2-e2m1", "sm100", "fp8x2"): FINISH + PIPELINE + TCGEN05,
    ("nvfp4", "sm120", "fp4"): UNIT_SCALES,
    ("nvfp4", "sm100", "fp4"): TOKEN_SCALES_TCGEN05 + WEIGHT_SCALES_TCGEN05,
    ("v1.5-e2m1", "sm100", "fp4"): TOKEN_SCALES_TCGEN05 + ONES_TCGEN05,
    ("mxfp4", "sm120", "fp8"): UNIT_MX,
    ("mxfp8", "sm100", "fp8"): UNIT_MX_TCGEN05,
    ("mxfp4", "sm90", "fp8"): TABLES,
    ("t2-e2m1", "sm80", "int8"): FINISH + MMA_SYNC + WHOLE,
    ("t2-e2m1", "sm90", "int8"): WGMMA_TWO_SETS,
    ("int4", "sm80", "int8"): WHOLE_BLOCKS,
    ("t2-e2m1", "sm100", "int8"): WHOLE + WHOLE_TCGEN05,
    ("int4", "sm100", "int8"): WHOLE_BLOCKS_TCGEN05,
}


def with_faults(faults: tuple[Fault, ...]) -> Callable[[str], str]:
    def change(source: str) -> str:
        for number, (right, wrong) in enumerate(faults, 1):
            assert source.count(right) == 1, right
            source = source.replace(right, wrong.replace("FAULT", f"(fault_number == {number})"))
        number = 'extern "C" { int fault_number = 0; }\n'
        return header() + number + source.removeprefix(header())

    return change


@pytest.fixture
def error_of(product, expected, tokens) -> Callable[[Case, int], float]:
    """The largest error of a product with one fault awake, in units of the sum of magnitudes."""

    def run(case: Case, fault: int) -> float:
        found = product(*case, n=N, k=K, patch=with_faults(FAULTS[case]))
        source = found.patch(found.kernel(found.plan(TOKENS)).source)
        library = simulate.build(source).library
        ctypes.c_int.in_dll(library, "fault_number").value = fault
        x = tokens(TOKENS, K)
        want, magnitude = expected(found, x)
        return float(np.max(np.abs(found(x) - want) / magnitude))

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", FAULTS, ids=" ".join)
def test_without_a_fault_the_product_is_right(error_of, case):
    # FP32 sums of K terms, one rounding per slice of 32, and those of scales
    assert error_of(case, 0) <= (K / 16 + 8) * 2.0**-24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "fault"),
    [
        pytest.param(case, number, id=f"{case[1]} {wrong.splitlines()[0]} {number}")
        for case, faults in FAULTS.items()
        for number, (_, wrong) in enumerate(faults, 1)
    ],
)
def test_a_fault_is_caught_or_spoils_the_product(error_of, case, fault):
    try:
        error = error_of(case, fault)
    except UnspoolError:
        return
    assert not error <= 1e-5  # NaN is spoilt, too
