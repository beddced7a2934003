"""A fake driver, for tests on machines without a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The fake driver, the module beside this file."""
    path = Path(__file__).with_name("fake_driver.py")
    spec = importlib.util.spec_from_file_location("fake_driver", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
