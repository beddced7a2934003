"""The printed literals are catalog entries: they parse, and have the error that was printed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from unspool.decode.interpret import state_values
from unspool.explore.train import Effort
from unspool.spec.catalog import multiply, trellis
from unspool.spec.format import Format


@pytest.fixture(autouse=True)
def _little_effort(monkeypatch):
    less = partial(Effort, rings=32, final_rings=32, final_rounds=1)
    monkeypatch.setattr("unspool.explore.train.Effort", less)


QUICK = ("--starts", "1", "--rounds", "1")


def entry(module, literal: str) -> Format:
    (fmt,) = eval("(" + literal + ")", vars(module))
    return fmt


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--window", "4", "--plain", "1", "--operand", "E2M1"), "t2-e2m1"),
        (("--window", "5", "--plain", "0", "--operand", "e2m3"), "t1-e2m3"),
        (("--window", "3", "--plain", "2", "--lanes", "2", "--operand", "E2M3"), "t1.5-e2m3"),
    ],
)
def test_a_trained_table_is_a_catalog_entry(run, options, name):
    found = run("train", *options, *QUICK, "--json").json
    fmt = entry(trellis, found["literal"])
    assert fmt.name == name
    assert fmt.source == found["command"]
    operand_values = fmt.code.operand.values().astype(np.float32)
    assert np.array_equal(state_values(fmt.code), operand_values[np.array(found["bits"])])
    assert max(len(line) for line in found["literal"].splitlines()) <= 100


def test_a_found_code_is_a_catalog_entry(run):
    found = run("search", "--bits", "2", "--operand", "e2m1", "--trials", "1", "--json").json
    fmt = entry(multiply, found["literal"])
    assert fmt.code.to_json() == found["code"]
    assert fmt.source == found["command"]


def test_the_text_ends_with_the_error(run):
    result = run("train", "--window", "3", "--plain", "1", "--operand", "E2M1", *QUICK)
    assert result.out.splitlines()[-1].startswith("# mean squared error on a unit Gaussian: 0.")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("train", "--operand", "FP16"), "no table of that operand"),
        (("train", "--window", "12", "--plain", "2"), "the table is too large"),
        (("search", "--operand", "INT8"), "no multiply code to that operand"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_made_is_one_line(run, arguments, complaint):
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert complaint in result.err
