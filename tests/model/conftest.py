"""Folders of tiny mixtures of experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixtures import MIXTURES, mixture


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the models, in bfloat16, as transformers stores them."""
    base = tmp_path_factory.mktemp("mixtures")
    for name in MIXTURES:
        mixture(name).to(torch.bfloat16).save_pretrained(base / name)
    return {name: base / name for name in MIXTURES}
