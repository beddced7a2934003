"""Main loops of the fused products, counted in machine code: compiled, counted, simulated; not run
on a GPU.

At 16 rows of FP8 activations a loop takes at most 0.35 instructions per weight beside decoding, for
codes whose scales belong to rows.
"""

from __future__ import annotations

import pytest

from unspool.decode.machine import MACHINES
from unspool.errors import DeclarationError
from unspool.matmul.cuda.jit import OPTIONS
from unspool.matmul.cuda.launch import most_blocks, tokens_of
from unspool.matmul.cuda.library import expansion
from unspool.matmul.cuda.recipe import RUN_COLUMNS, TERMS, recipe
from unspool.matmul.cuda.source import (
    ROTATE_WARPS,
    expand_kernel,
    multiply_kernel,
    prepare_kernel,
)
from unspool.perf.loop import count_loop
from unspool.perf.machine_code import kernels
from unspool.perf.toolchain import toolchain, why_not
from unspool.spec.catalog import FORMATS

MOST_BESIDE = 0.35

ROWS = [
    ("m2-e4m3-quick", "sm90"),
    ("m2-e4m3", "sm100"),
    ("s3-e4m3", "sm120"),
]
OTHERS = [
    pytest.param(name, machine, marks=pytest.mark.slow)
    for name in ("m2-e4m3-quick", "m2-e4m3", "m2-e2m1", "s2-e4m3", "s3-e4m3", "t2-e2m1", "m3-e4m3")
    for machine in ("sm90", "sm100", "sm120")
]
EVERY = [
    pytest.param(name, machine, marks=pytest.mark.slow) for name in FORMATS for machine in MACHINES
]


@pytest.fixture(scope="module")
def tools():
    if why_not():
        pytest.skip(why_not())
    return toolchain()


@pytest.mark.parametrize(("name", "machine"), [*ROWS, *OTHERS])
def test_a_loop_takes_little_beside_decoding(tools, name, machine):
    found = count_loop(recipe(FORMATS[name], MACHINES[machine], "fp8"), 16, tools)
    assert found.columns == 16
    assert 0 < found.beside <= MOST_BESIDE, f"{found.total} with decoding at {found.decode}"
    assert (found.spills, found.traps) == (0, ())


@pytest.mark.parametrize(
    ("name", "machine", "tokens"),
    [
        ("s2-e4m3", "sm90", 16),
        *(
            pytest.param(name, machine, tokens, marks=pytest.mark.slow)
            for name in ("m2-e4m3-quick", "s3-e4m3", "t2-e2m1", "m3-e4m3")
            for machine, tokens in (("sm90", 16), ("sm100", 16), ("sm120", 8))
        ),
    ],
)
def test_loops_of_two_terms_take_little_beside_decoding(tools, name, machine, tokens):
    found = count_loop(recipe(FORMATS[name], MACHINES[machine], "fp8x2"), tokens, tools)
    assert found.columns == 2 * tokens
    assert 0 < found.beside <= MOST_BESIDE, f"{found.total} with decoding at {found.decode}"
    # once in four stages an addition and a zero for each of a thread's sums, two a column
    assert found.seldom > 4 * found.columns if machine == "sm90" else found.seldom == 0
    assert (found.spills, found.traps) == (0, ())


@pytest.mark.parametrize("name", ["mxfp4", "mxfp6-e2m3", "mxfp8"])
def test_loops_whose_e8m0_scales_tensor_memory_has_take_little_beside_decoding(tools, name):
    found = count_loop(recipe(FORMATS[name], MACHINES["sm100"], "fp8"), 16, tools)
    assert 0 < found.beside <= MOST_BESIDE, f"{found.total} with decoding at {found.decode}"
    assert (found.spills, found.traps) == (0, ())


