"""`unspool explore`: search for codes that decode cheaply, beside published ones."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli.inputs import check_place
from unspool.cli.terminal import AsJson, Quiet, print_json, print_table, progress, say
from unspool.errors import DeclarationError

if TYPE_CHECKING:
    from unspool.explore.explorer import Settings, State
    from unspool.explore.row import Row

COLUMNS = (
    "code", "operand", "MSE", "instructions", "of bandwidth", "over the bound", "edges/weight"
)  # fmt: skip


BitsAsked = Annotated[float, typer.Option("--bits", "-b", help="Bits per weight.")]
Operand = Annotated[
    str | None,
    typer.Option(
        help="e4m3, e2m3, e3m2, e2m1, int8 or fp16; int8, e2m3 or e2m1 for avx512. "
        "[default: e4m3; int8]"
    ),
]
Target = Annotated[str, typer.Option(help="sm80, sm89, sm90, sm100 or sm120, or avx512.")]
Memory = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=16,
        help="Bits that a step shares with the next; given, one weight a step is tried too. "
        "[default: 4 to 10; avx512: all there are]",
    ),
]
Lanes = Annotated[
    int | None,
    typer.Option(min=1, max=8, help="Weights a step: 2, 4, 8, or 1 with --memory. [default: all]"),
]
End = Annotated[
    str | None,
    typer.Option(
        help="Only programs with this end, of those that the operand has: tail, halves, sum, "
        "levels or table."
    ),
]
Minutes = Annotated[
    float | None, typer.Option(min=0, help="When to stop; a generation is finished. [default: 10]")
]
Generations = Annotated[
    int | None,
    typer.Option(min=1, help="Stop after so many in all: the same codes on any machine."),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS|local",
        help="Score codes on a Ray cluster: its head's host:port, auto, or local for one of --jobs "
        "processes here. The same codes come out (extra ray).",
    ),
]
Log = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Keep every code that was scored there, after each generation."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the log.")]
Save = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the best code as a format's file.")
]
Within = Annotated[
    float | None,
    typer.Option(
        help="Instructions per weight a code may take, a look-up being one: those far above by our "
        "own count are not scored, those above by the machine code not shown."
    ),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the front.")]


def explore(
    bits: BitsAsked = 2,
    operand: Operand = None,
    target: Target = "sm90",
    memory: Memory = None,
    lanes: Lanes = None,
    end: End = None,
    minutes: Minutes = None,
    generations: Generations = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    jobs: Jobs = None,
    ray: Ray = None,
    log: Log = None,
    resume: Resume = False,
    save: Save = None,
    within: Within = None,
    plot: Plot = None,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Search for codes: distortion on a unit Gaussian against counted instructions per weight.

    Starts from random programs and reads no catalog. Instructions are those of the target's machine
    code where the extra `cuda` is installed, else of our own lowering. For avx512 tables are
    trained for the codes that the CPU's kernels decode in registers; instructions are those of a
    kernel's loop that decodes and multiplies, compiled by g++, and also shown for 64 weights.
    """
    from unspool.explore.explorer import Settings
    from unspool.explore.report import check_plot, draw, found_rows, published_rows

    settings = Settings.of(bits, operand, target, seed, memory, lanes, end, within)
    _check_within(within)
    if minutes is None and generations is None:
        minutes = 10.0
    if resume and log is None:
        raise DeclarationError("nothing to go on with", where="--resume", allowed="--log FILE")
    if plot:
        check_plot(plot)
    _check_files(save, plot, log)
    state = _searched(settings, minutes, generations, jobs, ray, log, resume, quiet)
    found = found_rows(state.front.best, settings)
    shown = [*found, *published_rows(settings, lambda text: None if quiet else say(text))]
    if save:
        _save(found, settings, state, save)
    _show(shown, settings, state, json)
    if plot:
        draw(shown, f"{bits:g} bits to {settings.operand}, {target}", plot)


def _show(shown: Sequence[Row], settings: Settings, state: State, json: bool) -> None:
    if json:
        done = {**vars(settings), "generations": state.generation}
        rows = [row.to_json() for row in shown]
        print_json({"settings": done, "scored": state.scored, "rows": rows})
    else:
        title = f"{state.scored} codes in {state.generation} generations" + _predicted_on(shown)
        print_table(title, COLUMNS, (row.cells() for row in shown), left=2)
        if settings.within and not any(row.found for row in shown):
            say(f"no code takes {settings.within:g} instructions per weight or fewer")


def _predicted_on(rows: Sequence[Row]) -> str:
    """What the fractions of bandwidth are of."""
    from unspool.perf.bound import STATUS

    found = next((row.predicted for row in rows if row.predicted), None)
    return "" if found is None else f"; of bandwidth at batch 1 on {found.device} ({STATUS})"


def _check_within(within: float | None) -> None:
    if within is not None and not 0 < within < float("inf"):
        raise DeclarationError(
            "not a number of instructions", where="--within", found=within, allowed="above 0"
        )


def _check_files(save: Path | None, plot: Path | None, log: Path | None) -> None:
    """Raises DeclarationError where a file cannot be written later: a search is long."""
    from unspool.spec.catalog.files import SUFFIX

    given = [file for file in (save, plot, log) if file is not None]
    for file in given:
        check_place(file)
    if len({file.absolute() for file in given}) < len(given):
        raise DeclarationError("one file for two things", where="--save, --plot, --log")
    if save is not None and save.suffix != SUFFIX:
        raise DeclarationError(
            "a format's name ends otherwise", where="--save", found=str(save), allowed=f"*{SUFFIX}"
        )


def _save(found: Sequence[Row], settings: Settings, state: State, path: Path) -> None:
    """Writes the code of least error among those that are cheap enough."""
    from unspool.explore.report import as_format

    if not found:
        raise DeclarationError(
            "no code was found to save", where="--save, --within", found=settings.within,
            allowed="more instructions, or a longer search",
        )  # fmt: skip
    as_format(min(found, key=lambda row: row.mse), settings, state.generation, path)


def _searched(
    settings: Settings,
    minutes: float | None,
    generations: int | None,
    jobs: int | None,
    ray: str | None,
    log: Path | None,
    resume: bool,
    quiet: bool,
) -> State:
    from unspool.explore import explorer

    begun = time.monotonic()
    total = generations or round(60 * (minutes or 0))

    def done(state: State) -> int:
        return state.generation if generations else round(time.monotonic() - begun)

    def goes_on(state: State) -> bool:
        in_time = minutes is None or time.monotonic() - begun < 60 * minutes
        return in_time and (generations is None or state.generation < generations)

    with progress("exploring", quiet=quiet) as advance:
        return explorer.explore(
            settings,
            goes_on=goes_on,
            jobs=jobs or os.cpu_count() or 1,
            ray=ray,
            log=log,
            resume=resume,
            report=lambda state: advance(min(done(state), total), total, _front(state)),
        )


def _front(state: State) -> str:
    """The least error so far and its cost, as short as a bar's text."""
    best: Sequence[Any] = state.front.best
    return f"{best[-1].mse:.4f} at {best[-1].cost:.2f}" if best else ""
