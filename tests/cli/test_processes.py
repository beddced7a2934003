"""`torchrun` and the command line: the bytes of one process, the output of the first."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Each of the processes imports torch and transformers first: 15 s for two on two cores.
pytestmark = pytest.mark.slow


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += ["--nproc-per-node", str(count), "-m", "unspool", *map(str, arguments)]
    return subprocess.run(start, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    ("model", "count", "calibrated"),
    [("tiny", 2, True), ("tiny", 4, True), ("tiny", 2, False), ("tiny", 4, False),
     ("mixture", 3, True)],
)  # fmt: skip
def test_any_number_of_processes_gives_the_bytes_of_one(
    run, request, tmp_path, text, model, count, calibrated
):
    source = request.getfixturevalue(model)
    options = ["--format", "t2-e2m1:h32", "--json"]
    options += ["--calibration", text, "--calibration-tokens", "1024"] if calibrated else []
    options += ["--importance", "--tune-blocks", "3"] if calibrated else []
    one = run("quantize", source, "-o", tmp_path / "one", *options, "--work", tmp_path / "w").json
    done = torchrun(count, "quantize", source, "-o", tmp_path / "many", *options)
    assert done.returncode == 0, done.stderr
    many = json.loads(done.stdout)
    assert many["layers"] == one["layers"]
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "many" / file.name).read_bytes(), file.name


def test_an_error_is_told_once(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    done = torchrun(2, "quantize", tiny, "-o", tmp_path / "out", "--bits", "2")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert "the output exists" in told[0]
    assert done.stdout == ""
