"""Every backend decodes every state of every format to the interpreter's bits.

Decoding without multiplying is compared as operand bits and as float32 bits. What the products
decode inside is compared through them. With float32 activations a row of the identity picks one
column of the weight, and sums of one weight and zeros are exact (only the sign of zero is lost).
With int8 activations all bits are the definition's, which decodes by the interpreter.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from unspool.decode.target import why_not
from unspool.matmul.choose import PATHS, choose
from unspool.matmul.integer import integer_product
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode_operands, decode_values
from unspool.pack.matrix import CodedMatrix, array_specs
from unspool.pack.words import unpack
from unspool.spec.catalog import FORMATS
from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import BF16, E2M1, E2M3, E4M3, E5M2, FP16, INT8, Operand
from unspool.spec.program import STATE, Instruction, Parameter, Program, Table
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

TARGETS = [name for name in PATHS if not why_not(name)]
COLUMNS = 64
FULLY_COVERED_BITS, PARTLY_COVERED_BITS = 16, 13
"""All states of 20 bits would take 58 M weights; the kernels read them with the same code. Our own
coded formats stand for shapes, not for constants that somebody will use."""


def own(name: str, planes: str, operand: Operand, scale: str = "row-fp16", **more) -> Format:
    """A code the library was not built for; planes as in "5,1 2,2" (window, stride)."""
    cut = [plane.split(",") for plane in planes.split()]
    code = Code(
        name=name,
        planes=tuple(Plane(window=int(window), stride=int(stride)) for window, stride in cut),
        operand=operand,
        lanes=len(more["program"].outputs),
        **more,
    )
    return Format(name=name, code=code, scale=Scale.parse(scale))


def looked_up(bits: int, operand: Operand, lanes: int = 1) -> Program:
    """A table of scrambled finite operands for every state, a byte or two per lane."""
    rng, width = np.random.default_rng(bits), max(8, operand.bits)
    finite = np.flatnonzero(np.isfinite(operand.values()))
    picked = rng.choice(finite, (1 << bits, lanes)).astype(np.uint64)
    words = (picked << np.uint64(width) * np.arange(lanes, dtype=np.uint64)).sum(axis=1)
    return Program(
        instructions=(Instruction("entry", "table", ("values", STATE)),),
        outputs=tuple(("entry", width * lane) for lane in range(lanes)),
        tables=(Table(name="values", entries=tuple(int(word) for word in words)),),
    )


def parameter_code(scope: str, tile: tuple[int, int] | None, index: str = STATE) -> Program:
    """One look-up in a stored table of 16, after a permutation of the states if so asked."""
    flip = (Instruction("flipped", "xor", (STATE, 5)),) if index != STATE else ()
    return Program(
        instructions=(*flip, Instruction("level", "table", ("levels", index))),
        outputs=(("level", 0),),
        parameters=(Parameter(name="levels", length=16, operand=E4M3, scope=scope, tile=tile),),
    )


MULTIPLIED = Program(
    instructions=(Instruction("word", "mul", (STATE, 0x9E3779B1)),),
    outputs=tuple(("word", 4 * lane) for lane in range(4)),
)


def two_bytes(selector: int, offsets: tuple[int, ...]) -> Program:
    """Four nibbles of a product of a window's bytes, from where the offsets say."""
    return Program(
        instructions=(
            Instruction("spread", "permute-bytes", (STATE, 0, selector)),
            Instruction("product", "mul", ("spread", 0x9E3779B1)),
            Instruction("word", "add", ("product", 0x7F4A7C15)),
        ),
        outputs=tuple(("word", offset) for offset in offsets),
    )


UPPER = (16, 20, 24, 28)
"""Where the nibbles stand that kernels take from a product in registers."""

