"""`quantize --device`: the search on another device, here CPU tensors in its place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from unspool.cli import launch
from unspool.model import device_search
from unspool.model.device_search import DeviceSearch

FORMAT = ("--format", "t2-e2m1:h32")


@pytest.fixture
def searched(monkeypatch) -> list[int]:
    """Weights per call of the search on a device, whose name is cuda."""
    calls: list[int] = []
    search = DeviceSearch.__call__

    def counted(self, values, planes, targets, **how):
        calls.append(targets.size)
        return search(self, values, planes, targets, **how)

    monkeypatch.setattr(device_search, "available", lambda name: torch.device("cpu"))
    monkeypatch.setattr(DeviceSearch, "__call__", counted)
    return calls


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "block by block"])
def test_the_checkpoint_is_that_of_the_cpu(run, tiny, tmp_path, searched, streamed):
    for name, device in (("cpu", ()), ("other", ("--device", "cuda"))):
        work = ("--work", tmp_path / f"work-{name}") if streamed else ()
        done = run("quantize", tiny, "-o", tmp_path / name, *FORMAT, *device, *work, "--json")
        assert bool(searched) == bool(device)
    assert sum(searched) == done.json["weights"]
    assert content(tmp_path / "cpu") == content(tmp_path / "other")


def test_a_run_goes_on_on_another_device(run, tiny, tmp_path, searched):
    options = ("quantize", tiny, *FORMAT, "--work", tmp_path / "work")
    assert run(*options, "-o", tmp_path / "cpu").code == 0
    (tmp_path / "work" / "block-00001.safetensors").unlink()
    assert run(*options, "-o", tmp_path / "other", "--resume", "--device", "cuda").code == 0
    assert searched
    assert content(tmp_path / "cpu") == content(tmp_path / "other")


def test_a_calibrated_model_has_its_head_searched_there(run, tiny, tmp_path, searched, text):
    options = ("--calibration", text, "--calibration-tokens", "256", "--head", "t2-e2m1:h32")
    done = run("quantize", tiny, "-o", tmp_path / "o", *FORMAT, *options, "--device", "cuda")
    assert done.code == 0, done.err
    assert sum(searched) == 4096 * 64


def test_an_estimate_times_the_search_that_will_run(run, tiny, monkeypatch, searched):
    options = ("quantize", tiny, *FORMAT, "--dry-run", "--json", "--threads", "1")
    search = DeviceSearch.__call__

    def slow(*given, **how):
        time.sleep(0.5)
        return search(*given, **how)

    monkeypatch.setattr(DeviceSearch, "__call__", slow)
    found = run(*options, "--device", "cuda").json
    estimate = found["estimate"]
    assert found["device"] == "cuda"
    assert searched[0] < searched[1]  # once to set up, then in earnest
    assert estimate["encoding_seconds"] >= 0.5 * found["weights"] / searched[1]
    shown = run(*(o for o in options if o != "--json"), "--device", "cuda").out
    assert "s on 1 threads and cuda (" in shown


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--device", "cuda:77"), "cuda:77: no such device here; found"),
        (("--device", "gpu"), "gpu: no such device here; found"),
        (("--device", "cuda", "--calibration", "demo"), "--device: calibration runs on the CPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_line_before_any_work(
    run, tiny, tmp_path, monkeypatch, options, complaint
):
    def too_late(*given):
        raise AssertionError("the model was looked at")

    monkeypatch.setattr("unspool.model.load.empty_model", too_late)
    done = run("quantize", tiny, "-o", tmp_path / "out", *FORMAT, *options)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert complaint in done.err
    assert list(tmp_path.iterdir()) == []


def test_each_of_several_processes_has_a_device(monkeypatch):
    assert launch.device_each("cuda") == "cuda"
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    wanted = {None: None, "cpu": "cpu", "cuda": "cuda:1", "cuda:0": "cuda:0"}
    assert {name: launch.device_each(name) for name in wanted} == wanted
