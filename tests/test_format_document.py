"""docs/format.md is true: its reader decodes what the library writes, bit by bit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from unspool.decode.interpret import interpret
from unspool.encode.encode import encode
from unspool.matmul import reference
from unspool.model.layout import BUFFERS, as_buffers
from unspool.pack.matrix import CodedMatrix
from unspool.spec.catalog import FORMATS, parse
from unspool.spec.format import Format
from unspool.spec.operand import OPERANDS, SCALE_OPERANDS
from unspool.spec.program import ARITY, STATE, Instruction, Program

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
SHAPE = (40, 136)  # padded in both directions by most formats

SLOW = 16
"""State bits above which random words, which are legal too, stand in for the slow search."""

VARIED = ("t2-e2m1:b128-fp16:h64-both-s7", "nvfp4:h16-out", "mxfp4:tensor", "lut-b:row-e8m0")


@pytest.fixture(scope="module")
def reader() -> SimpleNamespace:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(source, "docs/format.md", "exec"), names)
    return SimpleNamespace(**names)


def coded(fmt: Format) -> CodedMatrix:
    random = np.random.default_rng(0)
    weight = random.standard_normal(SHAPE, dtype=np.float32)
    weight[3] = 0
    if fmt.code.state_bits <= SLOW:
        return encode(weight, fmt)
    quick = replace(FORMATS["m2-e2m1"].code, tile=fmt.code.tile)
    like = encode(weight, replace(fmt, code=quick))
    words = random.integers(0, 1 << 32, (*like.codes.shape[:2], fmt.code.words), np.uint32)
    return replace(like, format=fmt, codes=words)


@pytest.mark.parametrize("name", [*FORMATS, *VARIED])
def test_the_reader_decodes_every_format(reader, name):
    fmt = parse(name)
    matrix = coded(fmt)
    stored = as_buffers(matrix.arrays)
    arrays = {
        part: stored[buffer].view(f"u{stored[buffer].itemsize}") if buffer in stored else None
        for part, buffer in ((b.removeprefix("weight_"), b) for b in BUFFERS.values())
    }
    found = reader.decode(fmt.to_json(), arrays)
    assert np.array_equal(found, reference.decode_values(matrix))
    # Sums of up to 128 products in float32 here and float64 there: some 1e-6 of a unit weight.
    dense = reader.unrotate(found, fmt.to_json(), SHAPE)
    assert np.allclose(dense, reference.decode(matrix), atol=1e-5)


def test_the_reader_reads_a_checkpoint(reader, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    import unspool
    from unspool.checkpoint.read import matrices, verify

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=72, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    unspool.quantize(model, "t3-e2m3")
    unspool.save(model, tmp_path / "out")
    for module, matrix in matrices(verify(tmp_path / "out")):
        found, _ = reader.read_layer(tmp_path / "out", module)
        assert np.array_equal(found, reference.decode_values(matrix)), module


@pytest.mark.parametrize("op", [op for op in ARITY if op != "table" and not op.startswith("half2")])
def test_the_reader_s_instructions_are_the_interpreter_s(reader, op):
    random = np.random.default_rng(ARITY[op])
    words = random.integers(0, 1 << 32, (ARITY[op], 200))
    words[:, :4] = [[0], [0xFFFFFFFF], [1], [31]][: ARITY[op]]
    for column in words.T:
        state, *others = (int(word) for word in column)
        program = Program(
            instructions=(Instruction("result", op, (STATE, *others)),),
            outputs=(("result", 0),),
        )
        expected = interpret(program, np.array(state, np.uint32))[0]
        found = reader.OPS[op](*(np.int64(word) for word in column)) & reader.MASK
        assert found == expected, [hex(int(word)) for word in column]


@pytest.mark.parametrize("operand", {**OPERANDS, **SCALE_OPERANDS}.values(), ids=lambda o: o.name)
def test_the_reader_s_values_are_the_operand_s(reader, operand):
    values = operand.values()
    finite = np.isfinite(values)
    found = reader.value(operand.name, np.arange(len(values)))
    assert np.array_equal(found[finite], values[finite])
    assert reader.width(operand.name) == operand.bits


def test_the_page_names_every_operand_instruction_and_tensor():
    for name in (*OPERANDS, *SCALE_OPERANDS, *(f"`{op} " for op in ARITY), *BUFFERS.values()):
        assert name in PAGE or name.replace("`", ", `") in PAGE, name