OWN = (
    own("three-planes", "4,1 3,2 2,2", E2M3, program=looked_up(9, E2M3)),
    own("two-rings", "3,1 4,1", E2M1, program=looked_up(7, E2M1)),
    own("pairs", "5,1 2,2", E2M3, program=looked_up(7, E2M3, 2), tile=(8, 16)),
    own("fours", "9,4", E4M3, program=looked_up(9, E4M3, 4), tile=(8, 16)),
    own("wide-exponent", "5,1 1,1", E5M2, program=looked_up(6, E5M2)),
    own("half-table", "5,1 4,4", FP16, program=looked_up(9, FP16)),
    own("half-pairs", "6,1 6,6", FP16, program=looked_up(12, FP16, 2), tile=(8, 16)),
    own("plain-bf16", "16,16", BF16, program=Program(outputs=((STATE, 0),))),
    own("odd-tile", "3,1 1,1", E2M1, program=looked_up(4, E2M1), tile=(4, 24)),
    own("one-row-tile", "4,1", E2M1, program=looked_up(4, E2M1), tile=(1, 32)),
    own("wide-tile", "4,1", E2M1, program=looked_up(4, E2M1), tile=(1, 1024)),
    own("long-ring", "6,2", E2M3, program=looked_up(6, E2M3), tile=(16, 8)),
    own("blocks-of-8", "5,1 1,1", E2M1, "b8-e4m3", program=looked_up(6, E2M1)),
    own("blocks-of-48", "5,1 2,2", E2M3, "b48-fp16", program=looked_up(7, E2M3)),
    own("multiplied", "13,4", E2M1, program=MULTIPLIED, tile=(8, 16)),
    own("two-bytes", "16,8", E2M1, program=two_bytes(0x0110, UPPER), tile=(8, 16)),
    own("two-bytes-blocks", "16,8", E2M1, "b16-e4m3", program=two_bytes(0x1000, UPPER),
        tile=(8, 16)),
    own("two-bytes-tall", "16,8", E2M1, program=two_bytes(0x0101, UPPER), tile=(16, 8)),
    own("other-nibbles", "16,8", E2M1, program=two_bytes(0x0110, (28, 3, 0, 17)), tile=(8, 16)),
    own("plain-2", "2,2", E2M3, "b32-e8m0", program=looked_up(2, E2M3)),
    own("plain-3", "3,3", INT8, "b64-fp16", program=looked_up(3, INT8)),
    own("plain-5", "5,5", INT8, program=looked_up(5, INT8)),
    own("plain-8", "8,8", INT8, "b16-e4m3", program=looked_up(8, INT8)),
    own("plain-pairs", "4,4", E2M1, program=looked_up(4, E2M1, 2), tile=(8, 16)),
    own("wide-levels", "5,1 2,2", INT8, "b8-e4m3", program=looked_up(7, INT8)),
    own("wide-ring", "6,1", INT8, "b128-fp16", program=looked_up(6, INT8)),
    own("wide-pairs", "4,1 2,2", INT8, program=looked_up(6, INT8, 2), tile=(8, 16)),
    own("ring-of-7", "7,1", E2M3, program=looked_up(7, E2M3)),
    own("bits-of-a-ring", "7,1 1,1", INT8, program=Program(outputs=((STATE, 0),))),
    own("blocks-of-4", "5,1 1,1", E2M1, "b4-fp16", program=looked_up(6, E2M1)),
    own("no-scale", "8,8", INT8, "none", program=Program(outputs=((STATE, 0),))),
    own("tensor-levels", "4,4", E4M3, "tensor", program=parameter_code("tensor", None)),
    own("small-tiles", "4,4", E4M3, program=parameter_code("tile", (8, 8))),
    own("flipped-levels", "4,4", E4M3, program=parameter_code("row", None, "flipped")),
    own("coded-levels", "4,1", E4M3, program=parameter_code("tile", (16, 32))),
)  # fmt: skip

OWN_CODES = {fmt.code.name for fmt in OWN}
CASES = {fmt.name: fmt.vary(rotation=Rotation()) for fmt in (*FORMATS.values(), *OWN)}
INTEGER = [name for name, fmt in CASES.items() if choose(fmt, "numpy").activations == "int8"]


def covered_bits(fmt: Format) -> int:
    """How many states a matrix has, as bits; all of them where that is as many as the code's."""
    bits = fmt.code.state_bits
    partly = bits > FULLY_COVERED_BITS or (fmt.code.name in OWN_CODES and fmt.code.memory)
    return min(bits, PARTLY_COVERED_BITS) if partly else bits


