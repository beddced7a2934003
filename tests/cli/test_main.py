from __future__ import annotations

import subprocess
import sys

import pytest

import unspool
from unspool.cli.main import VERBS, run

VERB_NAMES = ["formats", *VERBS]

HELP_PROBE = """
import sys, time
from unspool.cli.main import status
status(["--help"])
heavy = {"torch", "transformers", "numpy", "matplotlib"} & set(sys.modules)
print(time.process_time(), *sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", VERB_NAMES)
def test_every_verb_has_help_and_json(run, verb):
    result = run(verb, "--help")
    assert result.code == 0
    assert "Usage: unspool" in result.out
    assert "--json" in result.out


def test_the_help_lists_every_verb_and_the_exit_codes(run):
    shown = run("--help").out
    assert all(verb in shown for verb in VERB_NAMES)
    assert "Exit codes" in shown


def test_no_arguments_show_the_help(run):
    result = run()
    assert (result.code, result.err) == (0, "")
    assert "Usage: unspool" in result.out


def test_the_help_is_quick_and_loads_nothing_heavy():
    # Measured 0.26 s of processor time, Python's own start included; torch alone takes 1 s.
    child = [sys.executable, "-c", HELP_PROBE]
    seconds, *heavy = subprocess.run(
        child, capture_output=True, text=True, check=True
    ).stderr.split()
    assert heavy == []
    assert float(seconds) < 0.5


def test_the_version_is_the_package_s(run):
    assert run("--version").out == f"unspool {unspool.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("eval",),
        ("quantize", "demo", "--bits", "many"),
        ("generate", "demo", "--max-new-tokens", "0"),
        ("formats", "--frob"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(run, arguments):
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


def test_an_error_under_json_is_one_json_object(run):
    result = run("formats", "show", "t2-e2m", "--json")
    assert result.code == 2
    error = result.json["error"]
    assert error["kind"] == "DeclarationError"
    assert error["found"] == "t2-e2m"
    assert "t2-e2m1" in error["allowed"]


def test_of_a_table_an_error_under_json_has_the_names(run):
    error = run("bound", "t2-e2m1", "--gpu", "a100", "--json").json["error"]
    assert error["allowed"] == ["h100", "h200", "b200", "rtx4090", "rtx5090"]


def test_a_wrong_option_under_json_is_one_json_object(run):
    result = run("formats", "--frob", "--json")
    assert (result.code, result.json["error"]["kind"]) == (2, "UsageError")


def test_an_interrupt_ends_with_130(run, monkeypatch):
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unspool.spec.catalog.parse", interrupted)
    assert run("formats", "show", "t2-e2m1").code == 130


def test_a_bug_ends_with_1_and_a_traceback(run, monkeypatch):
    def broken(name: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("unspool.spec.catalog.parse", broken)
    result = run("formats", "show", "t2-e2m1")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "RuntimeError: a bug" in result.err


def test_a_bug_under_json_is_one_json_object_too(run, monkeypatch):
    def broken(name: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("unspool.spec.catalog.parse", broken)
    result = run("formats", "show", "t2-e2m1", "--json")
    assert result.code == 1
    assert result.json == {"error": {"kind": "RuntimeError", "what": "a bug"}}


def test_what_the_system_refuses_is_one_line_and_exit_code_2(run, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "distortion.json")

    monkeypatch.setattr("unspool.evaluate.gaussian.measure_all", full)
    result = run("formats", "--measure")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: distortion.json: No space left on device\n"
    described = run("formats", "--measure", "--json").json["error"]
    assert (described["kind"], described["where"]) == ("OSError", "distortion.json")


def test_the_console_script_exits_with_the_code(capsys):
    with pytest.raises(SystemExit) as ended:
        run(["formats", "show", "nothing"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: no such format")
