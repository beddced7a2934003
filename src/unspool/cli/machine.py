"""The machine and the versions that figures were taken with."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import unspool
from unspool import native

PACKAGES = ("numpy", "torch", "transformers", "safetensors")


def machine() -> dict[str, Any]:
    """Processor, cores in use, system, versions, and whether the compiled library runs."""
    return {
        "processor": _processor(),
        "cores": native.threads(None),
        "system": platform.platform(),
        "python": platform.python_version(),
        "unspool": unspool.__version__,
        **{name: metadata.version(name) for name in PACKAGES},
        "compiled_library": native.why_not() or "in use",
    }


def _processor() -> str:
    """The processor's name as Linux tells it, else the architecture."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
