"""`unspool train`: a new table for a trellis code, as a literal of the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli.terminal import AsJson, Quiet, print_json, progress
from unspool.errors import DeclarationError

if TYPE_CHECKING:
    from unspool.explore.train import Effort, Trained, Trellis
    from unspool.spec.operand import Operand

STEPS = 64
"""Steps of a ring: a tile is 8 rows of 8 steps."""

STATE_BITS = 12
"""The largest table trained: 4,096 entries."""

DIGITS_PER_LINE = 80


def train(
    window: Annotated[int, typer.Option(min=2, help="Window of the coded plane, bits.")] = 5,
    plain: Annotated[int, typer.Option(min=0, help="Plain bits per step.")] = 2,
    lanes: Annotated[int, typer.Option(min=1, max=2, help="Weights per step.")] = 1,
    operand: Annotated[str, typer.Option(help="What the entries are: E2M1, E2M3, ...")] = "E2M3",
    starts: Annotated[
        int | None, typer.Option(min=1, help="Random tables; default as for the catalog.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Lloyd rounds of each table; likewise.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Train a trellis table on unit Gaussian weights; print the catalog literal and its error."""
    from unspool.explore import train as trainer

    trellis, entries = _trellis(window, plain, lanes), _operand(operand)
    given = {"starts": starts, "rounds": rounds}
    effort = trainer.Effort(**{name: value for name, value in given.items() if value is not None})
    with progress("training", quiet=quiet) as advance:
        trained = trainer.train(
            trellis,
            entries,
            effort=effort,
            seed=seed,
            progress=lambda start, mse: advance(start + 1, effort.starts, f"best error {mse:.5f}"),
        )
    command = f"unspool train --window {window} --plain {plain} --lanes {lanes}"
    command += f" --operand {entries.name}{_changed(effort, seed)}"
    text = literal(trellis, entries, trained, command)
    if json:
        print_json(_described(text, trained, command))
    else:
        print(f"{text}\n# mean squared error on a unit Gaussian: {trained.mse:.5f}")


def literal(trellis: Trellis, operand: Operand, trained: Trained, source: str) -> str:
    """The catalog entry of a trained table, as Python."""
    digits = -(-operand.bits // 4)
    table = "".join(f"{int(bits):0{digits}x}" for bits in trained.bits.ravel())
    lines = [table[i : i + DIGITS_PER_LINE] for i in range(0, len(table), DIGITS_PER_LINE)]
    rate = (1 + trellis.plain) / trellis.lanes
    return "\n".join((
        "_trellis(",
        f'    "t{rate:g}-{operand.name.lower()}",',
        f"    window={trellis.planes[0].window},",
        f"    plain={trellis.plain},",
        f"    lanes={trellis.lanes},",
        f"    operand={operand.name},",
        f"    sigma={trained.sigma:.4f},",
        "    table=(",
        *(f'        "{line}"' for line in lines),
        "    ),",
        f'    source="{source}",',
        "),",
    ))  # fmt: skip


def _trellis(window: int, plain: int, lanes: int) -> Trellis:
    from unspool.explore.train import Trellis
    from unspool.spec.code import Plane

    if window + plain > STATE_BITS:
        raise DeclarationError(
            "the table is too large to train",
            where="--window, --plain",
            found=f"{window + plain} bits",
            allowed=f"{STATE_BITS} together",
        )
    beside = (Plane(window=plain, stride=plain),) if plain else ()
    return Trellis(planes=(Plane(window=window, stride=1), *beside), lanes=lanes, steps=STEPS)


def _operand(name: str) -> Operand:
    from unspool.spec.catalog.trellis import LANE_BITS
    from unspool.spec.operand import OPERANDS

    allowed = [known for known, operand in OPERANDS.items() if operand.bits <= LANE_BITS]
    if name.upper() not in allowed:
        raise DeclarationError(
            "no table of that operand", where="--operand", found=name, allowed=allowed
        )
    return OPERANDS[name.upper()]


def _changed(effort: Effort, seed: int) -> str:
    """The options that are not at their defaults, as they stand on a command line."""
    usual = type(effort)()
    options = {
        "starts": (effort.starts, usual.starts),
        "rounds": (effort.rounds, usual.rounds),
        "seed": (seed, 0),
    }
    changed = {name: value for name, (value, known) in options.items() if value != known}
    return "".join(f" --{name} {value}" for name, value in changed.items())


def _described(text: str, trained: Trained, command: str) -> dict[str, Any]:
    return {
        "literal": text,
        "bits": trained.bits.tolist(),
        "sigma": trained.sigma,
        "mse": trained.mse,
        "command": command,
    }
