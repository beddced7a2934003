from __future__ import annotations

import pytest
import torch

from unspool.cli import bundled
from unspool.cli.sampling import Sampling, choose, end_tokens, generate_tokens, stream_text
from unspool.errors import EvaluationError
from unspool.model.load import load_tokenizer

WORDS = torch.tensor([0.0, 2.0, 1.0, -5.0])


def drawn(count: int, **settings) -> list[int]:
    random = torch.Generator().manual_seed(0)
    return [choose(WORDS, Sampling(**settings), random) for _ in range(count)]


class Counting(torch.nn.Module):
    """Says that the token after t is t + 1, whatever came before."""

    generation_config = type("Settings", (), {"eos_token_id": [7, 9]})()

    def forward(self, ids, past_key_values, use_cache):
        logits = torch.nn.functional.one_hot(ids + 1, 16).float()
        return type("Output", (), {"logits": logits, "past_key_values": None})()


def test_temperature_zero_takes_the_most_likely():
    assert drawn(5, temperature=0) == [1] * 5


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-40, 1e-20])
def test_a_tiny_temperature_takes_the_most_likely(temperature):
    assert drawn(5, temperature=temperature) == [1] * 5


@pytest.mark.parametrize("temperature", [float("nan"), -1.0])
def test_what_is_no_temperature_is_refused(temperature):
    with pytest.raises(EvaluationError, match="no temperature"):
        Sampling(temperature=temperature)


def test_a_seed_is_at_most_a_word(run, checkpoint):
    options = ("generate", checkpoint, "--max-new-tokens", "1", "--seed")
    assert run(*options, (1 << 32) - 1).code == 0
    refused = run(*options, 1 << 80)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)


def test_top_k_leaves_out_the_rest():
    assert set(drawn(50, temperature=1, top_k=2)) == {1, 2}


def test_top_k_zero_takes_all():
    assert set(drawn(500, temperature=5, top_k=0)) == {0, 1, 2, 3}


def test_the_shares_are_those_of_a_softmax():
    share = drawn(4000, temperature=1, top_k=0).count(1) / 4000
    # Standard error of the share .665 over 4000 draws: .0075; four of them.
    assert share == pytest.approx(float(torch.softmax(WORDS, -1)[1]), abs=0.03)


def test_an_end_token_ends_the_text():
    tokens = generate_tokens(Counting(), torch.tensor([3]), 10, Sampling(temperature=0))
    assert list(tokens) == [4, 5, 6]


def test_the_end_may_be_one_token_or_none():
    model = Counting()
    model.generation_config = type("Settings", (), {"eos_token_id": 3})()
    assert end_tokens(model) == {3}
    assert end_tokens(torch.nn.Linear(1, 1)) == frozenset()


def test_the_pieces_join_to_the_text_and_split_no_character():
    tokenizer = load_tokenizer(bundled.folder())
    text = "naïve → 日本 done"
    pieces = list(stream_text(iter(tokenizer(text)["input_ids"]), tokenizer))
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_the_same_seed_writes_the_same_text(run, checkpoint):
    options = ("--max-new-tokens", "8", "--json", "--seed")
    first, again, other = (run("generate", checkpoint, *options, s).json for s in (1, 1, 2))
    assert first["text"] == again["text"] != other["text"]
    assert first["tokens"] == 8


def test_the_text_goes_to_stdout_and_the_rate_to_stderr(run, checkpoint):
    result = run("generate", checkpoint, "--prompt", "Once", "--max-new-tokens", "3")
    assert result.code == 0
    assert result.out.startswith("Once")
    assert result.err.endswith("tokens/s\n")


def test_a_checkpoint_writes_on_from_any_prompt_length(run, checkpoint):
    for prompt in ("a", "a longer prompt, of many tokens " * 4):
        options = ("--prompt", prompt, "--max-new-tokens", "2", "--json")
        assert run("generate", checkpoint, *options).json["tokens"] == 2


def test_an_empty_prompt_is_refused(run, checkpoint):
    result = run("generate", checkpoint, "--prompt", "")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: --prompt: the prompt has no tokens\n"
