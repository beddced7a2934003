"""The whole product in one reading, in the order in which data flows.

Declare a code, encode a matrix with it, decode and multiply, quantize a model, save it, load it
back, measure it. Every other test goes deeper into one of these steps.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import unspool
from unspool.checkpoint.read import verify
from unspool.decode.interpret import interpret, state_values, tabulate
from unspool.encode.encode import encode
from unspool.evaluate.divergence import evaluate_models
from unspool.matmul import reference
from unspool.matmul.kernel import Kernel
from unspool.model.linear import QuantizedLinear
from unspool.pack.words import check_walk, unpack
from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.operand import INT8
from unspool.spec.program import STATE, Instruction, Program
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale


@pytest.fixture(scope="module")
def fmt() -> Format:
    """A code of our own: windows of 8 bits that move on by 2, one weight each.

    The program is the window's bits stirred by a multiplication, four bytes of it added up: nearly
    Gaussian, centred on zero. Nothing but this declaration is needed for all that follows.
    """
    program = Program(
        instructions=(
            Instruction("product", "mul", (STATE, 0xCBAC1FED)),
            Instruction("masked", "and", ("product", 0x3F3F3F3F)),
            Instruction("sum", "byte-sum", ("masked", 0)),
            Instruction("weight", "sub", ("sum", 126)),
        ),
        outputs=(("weight", 0),),
    )
    code = Code(
        name="ours",
        planes=(Plane(window=8, stride=2),),
        tile=(8, 8),
        operand=INT8,
        program=program,
        sigma=37.0,
    )
    scale, rotation = Scale.parse("row-fp16"), Rotation(size=64)
    return Format(name="ours", code=code, scale=scale, rotation=rotation)


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((48, 128), dtype=np.float32)


@pytest.fixture(scope="module")
def matrix(fmt, weight):
    return encode(weight, fmt)


def test_a_program_is_interpreted_and_tabulated(fmt):
    word = 0b1011_0110 * 0xCBAC1FED & 0x3F3F3F3F
    by_hand = sum(word.to_bytes(4)) - 126
    assert interpret(fmt.code.program, np.array(0b1011_0110)).view(np.int32) == by_hand
    assert state_values(fmt.code)[0b1011_0110] == by_hand
    assert tabulate(fmt.code).shape == (256, 1)


def test_a_declaration_survives_its_own_text(fmt):
    assert Format.from_json(fmt.to_json()).content_hash == fmt.content_hash


def test_a_declaration_knows_its_size(fmt, matrix):
    # 2 bits per weight, 16 bits per row for its scale, 32 for the matrix.
    assert fmt.stored_bits(48, 128) == 2 * 48 * 128 + 16 * 48 + 32
    assert 8 * matrix.nbytes == fmt.stored_bits(48, 128)


def test_stored_bits_are_a_walk_on_the_trellis(fmt, matrix):
    assert matrix.codes.shape == (48 // 8, 128 // 8, 4)
    check_walk(unpack(matrix.codes, fmt.code), fmt.code)


def test_decoding_comes_near_the_weight(weight, matrix):
    error = np.mean((weight - reference.decode(matrix)) ** 2)
    # The best 2-bit quantizer of single Gaussian weights (Lloyd-Max) has .1175.
    assert error < 0.1175


def test_the_kernel_decodes_the_same_bits_and_multiplies(matrix):
    kernel = Kernel(matrix)
    assert np.array_equal(kernel.decode(), reference.decode(matrix))
    x = np.random.default_rng(1).standard_normal((3, 128), dtype=np.float32)
    # Activations are rounded to int8 with a scale per row and 128 columns; the rest is exact.
    assert np.array_equal(kernel(x), Kernel(matrix, target="numpy")(x))
    # float32 sums of 128 products of a few units each: some 1e-6 each.
    exact = Kernel(matrix, activations="float32")
    assert np.allclose(exact(x), reference.matmul(x, matrix), atol=1e-4)


def test_a_zero_row_decodes_to_exact_zeros(fmt, weight):
    weight = weight.copy()
    weight[5] = 0
    assert not Kernel(encode(weight, fmt)).decode()[5].any()


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def quantized(original, fmt):
    model = AutoModelForCausalLM.from_config(original.config, dtype=torch.bfloat16).eval()
    model.load_state_dict(original.state_dict())
    report = unspool.quantize(model, fmt)
    assert len(report.layers) == 14
    return model


@pytest.fixture(scope="module")
def folder(quantized, tmp_path_factory):
    return unspool.save(quantized, tmp_path_factory.mktemp("tour") / "checkpoint")


def test_layers_stay_coded(quantized):
    layer = quantized.model.layers[0].mlp.up_proj
    assert isinstance(layer, QuantizedLinear)
    assert {buffer.dtype for buffer in layer.buffers()} == {torch.int32, torch.int16}
    assert list(layer.parameters()) == []


def test_a_checkpoint_explains_itself(folder, fmt):
    manifest = verify(folder).manifest
    assert manifest.formats["ours"].code.program == fmt.code.program


def test_a_checkpoint_comes_back_bit_by_bit(folder, quantized):
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(unspool.load(folder)(ids).logits, quantized(ids).logits)


def test_quality_is_measured_against_the_original(folder, original):
    model = unspool.load(folder)
    tokens = torch.randint(0, 4096, (512,), generator=torch.Generator().manual_seed(0))
    baseline, row = evaluate_models({"ours": model}, original, tokens, window=128)
    assert (baseline.kl, baseline.top1) == (0, 1)
    assert 0 < row.kl < 0.1
    assert row.perplexity == pytest.approx(baseline.perplexity, rel=0.1)


def test_the_catalog_is_there_by_name():
    fmt = unspool.parse("t3-e2m3")
    assert fmt.bits_per_weight() == pytest.approx(3.004, abs=0.001)
    assert unspool.parse("t3-e2m3:b128-fp16").scale.block == 128


def test_a_real_model_is_bundled():
    folder = resources.files("unspool") / "data" / "demo-model"
    tokenizer = unspool.load_tokenizer(str(folder))
    model = unspool.load(str(folder))
    ids = tokenizer("The function returns", return_tensors="pt").input_ids
    with torch.inference_mode():
        following = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode([following]).strip().isalpha()
