"""`unspool bench`: how quickly this machine multiplies with coded weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from unspool.cli.bundled import Activations
from unspool.cli.terminal import AsJson, Quiet, print_json, print_table, progress
from unspool.errors import EvaluationError

app = typer.Typer(help="Measure speed on this machine: `bench matmul`.", no_args_is_help=True)

COLUMNS = (
    "format", "bits/w", "m", "threads", "us", "low", "high", "GB/s", "of read", "GFLOP/s", "path",
)  # fmt: skip


@app.callback()
def bench() -> None:
    """Measure speed on this machine."""


@app.command()
def matmul(
    n: Annotated[int, typer.Option("--n", min=1, help="Output features.")] = 4096,
    k: Annotated[int, typer.Option("--k", min=1, help="Input features.")] = 4096,
    m: Annotated[str, typer.Option("--m", help="Batch rows: 1,4,32.")] = "1",
    threads: Annotated[
        str | None, typer.Option("--threads", help="Counts: 1,2. Default: one, and one per core.")
    ] = None,
    formats: Annotated[
        str | None, typer.Option("--formats", help="By name: t2-e2m1,mxfp4. Default: the catalog.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each product takes.")] = 15,
    target: Annotated[
        str | None, typer.Option(help="Force a target, e.g. portable; default the best one here.")
    ] = None,
    activations: Activations = "auto",
    hot: Annotated[
        bool, typer.Option("--hot", help="One copy of the weights, which may stay in a cache.")
    ] = False,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Time y = x W^T with weights read from main memory, beside the speed of reading it."""
    from unspool import native
    from unspool.evaluate.products import FORMATS

    names = FORMATS if formats is None else _names(formats)
    batches = _counts(m, "--m")
    cores = native.threads(None)
    counts = sorted({1, cores}) if threads is None else _counts(threads, "--threads", cores)
    how = {"target": target, "activations": activations, "hot": hot}
    found = measure((n, k), names, batches, counts, rounds, how, quiet)
    if json:
        print_json(found)
    else:
        _show(found, (n, k))


def measure(
    shape: tuple[int, int],
    names: Iterable[str],
    batches: list[int],
    threads: list[int],
    rounds: int,
    how: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    """The rows of all formats, the machine, and what was read to compare with."""
    from unspool.cli.machine import machine
    from unspool.evaluate import memory_speed, products

    memory = memory_speed.ReadMemory()
    products.check_room(names, *shape, hot=how["hot"])
    weights = [products.CodedWeights(name, *shape, **how) for name in names]
    with progress("measuring", quiet=quiet) as advance:
        rows = products.measure(
            weights, batches, threads, rounds=rounds, read=memory,
            progress=lambda done, total: advance(done, total, ""),
        )  # fmt: skip
    return {
        "machine": machine(),
        "rounds": rounds,
        "cold": not how["hot"],
        "last_cache_bytes": memory_speed.last_cache(),
        "read_bytes": memory.nbytes,
        "read_load_bytes": memory_speed.load_width(),
        "rows": rows,
    }


def _names(text: str) -> list[str]:
    """The names of formats, each refused now and not after the first was measured."""
    from unspool.spec.catalog import parse

    names = _parts(text, "--formats", "names: t2-e2m1,mxfp4")
    for name in names:
        parse(name)
    return names


def _counts(text: str, where: str, most: int | None = None) -> list[int]:
    allowed = "whole numbers from 1" + (f" to {most}" if most else "") + ": 1,2"
    parts = _parts(text, where, allowed)
    counts = [int(part) if part.isdecimal() else 0 for part in parts]
    if min(counts) < 1 or (most is not None and max(counts) > most):
        raise EvaluationError("not a list of counts", where=where, found=text, allowed=allowed)
    return counts


def _parts(text: str, where: str, allowed: str) -> list[str]:
    """The parts between commas, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise EvaluationError("an empty entry", where=where, found=repr(text), allowed=allowed)
    return list(dict.fromkeys(parts))


def _show(found: dict[str, Any], shape: tuple[int, int]) -> None:
    rows = found["rows"]
    where = "from main memory" if found["cold"] else "one copy"
    print_table(f"{shape[0]} x {shape[1]}, weights {where}", COLUMNS, map(_cells, rows))
    for threads in sorted({row["threads"] for row in rows}):
        speed = next(row["read_gbps"] for row in rows if row["threads"] == threads)
        print(f"read speed of memory, {threads} threads: {speed:.1f} GB/s")
    print(f"us: medians of {found['rounds']} turns, activations rounded and rotated within")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["format"],
        f"{row['bits_per_weight']:.3f}",
        f"{row['m']}",
        f"{row['threads']}",
        f"{row['us']:.0f}",
        f"{row['us_low']:.0f}",
        f"{row['us_high']:.0f}",
        f"{row['gbps']:.2f}",
        f"{row['fraction_of_read']:.1%}",
        f"{row['gflops']:.1f}",
        row["path"],
    )