@functools.cache
def covering(name: str) -> CodedMatrix:
    """A matrix of random words in which every state of the format occurs, or very many."""
    fmt = CASES[name]
    bits = covered_bits(fmt)
    steps = (1 << bits) * (bits + 6)  # each state is missed with probability e^-(bits + 6)
    columns = -(-COLUMNS // fmt.column_unit) * fmt.column_unit
    rows = max(3 * fmt.row_unit, -(-steps * fmt.code.lanes // columns))
    rows = -(-rows // fmt.row_unit) * fmt.row_unit
    rng, arrays = np.random.default_rng(5), {}
    for part, spec in array_specs(fmt, rows, columns).items():
        top = {"codes": 1 << 32, "scale": 120, "table": 120, "tensor_scale": 4}[part]
        arrays[part] = rng.integers(1, top, spec.shape, np.uint64).astype(spec.dtype)
    return CodedMatrix(format=fmt, shape=(rows, columns), **arrays)


def same_floats(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal bit by bit, but for NaNs and, after a sum, the sign of zero."""
    return np.array_equal(found, expected, equal_nan=True)


@pytest.fixture(autouse=True)
def _quiet_specials():
    with np.errstate(invalid="ignore", over="ignore"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_the_matrix_has_every_state_or_very_many(name):
    fmt, matrix = CASES[name], covering(name)
    states = np.unique(unpack(matrix.codes, fmt.code))
    assert len(states) >= 1 << covered_bits(fmt)


@pytest.mark.parametrize("name", CASES)
def test_decoding_gives_the_interpreters_bits(name):
    matrix = covering(name)
    kernel = Kernel(matrix, target="portable")
    assert np.array_equal(kernel.decode_operands(), decode_operands(matrix))
    found, expected = kernel.decode_values(), decode_values(matrix)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_products_with_float32_activations_decode_the_interpreters_values(name, target):
    matrix = finite(covering(name))
    columns = matrix.shape[1]
    kernel = Kernel(matrix, target=target, activations="float32")
    expected = decode_values(matrix)
    units = np.eye(columns, dtype=np.float32)
    assert same_floats(kernel(units).T, expected)
    if expected.size <= 1 << 19:  # larger ones would take seconds
        parts = [kernel(units[i : i + 1]) for i in range(columns)]
        assert same_floats(np.concatenate(parts).T, expected)


@functools.cache
def defined(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Random activations, and what they are times the matrix by definition."""
    matrix = finite(covering(name))
    x = np.random.default_rng(6).standard_normal((7, matrix.shape[1])).astype(np.float32)
    return x, integer_product(x, matrix)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", INTEGER)
def test_products_with_int8_activations_are_the_definitions_bits(name, target):
    matrix = finite(covering(name))
    kernel = Kernel(matrix, target=target)
    assert kernel.path == f"integer-{target}"
    x, expected = defined(name)
    for m in (1, 7):
        assert np.array_equal(kernel(x[:m]).view(np.uint32), expected[:m].view(np.uint32)), m


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", INTEGER)
def test_a_kernel_that_owns_its_codes_gives_them_back(name, target):
    matrix = covering(name)
    kernel = Kernel(matrix, target=target)
    assert kernel.drop_codes() == kernel.owns_codes
    assert np.array_equal(kernel.codes(), matrix.codes)


def finite(matrix: CodedMatrix) -> CodedMatrix:
    """The matrix without NaN and infinities, which 0 * weight would spread over a row.

    Formats that have them read operands plainly: words with the lowest exponent bits cleared.
    """
    if np.isfinite(decode_values(matrix)).all():
        return matrix
    operand = matrix.format.code.operand
    lowest = 1 << operand.mantissa_bits
    pattern = sum(lowest << place for place in range(0, 32, operand.bits))
    arrays = {**matrix.arrays, "codes": matrix.codes & ~np.uint32(pattern)}
    return CodedMatrix(format=matrix.format, shape=matrix.shape, **arrays)
