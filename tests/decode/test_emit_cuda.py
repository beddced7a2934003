"""Emitted decoders give the interpreter's values: every state, every lowering, every target.

A lowering is run twice: in numpy, and as the very text that a GPU compiler gets, compiled as C++.
No GPU is at hand here: compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from unspool.decode.emit_cuda import emit, header
from unspool.decode.lower import cost, lower, lowerings, slots
from unspool.decode.lower_scaled import LEVELS, row_tables, scaled
from unspool.decode.lowering import Lowering, reorder, run
from unspool.decode.machine import BYTES, MACHINES, Machine, Slot
from unspool.errors import DeclarationError
from unspool.pack.proof import expected, given, parameters, rings, values, wrong
from unspool.pack.words import unpack
from unspool.spec.catalog import FORMATS
from unspool.spec.code import Code, Plane
from unspool.spec.operand import BF16, E2M1, E2M3, E3M2, E4M3, E5M2, FP16, INT8
from unspool.spec.program import STATE, Instruction, Parameter, Program, Table


def own(name: str, planes: str, operand, program: Program, tile=(8, 8)) -> Code:
    cut = [plane.split(",") for plane in planes.split()]
    return Code(
        name=name,
        planes=tuple(Plane(window=int(window), stride=int(stride)) for window, stride in cut),
        operand=operand,
        lanes=len(program.outputs),
        tile=tile,
        program=program,
    )


def hashed(operand, *outputs: int) -> Program:
    """A program of every kind of integer instruction, with amounts and tables in registers too."""
    return Program(
        instructions=(
            Instruction("a", "mul", (STATE, 0x9E3779B1)),
            Instruction("b", "funnel-shift", ("a", STATE, STATE)),
            Instruction("c", "lop3", ("a", "b", STATE, "b")),
            Instruction("d", "permute-bytes", ("a", "c", "b")),
            Instruction("e", "bit-reverse", ("d",)),
            Instruction("f", "byte-sum", ("e", "a")),
            Instruction("g", "mul-high", ("f", "c")),
            Instruction("h", "shl", ("g", STATE)),
            Instruction("i", "shr", ("b", 37)),
            Instruction("j", "sub", ("h", "i")),
            Instruction("k", "not", ("j",)),
            Instruction("l", "half2-fma", ("k", "a", "e")),
            Instruction("m", "half2-add", ("l", "f")),
            Instruction("n", "xor", ("m", "j")),
        ),
        outputs=tuple(("n", offset) for offset in outputs),
    )


PAIR_TABLE = Program(
    instructions=(
        Instruction("half", "shr", (STATE, 1)),
        Instruction("entry", "table", ("t", "half")),
    ),
    outputs=(("entry", 3), ("entry", 17)),
    tables=(Table(name="t", entries=tuple((i * 0x9E3779B1) % 2**32 for i in range(16))),),
)

SIGNED = Program(  # the plain bits to the tops of bytes, the last to the lowest
    instructions=(
        Instruction("window", "and", (STATE, 0x7FF)),
        Instruction("spread", "permute-bytes", ("window", 0, 0x1010)),
        Instruction("product", "mul", ("spread", 0x9E3779B1)),
        Instruction("fields", "and", ("product", 0x9F9F9F9F)),
        Instruction("plain", "shr", (STATE, 11)),
        Instruction("signs", "mul", ("plain", 1 << 4 | 1 << 13 | 1 << 22 | 1 << 31)),
        Instruction("word", "lop3", ("signs", 0x80808080, "fields", 0x6A)),
    ),
    outputs=tuple(("word", 8 * lane) for lane in range(4)),
)

PICKED = Program(  # a permute by all of a register's nibbles, and by three bits of each
    instructions=(
        Instruction("product", "mul", (STATE, 0x9E3779B1)),
        Instruction("picks", "and", ("product", 0x7777)),
        Instruction("a", "permute-bytes", (0x18100800, 0x38302820, "picks")),
        Instruction("b", "permute-bytes", ("a", 0x11223344, "product")),
    ),
    outputs=(("a", 0), ("a", 16), ("b", 8), ("b", 24)),
)

NUMBERED = Program(  # by the upper six bits though there are 256 entries, and from bit 2 on
    instructions=(
        Instruction("product", "mul-high", (STATE, 0x9E3779B1)),
        Instruction("high", "shr", ("product", 26)),
        Instruction("low", "shr", ("product", 2)),
        Instruction("least", "shr", ("product", 1)),
        *(Instruction(f"{name}-entry", "table", ("t", name)) for name in ("high", "low", "least")),
    ),
    outputs=(("high-entry", 0), ("low-entry", 8), ("low-entry", 24), ("least-entry", 16)),
    tables=(Table(name="t", entries=tuple((i * 0x9E3779B1) % 2**32 for i in range(256))),),
)

OWN = {
    code.name: code
    for code in (
        own("every-instruction", "11,4", E2M1, hashed(E2M1, 0, 5, 11, 28)),
        own("halves", "9,3", FP16, hashed(FP16, 0, 13), (8, 16)),
        own("odd-bytes", "7,2 3,3 2,1", E2M3, hashed(E2M3, 1, 7), (8, 16)),
        own("all-of-a-word", "32,4", E4M3, hashed(E4M3, 0), (8, 8)),
        own("wraps-in-a-word", "13,1", E5M2, hashed(E5M2, 8), (4, 8)),
        own("pair-table", "5,2 1,1", E2M1, PAIR_TABLE, (8, 16)),
        own("two-plain-planes", "2,2 4,4", E3M2, Program(outputs=((STATE, 0),)), (8, 16)),
        own("signs-of-a-plane", "11,3 4,4", E4M3, SIGNED, (8, 16)),
        own("picked-by-a-register", "13,4", E4M3, PICKED, (8, 16)),
        own("numbered-by-a-shift", "13,4", E4M3, NUMBERED, (8, 16)),
        own(
            "fewer-bits-than-its-operand", "1,1 2,2", E3M2, Program(outputs=((STATE, 0),)), (8, 16)
        ),
    )
}

PARAMETER_CODES = {
    scope: Code(
        name=scope,
        planes=(Plane(window=6, stride=3),),
        operand=E4M3,
        program=Program(
            instructions=(Instruction("level", "table", ("levels", STATE)),),
            outputs=(("level", 0),),
            parameters=(Parameter(name="levels", length=64, operand=E4M3, scope=scope),),
        ),
    )
    for scope in ("tensor", "row")
}


def levels_code(name: str, bits: int, *flip: Instruction, scope: str = "row") -> Code:
    """One look-up in a stored table, after a permutation of the states if so asked."""
    index = flip[0].result if flip else STATE
    return Code(
        name=name,
        planes=(Plane(window=bits, stride=bits),),
        operand=E4M3,
        program=Program(
            instructions=(*flip, Instruction("level", "table", ("levels", index))),
            outputs=(("level", 0),),
            parameters=(Parameter(name="levels", length=1 << bits, operand=E4M3, scope=scope),),
        ),
    )


FLIP = Instruction("flipped", "xor", (STATE, 5))
PARAMETER_CODES |= {
    "four-per-row": levels_code("four-per-row", 2),
    "four-per-tensor": levels_code("four-per-tensor", 2, scope="tensor"),
    "two-per-row": levels_code("two-per-row", 1),
    "flipped": levels_code("flipped", 3, FLIP),
    "sixteen": levels_code("sixteen", 4),
}

CODES = {name: fmt.code for name, fmt in FORMATS.items()} | OWN | PARAMETER_CODES
DISTINCT = {code: name for name, code in reversed(CODES.items())}
"""Formats that differ in their scales alone share a code."""


def assert_equal(found: np.ndarray, want: np.ndarray) -> None:
    finite = np.isfinite(want)
    assert (found[finite] == want[finite]).all()


def all_lowerings(code: Code) -> dict[Lowering, None]:
    return {
        lowering: None
        for machine in MACHINES.values()
        for slot in slots(code, machine)
        for lowering in lowerings(code, slot, machine)
    }


@pytest.mark.parametrize("code", DISTINCT, ids=DISTINCT.values())
def test_every_lowering_gives_the_interpreters_values_in_every_state(code):
    words = rings(code)
    tables, rows = parameters(code)
    want = expected(code, words, tables)
    for lowering in all_lowerings(code):
        registers = run(lowering, reorder(lowering, words), given(lowering, rows))
        assert_equal(values(lowering, registers), want)


def chosen(code: Code, *, every_slot: bool) -> list[Lowering]:
    """What is chosen on three targets, in the narrowest slot or in every one; each once."""
    found = []
    for target in ("sm80", "sm90", "sm120"):
        held = slots(code, MACHINES[target])
        found += [lower(code, s, MACHINES[target]) for s in (held if every_slot else held[:1])]
    return list(dict.fromkeys(found))


def assert_twin_agrees(code: Code, lowerings: list[Lowering], build) -> None:
    words = rings(code, 12)
    _, rows = parameters(code)
    twin = build(lowerings)
    for which, lowering in enumerate(lowerings):
        reordered, handed = reorder(lowering, words), given(lowering, rows)
        assert (twin(which, reordered, handed) == run(lowering, reordered, handed)).all()


@pytest.mark.parametrize("code", DISTINCT, ids=DISTINCT.values())
def test_the_emitted_text_compiled_as_cpp_gives_the_same_bits(code, build):
    assert_twin_agrees(code, chosen(code, every_slot=False), build)


@pytest.mark.slow
@pytest.mark.parametrize("code", DISTINCT, ids=DISTINCT.values())
def test_so_it_does_for_every_slot(code, build):
    assert_twin_agrees(code, chosen(code, every_slot=True), build)


@pytest.mark.parametrize("name", ["m3-e2m1", "m3-e4m3", "m3-e2m3"])
def test_all_states_of_twenty_bits(name, build):
    code = CODES[name]
    words = rings(code, 20)
    want = expected(code, words, {})
    for machine in (MACHINES["sm90"], MACHINES["sm120"]):
        lowering = lower(code, slots(code, machine)[0], machine)
        registers = build([lowering])(0, reorder(lowering, words), np.zeros(0))
        assert_equal(values(lowering, registers), want)


def test_covering_rings_hold_every_state():
    for name in ("m2-e2m1", "t2-e2m1", "odd-bytes"):
        code = CODES[name]
        assert len(np.unique(unpack(rings(code), code))) == 1 << code.state_bits


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_the_catalog_runs_on_every_target(name, machine):
    assert slots(FORMATS[name].code, machine)


@pytest.mark.parametrize(
    ("name", "slot", "target", "reason"),
    [
        ("nf4", Slot(E4M3), "sm90", "values of the code are not E4M3"),
        ("int8", Slot(E4M3), "sm90", "values of the code are not E4M3"),
        ("fp8-e5m2", Slot(E4M3), "sm90", "values of the code are not E4M3"),
        ("lut3-row", Slot(INT8), "sm80", "parameters of the code are not INT8"),
        ("mxfp4", Slot(E2M1), "sm90", "sm90 does not read E2M1"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_the_reason(name, slot, target, reason):
    with pytest.raises(DeclarationError, match=reason):
        lower(FORMATS[name].code, slot, MACHINES[target])


@pytest.mark.parametrize(
    ("operand", "container"), [(E4M3, BYTES), (E2M3, "packed"), (FP16, BYTES), (E2M1, "halves")]
)
def test_a_container_that_no_register_has_is_refused(operand, container):
    with pytest.raises(DeclarationError, match="no registers hold"):
        Slot(operand, container)


def test_a_single_wrong_bit_is_counted():
    code = FORMATS["mxfp4"].code
    lowering, words = lower(code, Slot(E4M3), MACHINES["sm90"]), rings(code)
    registers, want = run(lowering, reorder(lowering, words)), expected(code, words, {})
    assert wrong(lowering, registers, want) == 0
    registers[3, 1] ^= np.uint32(0x0800)  # an exponent
    assert wrong(lowering, registers, want) == 1
    lowering = lower(code, Slot(E2M1, BYTES), MACHINES["sm120"])
    registers = run(lowering, reorder(lowering, words))
    registers[0, 0] |= np.uint32(1)  # beside the operand
    assert wrong(lowering, registers, want) == 1


def test_codes_with_memory_keep_the_stored_order():
    for name in ("m2-e4m3", "t2-e2m1", "odd-bytes"):
        assert all(lowering.bits is None for lowering in all_lowerings(CODES[name]))


@pytest.mark.parametrize(
    "change",
    [
        {"bits": (0,) * 256},
        {"places": (0,) * 128},
        {"registers": ("nowhere",)},
        {"instructions": (Instruction("x", "and", ("w0", "w99")),)},
        {"instructions": (Instruction("x", "load", (0, "w0")),)},
        {"instructions": (Instruction("x", "system", ("w0",)),)},
        {"instructions": (Instruction("x", "and", ("w0", 1 << 32)),)},
        {"instructions": (Instruction("w0", "not", ("w0",)),)},
    ],
)
def test_a_lowering_that_is_no_bijection_or_not_legal_is_refused(change):
    lowering = lower(FORMATS["m2-e4m3"].code, Slot(E4M3), MACHINES["sm90"])
    with pytest.raises(DeclarationError):
        replace(lowering, **change)


def test_no_string_of_a_declaration_reaches_the_source():
    evil = '"; system("true"); //'
    program = Program(
        instructions=(
            Instruction(evil, "xor", (STATE, 5)),
            Instruction(evil + "2", "table", (evil + "3", evil)),
        ),
        outputs=((evil + "2", 0),),
        tables=(Table(name=evil + "3", entries=tuple(range(64))),),
    )
    code = replace(own("x", "6,1", E2M3, program), name=evil)
    for lowering in all_lowerings(code):
        assert "system" not in emit(lowering)
    lowering = next(iter(all_lowerings(code)))
    renamed = {i.result: f"{evil}{n}" for n, i in enumerate(lowering.instructions)}
    named = replace(
        lowering,
        name=evil,
        instructions=tuple(
            Instruction(renamed[i.result], i.op, tuple(renamed.get(a, a) for a in i.arguments))
            for i in lowering.instructions
        ),
        registers=tuple(renamed[r] for r in lowering.registers),
    )
    assert emit(named) == emit(lowering)


def test_the_source_has_no_words_but_its_own():
    text = emit(lower(FORMATS["t2-e2m1"].code, Slot(E4M3), MACHINES["sm90"]))
    code = re.sub(r"//.*", "", text)
    words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"0x[0-9a-f]+u", "", code)))
    known = set(re.findall(r"[A-Za-z_]\w*", header()))
    numbered = {word for word in words if re.fullmatch(r"[tw]\d+|code_\d+", word)}
    mine = {"decode", "words", "registers", "table", "levels", "entries", "held"}
    mine |= {f"{what}_count" for what in ("word", "register", "entry", "level", "held")}
    assert words - known - numbered - mine <= {"constexpr", "const", "void", "int", "namespace"}


@pytest.mark.parametrize("slot", [Slot(E5M2), Slot(FP16)])
@pytest.mark.parametrize("first", [0, 8, 16, 19])
def test_block_scales_of_mxfp4_move_the_table(slot, first):
    code = FORMATS["mxfp4"].code
    lowering, words = scaled(code, slot), rings(code)
    levels = np.array(LEVELS[first : first + code.tile[0]])
    registers = run(lowering, reorder(lowering, words), row_tables(levels).ravel())
    per_weight = np.repeat(levels, code.tile[1])
    assert_equal(values(lowering, registers), np.ldexp(expected(code, words, {}), per_weight))


def machine_slot(target: str, operand, container: str = "packed") -> tuple[Machine, Slot]:
    return MACHINES[target], Slot(operand, container)


@pytest.mark.parametrize(
    ("name", "slot", "target", "most", "trick"),
    [
        ("mxfp4", Slot(E4M3), "sm90", 0.625, "scatter"),
        ("mxfp4", Slot(E2M1, BYTES), "sm100", 0.375, "scatter"),
        ("mxfp4", Slot(E2M1), "sm120", 0, "scatter"),
        ("fp8-e5m2", Slot(FP16), "sm80", 0.75, "scatter"),
        ("mxfp4", Slot(INT8), "sm80", 1.375, "table-of-16"),
        ("s2-e4m3", Slot(E4M3), "sm90", 0.5625, "permute-table"),
        ("lut3-row", Slot(E4M3), "sm90", 0.6563, "permute-table"),
        ("v1.5-e2m1", Slot(E2M1), "sm120", 0.3282, "permute-table"),
        ("s4-e4m3", Slot(E4M3), "sm90", 0.875, "sign-and-table"),
        ("m2-e4m3-quick", Slot(E4M3), "sm90", 0.75, "steps"),
        ("m2-e2m1", Slot(E2M1), "sm120", 0.625, "steps"),
    ],
)
def test_the_cheapest_trick_is_chosen(name, slot, target, most, trick):
    lowering = lower(FORMATS[name].code, slot, MACHINES[target])
    assert (lowering.name, cost(lowering) <= most) == (trick, True)


def test_bfloat16_of_narrow_floats_is_not_left_tiny():
    # Moved bits alone would be 2**-126 of the value: sums of such products are FP32 subnormals.
    lowering = lower(FORMATS["mxfp4"].code, Slot(BF16), MACHINES["sm90"])
    assert lowering.exponent == 0