@pytest.mark.parametrize("machine", ["sm100", "sm120"])
@pytest.mark.parametrize(
    "name",
    [
        "nvfp4",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("m2-e2m1", "t2-e2m1", "m3-e2m1")),
    ],
)
def test_fp4_loops_take_little_beside_decoding(tools, name, machine):
    found = count_loop(recipe(FORMATS[name], MACHINES[machine], "fp4"), 16, tools)
    assert 0 < found.beside <= MOST_BESIDE, f"{found.total} with decoding at {found.decode}"
    assert (found.spills, found.traps) == (0, ())
    # 512 weights a thread, 32 each: of two column blocks, or a store to tensor memory
    product, count = ("STTM", 16) if machine == "sm100" else ("OMMA", 32)
    assert found.opcodes[product] == count


@pytest.mark.parametrize(
    ("name", "activations", "opcodes"),
    [("t2-e2m1", "int8", {"UTCIMMA"}), ("nvfp4", "fp4", {"UTCOMMA", "UTCCP"})],
)
def test_tcgen05_multiplies_by_a_unit_of_its_own(tools, name, activations, opcodes):
    made = recipe(FORMATS[name], MACHINES["sm100"], activations)
    kernel = multiply_kernel(made, tokens=16, output="bfloat16", slots=2)
    cubin = tools.cubin(kernel.source, kernel.architecture, OPTIONS)
    found = kernels(tools.disassemble(cubin), cubin)[kernel.name]
    assert opcodes <= {opcode.split(".")[0] for opcode in found.opcodes}


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("s3-e4m3", "sm80"),
        *(
            pytest.param(name, machine, marks=pytest.mark.slow)
            for name in ("t2-e2m1", "t3-e2m3", "v1.5-e2m1")
            for machine in ("sm80", "sm89", "sm90", "sm100")
        ),
    ],
)
def test_int8_loops_take_little_beside_decoding(tools, name, machine):
    found = count_loop(recipe(FORMATS[name], MACHINES[machine], "int8"), 16, tools)
    assert 0 < found.beside <= MOST_BESIDE, f"{found.total} with decoding at {found.decode}"
    assert (found.spills, found.traps) == (0, ())
    # wgmma takes 64 rows x 16 tokens, mma.sync 16 rows x 8: a stage is 512 weights a thread, of
    # which a store to tensor memory takes 16
    feeds = {"sm90": ("IGMMA", 32), "sm100": ("STTM", 32)}
    product, count = feeds.get(machine, ("IMMA", 64))
    assert found.opcodes[product] == count


@pytest.mark.parametrize(
    ("name", "machine", "activations", "most"),
    [
        ("mxfp4", "sm90", "fp8", 0.38),
        ("lut-b", "sm90", "fp8", 0.28),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("mxfp4", "sm80", "float16", 0.67),
                ("mxfp4", "sm100", "fp8", 0.39),
                ("mxfp4", "sm120", "fp8", 0.44),
                ("mxfp6-e2m3", "sm120", "fp8", 0.47),
                ("mxfp8", "sm90", "fp8", 0.94),
                ("mxfp8", "sm120", "fp8", 0.58),
                ("int4", "sm90", "fp8", 0.44),
                ("int4", "sm100", "fp8", 0.51),
                ("lut-b", "sm100", "fp8", 0.32),
                ("nf4", "sm90", "float16", 0.65),
                ("nvfp4", "sm90", "float16", 0.90),
            )
        ),
    ],
)
def test_loops_of_formats_with_blocks_take_what_the_page_says(
    tools, name, machine, activations, most
):
    found = count_loop(recipe(FORMATS[name], MACHINES[machine], activations), 16, tools)
    assert 0 < found.beside <= most, f"{found.total} with decoding at {found.decode}"
    assert (found.spills, found.traps) == (0, ())


@pytest.mark.parametrize("columns", [4096, pytest.param(49152, marks=pytest.mark.slow)])
def test_the_kernel_that_makes_fp4_activations_does_not_spill(tools, columns):
    made = recipe(FORMATS["m2-e2m1"], MACHINES["sm120"], "fp4")
    kernel = prepare_kernel(made, tokens=16, columns=columns, dtype="bfloat16")
    cubin = tools.cubin(kernel.source, kernel.architecture, OPTIONS)
    found = kernels(tools.disassemble(cubin), cubin)[kernel.name]
    packed = [opcode for opcode in found.opcodes if opcode.startswith("F2FP") and "E2M1" in opcode]
    assert len(packed) == 2 * columns // (
        RUN_COLUMNS * ROTATE_WARPS
    )  # four operands a lane and run
    assert found.spills == 0


