"""`unspool search`: new constants for a multiply code, as a literal of the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from unspool.cli.terminal import AsJson, Quiet, print_json, progress
from unspool.errors import DeclarationError

if TYPE_CHECKING:
    from unspool.spec.code import Code

#: constants of a multiply code: (name in the literal, instruction, which argument, digits)
CONSTANTS = (
    ("selector", "permute-bytes", 2, 4),
    ("multiplier", "mul", 1, 8),
    ("addend", "add", 1, 8),
)


def search(
    bits: Annotated[int, typer.Option(min=2, max=3, help="Bits per weight.")] = 2,
    operand: Annotated[str, typer.Option(help="E2M1, E2M3, E4M3 or E4M3-quick.")] = "E2M1",
    trials: Annotated[int, typer.Option(min=1, help="Random constants to try.")] = 40,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Search multiply-code constants; print the best as a catalog literal, and its error."""
    from unspool.explore import search as searcher

    form = _form(operand)
    with progress("searching", quiet=quiet) as advance:
        found = searcher.search(
            bits,
            searcher.FORMS[form],
            trials=trials,
            seed=seed,
            progress=lambda trial, mse: advance(trial + 1, trials, f"best error {mse:.5f}"),
        )
    command = f"unspool search --bits {bits} --operand {form} --trials {trials} --seed {seed}"
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
        f'_format(\n    {_maker(code)}({bits}, {shown}, sigma={code.sigma}),\n    "{source}",\n),'
    )


def _maker(code: Code) -> str:
    """The function of the catalog that made a code: `m2-e4m3-quick` is by `to_e4m3_quick`."""
    return "to_" + code.name.split("-", 1)[1].replace("-", "_")


def _form(operand: str) -> str:
    from unspool.explore.search import FORMS

    known = {name.lower(): name for name in FORMS}
    if operand.lower() not in known:
        raise DeclarationError(
            "no multiply code to that operand", where="--operand", found=operand, allowed=FORMS
        )
    return known[operand.lower()]
