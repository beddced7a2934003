"""Where figures come from: GPU, driver, versions, commit, date. With numpy and torch alone."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import unspool

if TYPE_CHECKING:
    from gpu.board import Board

PEERS = ("humming-kernels", "marlin", "triton", "cuda-core")


def facts(board: Board) -> dict[str, Any]:
    """The head of the results."""
    return {
        **board.facts(),
        "driver": _driver(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "unspool": unspool.__version__,
        "packages": {name: found for name in PEERS if (found := _version(name))},
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
    }


def commit() -> str:
    """The commit, or what stands in for it in a copy without history."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return _said(command, Path(__file__).parent) or os.environ.get("UNSPOOL_COMMIT", "none")


def _driver() -> str:
    """The driver's own version: the kernel module's."""
    version = Path("/proc/driver/nvidia/version")
    lines = version.read_text(encoding="utf-8").splitlines() if version.is_file() else []
    words = lines[0].split() if lines else []
    return next((w for w in words if w[:1].isdigit() and w.count(".") >= 1), "unknown")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _said(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    except OSError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
