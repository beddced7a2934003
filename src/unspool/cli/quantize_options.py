"""The options of `unspool quantize`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

TOKENS = 65536
"""Calibration tokens unless said otherwise: 16 k are too few (docs/log.md)."""


class PassType(StrEnum):
    """Types that calibration's passes can have; torch's names."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Fate(StrEnum):
    """What becomes of layers that no token of the text reaches; `model.calibrate.UNREACHED`."""

    ERROR = "error"
    PLAIN = "plain"


Out = Annotated[Path | None, typer.Option("--out", "-o", help="The new folder.")]
FormatName = Annotated[
    str | None, typer.Option("--format", "-f", help="A format by name, e.g. t3-e2m3.")
]
Bits = Annotated[
    float | None,
    typer.Option("--bits", "-b", help="1, 1.5, 2, 2.5, 3, 3.5 or 4: the default format."),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="A format per layer, by `unspool allocate`."),
]
Head = Annotated[
    str | None, typer.Option("--head", metavar="FORMAT", help="Quantize the output head too.")
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", help="Only layers that match: *.mlp.* or re:layers.[0-3]."),
]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="Not the layers that match.")]
CalibrationFile = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="A text like those the model is for, or the word demo: errors are made where it "
        "notices them least. Takes minutes to hours, and pays most below 4 bits.",
    ),
]
CalibrationTokens = Annotated[
    int, typer.Option(min=1, help="Tokens of it that are used, from its start.")
]
CalibrationType = Annotated[
    PassType,
    typer.Option(
        "--calibration-dtype",
        help="What linear layers and attention multiply in while the text walks through the model: "
        "bfloat16 takes half the time with AVX512_BF16.",
    ),
]
Importance = Annotated[
    bool,
    typer.Option(
        "--importance",
        help="Weigh the text's tokens by what the model's loss notices of them: squared gradients, "
        "from one backward sweep.",
    ),
]
Unreached = Annotated[
    Fate,
    typer.Option(
        help="What becomes of experts that no token of the text reaches: the run ends, or they are "
        "rounded plainly.",
    ),
]
Tune = Annotated[
    int, typer.Option(min=0, help="Steps that then tune scales and norms on that text; try 120.")
]
TuneBlocks = Annotated[
    int,
    typer.Option(
        "--tune-blocks",
        min=0,
        help="Steps that train the scales of each block together once its layers are encoded, on "
        "that text; try 40. Goes with --work.",
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(
        "--work", metavar="DIR", help="Keep every finished block there, so that a run can go on."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the work folder.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="cuda: where the trellis searches of plain encoding run, and --tune. The bytes of "
        "searches are the same. Calibration's own passes and searches, --importance, "
        "--tune-blocks and formats without a trellis stay on the CPU. Not run on a GPU so far.",
    ),
]
Passes = Annotated[
    int | None,
    typer.Option(min=2, help="Viterbi passes per ring; twice as many take twice as long."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Default: one per core.")]
ShardSize = Annotated[str, typer.Option(help="Largest file of weights.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print sizes, write nothing.")]
