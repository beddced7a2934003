"""A program of each kind that the explorer makes: files, kernels on CPUs and simulated, a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unspool.decode.interpret import state_values
from unspool.decode.lower import lowerings
from unspool.decode.lowering import reorder
from unspool.decode.lowering import run as decoded
from unspool.decode.machine import MACHINES
from unspool.decode.target import why_not
from unspool.encode.encode import encode
from unspool.explore import score
from unspool.explore.explorer import Settings, scored
from unspool.explore.genome import (
    HALVES,
    LEVELS,
    SUM,
    TABLE,
    TAIL,
    Book,
    End,
    Genome,
    Step,
)  # fmt: skip
from unspool.explore.report import as_format, found_rows
from unspool.explore.score import Sample, distortion, slot_of
from unspool.matmul.choose import PATHS
from unspool.matmul.cuda.recipe import recipe
from unspool.matmul.cuda.simulated import Product
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode
from unspool.pack.proof import expected, rings, wrong
from unspool.spec.catalog import parse
from unspool.spec.format import Format
from unspool.spec.operand import FP16

FIRST = Step("multiply", 0, constant=0x9E3779B1, addend=0x7F4A7C15)
SECOND = Step("multiply", 1, constant=0x6C8E9CF5, addend=0x2545F491)
TWO = (FIRST, SECOND)
PERMUTED = (Step("permute", 0, constant=0x1010), SECOND)
BELL = (FIRST, SECOND, Step("difference", 1, 2, constant=0x7F7F7F7F))


def levels(index: int) -> End:
    return End(LEVELS, bits=16, book=Book(start=1, index=index))


def table(index: int, each: int) -> End:
    return End(TABLE, book=Book(start=1, index=index, each=each))


HIGH = (FIRST, Step("high", 1, constant=0x6C8E9CF5))
TURNED = End(TABLE, register=1, bits=2, book=Book(start=1, index=10, each=4), signs=True)

#: name -> operand, target, activations on it, genome
KINDS: dict[str, tuple[str, str, str, Genome]] = {
    "int8 bytes": ("INT8", "sm90", "int8", Genome(14, 2, BELL)),
    "int8 sums of bytes": ("INT8", "sm80", "int8", Genome(14, 2, TWO, End(SUM, 1))),
    "int8 of one weight a step": ("INT8", "sm89", "int8", Genome(13, 1, TWO, End(SUM))),
    "int8 levels": ("INT8", "sm120", "int8", Genome(14, 2, TWO, levels(4))),
    "e3m2": ("E3M2", "sm120", "fp8x2", Genome(14, 2, TWO, End(TAIL, 1, 5))),
    "e3m2 moved": ("E3M2", "sm89", "fp8x2", Genome(14, 2, TWO)),
    "fp16 halves": ("FP16", "sm90", "float16", Genome(14, 2, TWO, End(HALVES, 1))),
    "fp16 sums of bytes": ("FP16", "sm80", "float16", Genome(14, 2, TWO, End(SUM, 1))),
    "fp16 with a tail": ("FP16", "sm89", "float16", Genome(14, 2, TWO, End(TAIL, 1, 0x300))),
    "fp16 of one weight a step": ("FP16", "sm80", "float16", Genome(13, 1, TWO, End(HALVES))),
    "fp16 sum of one weight a step": ("FP16", "sm120", "float16", Genome(13, 1, TWO, End(SUM))),
    "fp16 pairs of a table": ("FP16", "sm90", "float16", Genome(14, 2, TWO, table(9, 2))),
    "e4m3 levels and signs": ("E4M3", "sm90", "fp8x2", Genome(14, 2, TWO, levels(3))),
    "e4m3 sixteen levels": ("E4M3", "sm120", "fp8x2", Genome(14, 2, TWO, levels(4))),
    "e4m3 of a table": ("E4M3", "sm89", "fp8x2", Genome(14, 2, TWO, table(8, 1))),
    "e4m3 quads of a table": ("E4M3", "sm90", "fp8x2", Genome(16, 4, TWO, table(10, 4))),
    "e4m3 quads, signs of a product": ("E4M3", "sm90", "fp8x2", Genome(16, 4, HIGH, TURNED)),
    "e2m1 pairs of a table": ("E2M1", "sm120", "fp8x2", Genome(14, 2, TWO, table(8, 2))),
    "e2m1 and signs": ("E2M1", "sm120", "fp8x2", Genome(12, 4, TWO, signs=True)),
    "e4m3 and signs": ("E4M3", "sm90", "fp8x2", Genome(12, 2, PERMUTED, signs=True)),
    "e4m3 pairs and signs": ("E4M3", "sm90", "fp8x2", Genome(12, 2, TWO, table(8, 2), True)),
    "fp16 halves and signs": ("FP16", "sm80", "float16", Genome(12, 2, TWO, End(HALVES, 1), True)),
}
IN_A_MODEL = ("int8 of one weight a step", "int8 levels", "e3m2", "fp16 halves",
              "fp16 pairs of a table", "e4m3 levels and signs", "e4m3 quads, signs of a product",
              "e2m1 and signs")  # fmt: skip
KEPT = {"int8": 2**-6, "fp8x2": 2**-8, "float16": 2**-10}
"""What activations keep of a number, as a bound of a product's error over its magnitudes."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> tuple[str, str, str, Genome]:
    """One of KINDS."""
    return KINDS[request.param]


