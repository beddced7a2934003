"""The pure rooms need numpy and nothing else: a GPU machine has no more, and installs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
ROOMS = ("errors", "native", "spec", "decode", "pack", "encode", "matmul", "perf")
ABSENT = ("jaxtyping", "typer", "rich", "safetensors", "torch", "transformers", "matplotlib")

PROBE = """
import importlib, sys
absent, modules = sys.argv[1].split(), sys.argv[2].split()
for name in absent:
    sys.modules[name] = None  # an import of it fails
for name in modules:
    importlib.import_module(name)
"""


def modules() -> list[str]:
    files = [path for room in ROOMS for path in (SOURCE / "unspool" / room).rglob("*.py")]
    files += [SOURCE / "unspool" / f"{room}.py" for room in ROOMS[:2]]
    names = [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in files]
    return sorted(name.removesuffix(".__init__") for name in names)


def test_every_module_of_the_pure_rooms_imports_with_numpy_alone():
    names = modules()
    assert len(names) > 60
    child = [sys.executable, "-W", "error", "-c", PROBE, " ".join(ABSENT), " ".join(names)]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
