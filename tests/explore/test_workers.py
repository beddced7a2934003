"""A search finds the same, byte for byte, whoever scores its codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from unspool.errors import UnspoolError
from unspool.explore import explorer
from unspool.explore.explorer import Settings, explore
from unspool.explore.workers import LOCAL, workers

SETTINGS = Settings(bits=1, operand="E4M3", target="sm90", memory=4)


def test_a_ray_cluster_and_processes_write_the_same_log(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(explorer, "BATCH", 6)
    logs = {name: tmp_path / name for name in ("alone", "processes", "ray")}
    others = {"alone": {}, "processes": {"jobs": 2}, "ray": {"jobs": 2, "ray": LOCAL}}
    for name, log in logs.items():
        explore(SETTINGS, goes_on=lambda state: state.generation < 2, log=log, **others[name])
    written = {name: log.read_bytes() for name, log in logs.items()}
    assert written["ray"] == written["processes"] == written["alone"]
    assert written["alone"].count(b'"found"') > 6


@pytest.mark.parametrize("address", ["localhost:1", "nowhere"])
def test_a_cluster_that_is_not_there_is_said_at_once(address):
    with (
        pytest.raises(UnspoolError, match="no Ray cluster answers"),
        workers(1, address),
    ):
        pass
