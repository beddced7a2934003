"""Products as a GPU would compute them, run on the CPU; a fake driver. Compiled, counted,
simulated; not run on a GPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from unspool.decode.machine import MACHINES
from unspool.matmul.cuda import simulate
from unspool.matmul.cuda.activations import quantize
from unspool.matmul.cuda.recipe import recipe
from unspool.matmul.cuda.simulated import Product
from unspool.matmul.reference import decode_values
from unspool.pack.random import random_matrix
from unspool.spec.catalog import FORMATS

MakeProduct = Callable[..., Product]


@pytest.fixture
def compiler() -> None:
    reason = simulate.why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def product(compiler: None) -> MakeProduct:
    """product(format name, machine, activations, n=, k=, ...): of random codes."""

    def make(
        name: str, machine: str, activations: str = "auto", *, n: int = 300, k: int = 520,
        experts: int = 1, **given
    ) -> Product:  # fmt: skip
        fmt = FORMATS[name]
        made = recipe(fmt, MACHINES[machine], activations)
        matrices = tuple(random_matrix(fmt, n, k, seed) for seed in range(experts))
        return Product(matrices=matrices, made=made, **given)

    return make


@pytest.fixture
def expected() -> Callable[[Product, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """In float64: the product of the rounded activations, and the sum of its terms' magnitudes."""

    def expect(found: Product, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rounded = quantize(x.astype(np.float32), found.made).values
        weights = decode_values(found.matrix).astype(np.float64)[: found.matrix.shape[0]]
        rounded = rounded[:, : weights.shape[1]]
        return rounded @ weights.T, np.abs(rounded) @ np.abs(weights).T

    return expect


@pytest.fixture
def tokens() -> Callable[..., np.ndarray]:
    """tokens(m, k): Gaussian activations."""

    def make(m: int, k: int, seed: int = 1) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal((m, k)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The fake driver, the module beside this file."""
    path = Path(__file__).with_name("fake_driver.py")
    spec = importlib.util.spec_from_file_location("fake_driver", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