@pytest.fixture(scope="module")
def file(kind, tmp_path_factory) -> Path:
    """The kind's code, scored on few weights and written to a file."""
    operand, target, _, genome = kind
    settings = Settings(bits=2, operand=operand, target=target)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SCREEN", "RACE", "FINAL"):
            patch.setattr(score, name, 4096)
        patch.setattr(score, "TRAINED", (8192, 8192, 16384))
        (found,) = scored(settings.hunt(), [genome], [])
        (row,) = found_rows([found], settings)
    path = tmp_path_factory.mktemp("kind") / "code.json"
    as_format(row, settings, 1, path)
    return path


@pytest.fixture(scope="module")
def fmt(file: Path) -> Format:
    return parse(str(file))


def test_its_values_are_finite_and_not_far_from_a_gaussian(fmt: Format):
    assert np.isfinite(state_values(fmt.code)).all()
    assert distortion(fmt.code, Sample(weights=4096, seed=0)) < 0.105


def test_every_lowering_gives_the_interpreters_values_in_its_slot(kind, fmt: Format):
    machine = MACHINES[kind[1]]
    slot = slot_of(fmt.code, machine)
    assert slot.operand.integer == fmt.code.operand.integer
    words = rings(fmt.code)
    want = expected(fmt.code, words, {})
    found = lowerings(fmt.code, slot, machine)
    for lowering in found:
        assert wrong(lowering, decoded(lowering, reorder(lowering, words)), want) == 0
    assert found[0].name.endswith("-and-signs") == kind[3].signs


def test_kernels_multiply_what_the_reference_decodes(kind, fmt: Format):
    _, target, activations, _ = kind
    rng = np.random.default_rng(0)
    matrix = encode(rng.standard_normal((64, 256), dtype=np.float32), fmt)
    x = rng.standard_normal((3, 256), dtype=np.float32)
    wanted, magnitude = x @ decode(matrix).T, np.abs(x) @ np.abs(decode(matrix)).T
    made = recipe(fmt, MACHINES[target], activations)
    product = Product(matrices=(matrix,), made=made)(x)
    assert (np.abs(product - wanted) <= KEPT[activations] * magnitude).all()
    whole = fmt.code.operand is not FP16
    exact = Kernel(matrix, target="numpy")(x)
    for path in (name for name in PATHS if not why_not(name)):
        kernel = Kernel(matrix, target=path)
        assert kernel.activations == ("int8" if whole else "float32")
        if whole:
            assert np.array_equal(kernel(x), exact), path
        else:  # 256 sums, each rounded to 24 bits
            assert (np.abs(kernel(x) - wanted) <= 2**-16 * magnitude).all(), path


@pytest.mark.parametrize("kind", IN_A_MODEL, indirect=True)
def test_a_model_is_quantized_stored_and_evaluated(file: Path, goes_through):
    goes_through(file)
