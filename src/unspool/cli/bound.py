"""`unspool bound`: the least time of a fused product on a GPU, and what it spends it on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from unspool.cli.terminal import AsJson, Quiet, print_json, print_table, progress
from unspool.errors import DeclarationError

if TYPE_CHECKING:
    from unspool.perf.bound import Bound, Instructions
    from unspool.perf.device import Device
    from unspool.spec.format import Format

COLUMNS = (
    "format", "GPU", "activations", "binds", "batch", "memory", "tensor", "issue", "ALU", "FMA",
    "CVT", "shared", "launch", "in all", "of bandwidth",
)  # fmt: skip


def bound(
    formats: Annotated[list[str], typer.Argument(metavar="FORMAT...", help="Formats to bound.")],
    gpu: Annotated[
        list[str], typer.Option(help="h100, h200, b200, rtx4090, rtx5090; several at once.")
    ],
    n: Annotated[int, typer.Option(min=1, help="Output features.")] = 8192,
    k: Annotated[int, typer.Option(min=1, help="Input features.")] = 28672,
    batch: Annotated[str, typer.Option(help="Tokens, with commas between.")] = "1,16",
    activations: Annotated[
        str, typer.Option(help="auto, float16, fp8, fp8x2, fp8x3, fp4, int8.")
    ] = "auto",
    loop: Annotated[
        bool, typer.Option("--loop", help="Count whole main loops first (extra cuda).")
    ] = False,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Bound the time of a product from below: bytes, tensor units, instructions, shared memory.

    Times are in microseconds, no GPU is needed. They rank formats and say what is out of reach; no
    kernel is promised to be that fast. A star marks instructions that are estimated, not counted.
    """
    from unspool.perf.bound import STATUS
    from unspool.perf.device import device
    from unspool.spec.catalog import parse

    devices, sizes = [device(name) for name in gpu], _batches(batch)
    every = [
        (parse(name), each, m) for name in formats for each in devices for m in sizes
    ]  # fmt: skip
    found = []
    with progress("bounding", quiet=quiet) as advance:
        for done, (fmt, each, m) in enumerate(every):
            advance(done, len(every), f"{fmt.name} {each.title}")
            found.append(_bound(fmt, each, (n, k, m), activations, loop))
    if json:
        print_json({"status": STATUS, "bounds": [each.to_json() for each in found]})
    else:
        title = f"Microseconds of {n} x {k} at least ({STATUS})"
        print_table(title, COLUMNS, map(_cells, found), left=4)


def _batches(given: str) -> list[int]:
    """Numbers of tokens; raises DeclarationError."""
    from unspool.matmul.cuda.library import LIBRARY_ROWS

    found = [part.strip() for part in given.split(",")]
    if not all(part.isdecimal() and int(part) for part in found):
        raise DeclarationError(
            "not numbers of tokens", where="--batch", found=given, allowed="1,16"
        )
    sizes = [int(part) for part in found]
    if max(sizes) >= LIBRARY_ROWS:
        raise DeclarationError(
            "so many rows are the vendor's GEMM's", where="--batch", found=max(sizes),
            allowed=f"less than {LIBRARY_ROWS}",
        )  # fmt: skip
    return sizes


def _bound(
    fmt: Format, device: Device, size: tuple[int, int, int], activations: str, loop: bool
) -> Bound:
    from unspool.perf.bound import bound

    n, k, m = size
    counted = _counted(fmt, device, activations, m) if loop else None
    return bound(fmt, device, n=n, k=k, m=m, activations=activations, instructions=counted)


def _counted(fmt: Format, device: Device, activations: str, m: int) -> Instructions:
    """The instructions of a product's whole main loop."""
    from unspool.decode.machine import machine
    from unspool.matmul.cuda.recipe import recipe
    from unspool.perf.bound import known, of_loop
    from unspool.perf.loop import count_loop
    from unspool.perf.toolchain import toolchain

    made = recipe(fmt, machine(device.target), activations)
    return of_loop(count_loop(made, m, toolchain()), known(made))


def _cells(found: Bound) -> tuple[str, ...]:
    from unspool.perf.bound import ESTIMATED

    star = " *" if found.instructions.source == ESTIMATED else ""
    times = (*found.resources.values(), found.launch, found.seconds)
    return (
        found.format + star, found.device, found.activations, found.binds, str(found.m),
        *(f"{1e6 * each:.1f}" for each in times), f"{100 * found.fraction:.0f} %",
    )  # fmt: skip