@pytest.mark.parametrize("columns", [4096, pytest.param(49152, marks=pytest.mark.slow)])
def test_the_kernel_that_makes_int8_activations_does_not_spill(tools, columns):
    made = recipe(FORMATS["t2-e2m1"], MACHINES["sm80"], "int8")
    kernel = prepare_kernel(made, tokens=16, columns=columns, dtype="bfloat16")
    cubin = tools.cubin(kernel.source, kernel.architecture, OPTIONS)
    found = kernels(tools.disassemble(cubin), cubin)[kernel.name]
    rounded = sum(opcode.startswith("F2I") for opcode in found.opcodes)
    assert rounded == 4 * columns // (RUN_COLUMNS * ROTATE_WARPS)  # four columns a lane and run
    assert found.spills == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_as_many_blocks_of_tcgen05_as_are_launched_share_the_registers(tools, name):
    for activations in TERMS:
        try:
            made = recipe(FORMATS[name], MACHINES["sm100"], activations)
        except DeclarationError:
            continue
        for tokens in {tokens_of(made, m) for m in (16, 64)}:
            kernel = multiply_kernel(made, tokens=tokens, output="bfloat16", slots=2)
            cubin = tools.cubin(kernel.source, kernel.architecture, OPTIONS)
            found = kernels(tools.disassemble(cubin), cubin)[kernel.name]
            warps = most_blocks(made, tokens) * kernel.threads // 32
            each = -(-found.registers // 8) * 8 * 32  # registers come in 256 a warp
            assert -(-warps // 4) * each <= (1 << 16) // 4  # of the quarter with the most warps
            assert found.spills == 0


@pytest.mark.parametrize(("name", "bounded"), [("m2-e4m3", True), ("m2-e2m1", False)])
def test_two_blocks_of_wgmma_share_the_registers_where_that_spills_nothing(tools, name, bounded):
    made = recipe(FORMATS[name], MACHINES["sm90"], "fp8")
    kernel = multiply_kernel(made, tokens=16, output="bfloat16", slots=4)
    texts: list[str] = []

    def cubin(text: str) -> bytes:
        texts.append(text)
        return tools.cubin(text, kernel.architecture, OPTIONS)

    code = kernel.compiled(cubin)
    found = kernels(tools.disassemble(code), code)[kernel.name]
    assert texts == [kernel.source] if bounded else [kernel.source, kernel.loose]
    assert (found.registers <= 168) == bounded  # three warps in a quarter of 2**14
    assert found.spills == 0


@pytest.mark.parametrize(("name", "machine"), [("nvfp4", "sm120"), ("int4", "sm90"), *EVERY])
def test_the_kernels_before_a_librarys_product_do_not_spill(tools, name, machine):
    sources = {}
    for activations in TERMS:
        try:
            found = expansion(recipe(FORMATS[name], MACHINES[machine], activations))
        except DeclarationError:
            continue
        prepare = prepare_kernel(found.recipe, tokens=8, columns=8192, dtype="bfloat16", flat=True)
        sources |= {kernel.source: kernel for kernel in (expand_kernel(found), prepare)}
    assert sources
    for kernel in sources.values():
        cubin = tools.cubin(kernel.source, kernel.architecture, OPTIONS)
        made = kernels(tools.disassemble(cubin), cubin)[kernel.name]
        assert made.spills == 0, f"{kernel.name}: {made.registers} registers"


@pytest.mark.parametrize(("name", "machine"), EVERY)
def test_no_kernel_spills_and_none_is_emulated(tools, name, machine):
    for activations in TERMS:
        try:
            made = recipe(FORMATS[name], MACHINES[machine], activations)
        except DeclarationError:
            continue
        for tokens in (16, 64):
            found = count_loop(made, tokens, tools)
            told = f"{activations}, {tokens} tokens: {found.registers} registers"
            assert (found.spills, found.traps) == (0, ()), told
