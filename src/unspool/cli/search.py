"""`unspool search`: new constants for a multiply code, as a literal of the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from unspool.cli.terminal import AsJson, Quiet, print_json, progress
from unspool.errors import DeclarationError

if TYPE_CHECKING:
    from unspool.spec.code import Code
    from unspool.spec.operand import Operand

#: constants of a multiply code: (name in the literal, instruction, which argument, digits)
CONSTANTS = (
    ("selector", "permute-bytes", 2, 4),
    ("multiplier", "mul", 1, 8),
    ("addend", "add", 1, 8),
)


def search(
    bits: Annotated[int, typer.Option(min=2, max=3, help="Bits per weight.")] = 2,
    operand: Annotated[str, typer.Option(help="E2M1 or E4M3.")] = "E2M1",
    trials: Annotated[int, typer.Option(min=1, help="Random constants to try.")] = 40,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Search multiply-code constants; print the best as a catalog literal, and its error."""
    from unspool.explore import search as searcher

    target = _operand(operand)
    with progress("searching", quiet=quiet) as advance:
        found = searcher.search(
            bits,
            target,
            trials=trials,
            seed=seed,
            progress=lambda trial, mse: advance(trial + 1, trials, f"best error {mse:.5f}"),
        )
    command = (
        f"unspool search --bits {bits} --operand {target.name} --trials {trials} --seed {seed}"
    )
    text = literal(found.code, bits, command)
    if json:
        print_json({
            "literal": text, "code": found.code.to_json(), "mse": found.mse, "command": command,
        })  # fmt: skip
    else:
        print(f"{text}\n# mean squared error on a unit Gaussian: {found.mse:.5f}")


def literal(code: Code, bits: int, source: str) -> str:
    """The catalog entry of a multiply code, as Python."""
    found = [
        (name, next(i.arguments[place] for i in code.program.instructions if i.op == op), digits)
        for name, op, place, digits in CONSTANTS
    ]
    shown = ", ".join(f"{name}=0x{int(value):0{digits}X}" for name, value, digits in found)
    return (
        f"_format(\n"
        f"    to_{code.operand.name.lower()}({bits}, {shown}, sigma={code.sigma}),\n"
        f'    "{source}",\n'
        f"),"
    )


def _operand(name: str) -> Operand:
    from unspool.spec.operand import E2M1, E4M3

    known = {operand.name: operand for operand in (E2M1, E4M3)}
    if name.upper() not in known:
        raise DeclarationError(
            "no multiply code to that operand", where="--operand", found=name, allowed=known
        )
    return known[name.upper()]
