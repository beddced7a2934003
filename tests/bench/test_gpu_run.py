"""The GPU run goes on after a stage that breaks, keeps to its time and writes what it has.

On a fake GPU: compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

KEYS = {"stage", "status", "seconds", "reason", "wrong", "facts", "rows"}


@pytest.fixture
def go(board_of, tmp_path):
    """Runs functions as stages; the document that was written, and the exit code."""

    def run(*functions, seconds: float = 1e9, share: float = 100):
        from gpu import run as runner
        from gpu.stage import Deadline, Stage

        stages = [Stage(name=f.__name__, run=f, seconds=share) for f in functions]
        path = tmp_path / "results" / "gpu.json"
        document = runner.run(
            board_of(), stages, {"gpu": "fake"}, path=path, whole=Deadline(seconds=seconds),
            say=lambda _: None,
        )  # fmt: skip
        assert json.loads(path.read_text()) == document
        assert [entry.name for entry in path.parent.iterdir()] == ["gpu.json"]
        return document["stages"], runner.exit_code(document)

    return run


def good(given) -> None:
    given.findings.rows.append({"x": 1})


def broken(given) -> None:
    given.findings.rows.append({"x": 2})
    raise ZeroDivisionError("of course")


def wrong(given) -> None:
    given.findings.wrong.append("one bit")


def absent(given) -> None:
    from gpu.stage import AbsentError

    raise AbsentError("there is no such thing here")


def cut(given) -> None:
    given.findings.cut = True


def test_a_broken_stage_keeps_its_rows_and_its_traceback_and_the_others_run(go):
    stages, code = go(good, broken, good)
    assert [stage["status"] for stage in stages] == ["passed", "failed", "passed"]
    assert stages[1]["rows"] == [{"x": 2}]
    assert "ZeroDivisionError: of course" in stages[1]["reason"]
    assert "in broken" in stages[1]["reason"]
    assert code == 1
    assert all(set(stage) == KEYS for stage in stages)


@pytest.mark.parametrize(
    ("stage", "status", "code"),
    [(good, "passed", 0), (wrong, "failed", 1), (absent, "absent", 0), (cut, "cut", 4)],
)
def test_a_stage_has_a_status_and_the_run_a_code(go, stage, status, code):
    (found,), exit_code = go(stage)
    assert (found["status"], exit_code) == (status, code)
    if stage is absent:
        assert found["reason"] == "there is no such thing here"


def test_what_failed_goes_before_what_was_cut(go):
    assert go(cut, broken)[1] == 1


def test_no_stage_begins_after_the_time_is_up(go):
    stages, code = go(good, good, seconds=-1)
    assert [stage["status"] for stage in stages] == ["cut", "cut"]
    assert code == 4


def test_a_stage_that_hangs_is_interrupted(go, monkeypatch):
    from gpu import run

    def hanging(given) -> None:
        time.sleep(30)

    monkeypatch.setattr(run, "GRACE", 0.05)
    start = time.monotonic()
    stages, code = go(hanging, good, seconds=1)
    assert time.monotonic() - start < 10
    assert [stage["status"] for stage in stages] == ["failed", "passed"]
    assert "Interrupted: interrupted" in stages[0]["reason"]
    assert code == 1


def test_nothing_that_catches_errors_swallows_the_interruption(go, monkeypatch):
    from gpu import run

    def swallowing(given) -> None:
        for _ in range(30):
            with contextlib.suppress(Exception):
                time.sleep(1)

    monkeypatch.setattr(run, "GRACE", 0.05)
    start = time.monotonic()
    stages, _ = go(swallowing, seconds=0.5)
    assert time.monotonic() - start < 10
    assert stages[0]["status"] == "failed"


def test_rows_are_written_while_a_stage_runs(go, tmp_path):
    seen = []

    def looking(given) -> None:
        for number in range(2):
            given.findings.rows.append({"x": number})
            given.keep()
            seen.append(json.loads((tmp_path / "results" / "gpu.json").read_text())["stages"])

    go(good, looking)
    assert [[made["status"] for made in stages] for stages in seen] == 2 * [["passed", "running"]]
    assert [len(stages[-1]["rows"]) for stages in seen] == [1, 2]


def test_a_stage_without_a_row_has_not_passed(go):
    stages, code = go(lambda given: None)
    assert (stages[0]["status"], code) == ("failed", 1)
    assert "no row" in stages[0]["reason"]


def test_a_broken_gpu_ends_its_stage_in_one_line(go):
    def breaks(given) -> None:
        given.board.fault = "an illegal access (700)"
        try:
            raise ZeroDivisionError("a kernel\nof course")
        except ZeroDivisionError as error:
            given.go_on(error)

    def survives(given) -> None:
        given.go_on(ZeroDivisionError())
        good(given)

    stages, _ = go(survives, breaks)
    assert [stage["status"] for stage in stages] == ["passed", "failed"]
    assert stages[1]["reason"] == (
        "ended early: ZeroDivisionError: a kernel; since then every call fails: "
        "an illegal access (700)"
    )


def test_the_shares_are_the_whole_and_what_one_leaves_goes_to_those_behind_it():
    from gpu.__main__ import SECONDS, STAGES, _stages
    from gpu.stage import Deadline, allowance

    stages = _stages()
    assert tuple(stage.name for stage in stages) == STAGES
    assert sum(stage.seconds for stage in stages) == SECONDS
    assert STAGES.index("benchmark") < min(map(STAGES.index, ("search", "sanitizer")))
    for whole in (SECONDS, 100.0):
        deadline = Deadline(seconds=whole, clock=lambda: 0.0)
        assert allowance(stages, deadline) == pytest.approx(55 * whole / SECONDS)
        assert allowance(stages[-1:], deadline) == whole
    left = Deadline(seconds=SECONDS - 10.0, clock=lambda: 0.0)  # decode took 10 of its 55
    assert allowance(stages[2:], left) > stages[2].seconds


def test_stages_are_chosen_by_name():
    from gpu.__main__ import STAGES, options

    assert options(["--only", "probe", "decode"]).only == ["probe", "decode"]
    assert options(["--without", "m2-e4m3 fp8", "x"]).without == ["m2-e4m3 fp8", "x"]
    assert set(STAGES) == {"decode", "products", "search", "sanitizer", "probe", "benchmark"}
    with pytest.raises(SystemExit, match="2"):
        options(["--only", "nothing"])


@pytest.fixture
def bare() -> dict[str, str]:
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT / "bench")))
    return {**os.environ, "PYTHONPATH": path, "UNSPOOL_NATIVE": "", "PYTHONDONTWRITEBYTECODE": "1"}


def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_three(bare):
    if os.path.exists("/dev/nvidiactl"):  # noqa: PTH110
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "gpu"],
        env=bare, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith("no GPU to run on: GPU: no NVIDIA driver")
    assert done.stdout.count("\n") == 1


BLOCKED = """
import importlib, pathlib, sys
for name in ("jaxtyping", "typer", "rich", "safetensors", "transformers"):
    sys.modules[name] = None
