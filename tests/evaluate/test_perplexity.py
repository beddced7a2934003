"""Quality measures on models whose answers are known."""

from __future__ import annotations

from math import exp, log
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from unspool.errors import EvaluationError
from unspool.evaluate.divergence import evaluate_models, kl_divergence
from unspool.evaluate.perplexity import (
    POSITIONS,
    convention,
    default_window,
    tokenize,
    windows,
)
from unspool.evaluate.speed import measure_speed


class Bigram(nn.Module):
    """A causal model: the logits of a position depend on its token alone."""

    def __init__(self, table: torch.Tensor, longest: int = 64, dtype=torch.float32):
        super().__init__()
        self.table, self.dtype = table, dtype
        text = SimpleNamespace(max_position_embeddings=longest)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.lengths: list[int] = []

    def forward(self, ids, use_cache=False, past_key_values=None):
        self.lengths.append(ids.shape[1])
        logits = self.table[ids].to(self.dtype)
        return SimpleNamespace(logits=logits, past_key_values=past_key_values)


def some_table(seed: int, vocabulary: int = 11) -> torch.Tensor:
    return torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))


def some_tokens(count: int, vocabulary: int = 11) -> torch.Tensor:
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(9))


def perplexity(model: nn.Module, tokens: torch.Tensor, window: int, **options) -> float:
    (row,) = evaluate_models({"model": model}, None, tokens, window, **options)
    return row.perplexity


def log_probabilities(table: torch.Tensor) -> np.ndarray:
    rows = table.numpy().astype(np.float64)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    found = perplexity(Bigram(torch.zeros(11, 11)), some_tokens(100), 10)
    assert found == pytest.approx(11, rel=1e-6)


def test_windows_do_not_overlap_and_the_rest_is_dropped():
    tokens = torch.arange(25)
    assert windows(tokens, 10).tolist() == [list(range(10)), list(range(10, 20))]
    assert windows(tokens, 10, max_tokens=19).tolist() == [list(range(10))]


def test_every_token_but_the_first_of_a_window_is_predicted():
    table, tokens = some_table(0), some_tokens(3 * 600 + 5)
    found = perplexity(Bigram(table), tokens, 600)
    assert POSITIONS < 600
    logp = log_probabilities(table)
    cut = tokens[:1800].reshape(3, 600).numpy()
    expected = np.exp(-np.mean(logp[cut[:, :-1], cut[:, 1:]]))
    assert found == pytest.approx(expected, rel=1e-6)
    assert "windows of 600 tokens, 599 predictions" in convention(600)


def test_the_window_is_2048_or_what_the_model_takes():
    assert default_window(Bigram(some_table(0), longest=64)) == 64
    assert default_window(Bigram(some_table(0), longest=8192)) == 2048
    assert default_window(nn.Identity()) == 2048


@pytest.mark.parametrize(("count", "limit"), [(9, None), (0, None), (30, 9)])
def test_a_text_shorter_than_a_window_is_an_error(count, limit):
    with pytest.raises(EvaluationError, match=r"shorter than a window.*allowed: 10 or more"):
        perplexity(Bigram(some_table(0)), some_tokens(count), 10, max_tokens=limit)


def test_logits_that_are_no_numbers_are_an_error():
    with pytest.raises(EvaluationError, match="not a number"):
        perplexity(Bigram(torch.full((11, 11), float("nan"))), some_tokens(20), 10)


def test_a_text_is_tokenized_once_as_a_whole():
    calls = []

    def tokenizer(text, **options):
        calls.append(text)
        return {"input_ids": [0, *(ord(letter) for letter in text)]}

    assert tokenize("ab\n\nc", tokenizer).tolist() == [0, 97, 98, 10, 10, 99]
    assert calls == ["ab\n\nc"]


def test_divergence_of_known_distributions():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    expected = 0.5 * log(2) - 0.25 * log(2)
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-6)
    assert kl_divergence(p.log() + 3, p.log()).item() == pytest.approx(0, abs=1e-7)


def test_rows_compare_every_model_with_the_baseline():
    tables = {"a": some_table(1), "b": some_table(2), "same": some_table(0)}
    base, tokens = some_table(0), some_tokens(1250)
    models = {name: Bigram(table) for name, table in tables.items()}
    rows = {row.name: row for row in evaluate_models(models, Bigram(base), tokens, 400)}
    assert list(rows) == ["baseline", "a", "b", "same"]
    logp = log_probabilities(base)
    at = tokens[:1200].reshape(3, 400)[:, :-1].reshape(-1).numpy()
    for name, table in tables.items():
        logq = log_probabilities(table)
        each = (np.exp(logp) * (logp - logq)).sum(-1)[at]
        agreed = (logp.argmax(-1) == logq.argmax(-1))[at].mean()
        assert rows[name].kl == pytest.approx(each.mean(), abs=1e-6)
        assert rows[name].kl_error == pytest.approx(each.std() / len(at) ** 0.5, abs=1e-6)
        assert rows[name].top1 == agreed
        assert rows[name].tokens == 3 * 399
        assert rows[name].perplexity == pytest.approx(
            perplexity(models[name], tokens, 400), rel=1e-9
        )
    assert rows["same"].kl == rows["baseline"].kl == 0
    assert rows["same"].top1 == 1


def test_each_model_runs_once_per_window():
    baseline, model, seen = Bigram(some_table(0)), Bigram(some_table(1)), []
    evaluate_models(
        {"x": model}, baseline, some_tokens(100), 10, max_tokens=55,
        progress=lambda *call: seen.append(call[:2]),
    )  # fmt: skip
    assert baseline.lengths == model.lengths == [10] * 5
    assert seen == [(done, 5) for done in range(5)]


def test_without_a_baseline_there_is_no_divergence():
    (row,) = evaluate_models({"x": Bigram(some_table(1))}, None, some_tokens(100), 10)
    assert (row.kl, row.kl_error, row.top1) == (None, None, None)
    assert row.perplexity > 1


def test_half_precision_logits_are_summed_in_double():
    model = Bigram(torch.zeros(11, 11), dtype=torch.bfloat16)
    assert exp(log(perplexity(model, some_tokens(5000), 50))) == pytest.approx(11, rel=1e-6)


def test_speed_counts_prompt_and_decoded_tokens():
    model = Bigram(some_table(0))
    speed = measure_speed(model, some_tokens(40), prompt_tokens=16, decode_tokens=5, repeats=2)
    assert model.lengths == ([16] + [1] * 5) * 3
    assert speed.decode > 0
    assert speed.prompt > 0
    assert (speed.prompt_tokens, speed.decode_tokens, speed.repeats) == (16, 5, 2)
    with pytest.raises(EvaluationError, match="shorter than the prompt"):
        measure_speed(model, some_tokens(4), prompt_tokens=16)
