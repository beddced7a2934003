"""The bundled model and its texts: what the word `demo` stands for wherever a model is asked for.

A folder of that name is reached as `./demo`.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from unspool.errors import EvaluationError

NAME = "demo"

CALIBRATION = "calibration.txt"
"""The bundled calibration text, beside the model. It shares no window of 32 tokens with the
held-out text, which figures are measured on."""

ModelPath = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="A model's or checkpoint's folder, a hub id, or the word demo."
    ),
]

Activations = Annotated[
    str,
    typer.Option(
        "--activations", help="What quantized layers round theirs to: auto, int8, bf16 or float32."
    ),
]


def folder() -> Path:
    """The folder of the bundled model."""
    return Path(str(resources.files("unspool") / "data" / "demo-model"))


def resolve(path: str) -> str:
    """The path of a model: that of the bundled one for the word `demo`."""
    return str(folder()) if path == NAME else path


def read_text(file: Path | None, *paths: str | None) -> str:
    """An evaluation text; without a file the held-out one, if one of the models is the bundled."""
    if file is None:
        if NAME not in paths:
            raise EvaluationError(
                "no text to evaluate on", allowed=f"--text FILE, or {NAME} as model or baseline"
            )
        file = folder() / "heldout.txt"
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EvaluationError("not a text in UTF-8", where=str(file), found=str(error)) from error
    except OSError as error:
        raise EvaluationError("cannot be read", where=str(file), found=error.strerror) from error