for path in pathlib.Path(sys.argv[1]).rglob("*.py"):
    parts = path.relative_to(sys.argv[1]).with_suffix("").parts
    if parts[-1] != "__main__":
        importlib.import_module(".".join(("gpu", *parts)).removesuffix(".__init__"))
import gpu.__main__
assert "torch" not in sys.modules
"""


def test_every_module_imports_with_numpy_alone(bare):
    command = [sys.executable, "-W", "error", "-c", BLOCKED, str(ROOT / "bench" / "gpu")]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def main_on(board_of, monkeypatch, tmp_path):
    """The whole command on a fake GPU."""

    def run(*arguments: str):
        from gpu import __main__ as program
        from gpu import board, entrants

        monkeypatch.setattr(entrants, "ENTRANTS", ())
        monkeypatch.setattr(board, "Board", board_of)
        monkeypatch.setattr(program, "RESULTS", tmp_path)
        return program.main(arguments)

    return run


def test_the_command_writes_results_and_calibration(main_on, tmp_path, capsys):
    assert main_on("--together", "--only", "probe", "products") == 0
    results = json.loads((tmp_path / "gpu-nvidia-fake-100.json").read_text())
    assert [stage["stage"] for stage in results["stages"]] == ["products", "probe"]
    assert results["schema"] == 1
    assert {"gpu", "driver", "commit", "python", "numpy", "unspool", "date"} <= set(results)
    assert "no product of ours is plugged in" in results["stages"][0]["reason"]
    measured = json.loads((tmp_path / "calibration-nvidia-fake-100.json").read_text())
    assert measured["results_per_clock"]["PRMT"] == 64
    assert measured["results_per_clock"]["HFMA2"] == 128
    assert set(measured["launch_us"]) == {"stream", "host", "graph"}
    assert list(measured["copy_tbps"]) == ["1048576", "2097152"]
    assert list(measured["read_tbps"]) == ["1048576", "2097152"]
    assert "written: calibration-nvidia-fake-100.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--formats", "m2-e4m4"), "found m2-e4m4; allowed: "),
        (("--json", "."), "--json: no file can be written there; found ."),
        (("--json", "/dev/null/x.json"), "found /dev/null/x.json"),
    ],
)
def test_a_wrong_name_or_place_is_told_before_anything_runs(main_on, arguments, part, capsys):
    assert main_on("--together", *arguments) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert part in line


@pytest.mark.parametrize("seconds", ["-3", "0", "nan", "inf"])
def test_a_run_takes_some_seconds(main_on, seconds):
    with pytest.raises(SystemExit) as ended:
        main_on("--seconds", seconds)
    assert ended.value.code == 2


def test_what_cannot_be_imported_is_one_line(main_on, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gpu.entrants", None)
    assert main_on() == 3
    assert capsys.readouterr().out.startswith("cannot start: ")


def test_nothing_is_written_where_nothing_shall_be(main_on, tmp_path):
    main_on("--only", "products", "--no-json")
    assert list(tmp_path.iterdir()) == []
