"""Products over shapes and batches: each element within its own bound, repeatable, row by row.

bound        what `Product.expected` derives
repeatable   the same bits twice
rows         a row's result has the same bits whatever batch it sits in, up to FUSED_ROWS

Of MANY_ROWS, which are decoded once and multiplied by the vendor's GEMM, some rows are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu.product import Entrant, Product, Size, activations, compiled
from gpu.stage import AbsentError, Given, Stage, said

DEEP_SHAPE = (8192, 28672)
"""3584 units: 7 to 27 for each of the 132 to 510 blocks that an H200 or an RTX 5090 runs at once.
In all other shapes a block has three at most, and never uses a place of its pipeline twice."""

SHAPES = ((256, 512), (264, 520), (1000, 1032), (4096, 4096), (512, 14336), DEEP_SHAPE)
"""n x k: small, not whole tiles, large, and long rows that several blocks share."""

BATCHES = (1, 2, 3, 7, 8, 16, 17, 32, 64, 100, 256)

FEWER = {DEEP_SHAPE: (1, 9, 64), (512, 14336): (1, 8, 16, 64)}
"""Batches of the shapes whose expected products take longest: 4 s an entrant with all BATCHES."""

FUSED_ROWS = 256

MANY_ROWS, MANY_SHAPE = 8192, (1000, 1032)
COMPARED_ROWS = 32
"""Of many: the first, the last, and as far apart as they are equal in number."""

COMPILED_TOGETHER = 8
"""Entrants whose kernels are compiled at once: enough for all cores, and rows come early."""


SMALL: Sequence[Size] = (((264, 520), (1, 9)),)
"""For compute-sanitizer: two widths of a tile, rows and columns that are no whole tiles."""


def check(given: Given, entrants: Sequence[Entrant], sizes: Sequence[Size] = ()) -> None:
    """Fills in a row per entrant, shape and batch; without sizes, for all SHAPES."""
    sizes = sizes or [(shape, batches_of(shape)) for shape in SHAPES]
    wanted = [entrant for entrant in entrants if entrant.asked(given)]
    if not wanted:
        raise AbsentError("no product of ours is plugged in (bench/gpu/entrants.py)")
    for number, entrant in enumerate(wanted):
        if number % COMPILED_TOGETHER == 0:
            compiled(given, wanted[number : number + COMPILED_TOGETHER], sizes, "float32")
        for size in sizes:
            if given.deadline.over:
                given.findings.cut = True
                return
            given.trying(entrant.name)
            _try_shape(given, entrant, size)
        given.trying()
    rows = given.findings.rows
    if not given.findings.wrong and all("absent" in row for row in rows):
        raise AbsentError(f"none of these products is here: {rows[0]['absent']}")


def batches_of(shape: tuple[int, int]) -> Sequence[int]:
    """The batches of a shape."""
    if shape in FEWER:
        return FEWER[shape]
    return (*BATCHES, MANY_ROWS) if shape == MANY_SHAPE else BATCHES


def _try_shape(given: Given, entrant: Entrant, size: Size) -> None:
    """Errors of ours are wrong, and cost nobody else's rows."""
    found, ((n, k), _) = given.findings, size
    try:
        _check_shape(given, entrant, size)
    except AbsentError as absent:
        found.rows.append({"format": entrant.name, "n": n, "k": k, "absent": str(absent)})
    except Exception as error:  # noqa: BLE001  whatever is wrong with one, others follow
        found.wrong.append(f"{entrant.name} {n}x{k}: {said(error)}")
        given.go_on(error, entrant.name)


def _check_shape(given: Given, entrant: Entrant, size: Size) -> None:
    found, ((n, k), batches) = given.findings, size
    row = {"format": entrant.name, "n": n, "k": k}
    product = entrant.make(given.board, n, k, 1)
    x = activations(max(batches), k)
    alone: np.ndarray | None = None
    for m in batches:
        if m > entrant.most_rows or given.deadline.over:
            break
        measured = check_batch(product, x[:m], alone)
        alone = alone if alone is not None else product.result(x[:1])
        found.rows.append({**row, "activations": product.activations, "m": m, **measured})
        if measured["wrong"] or not measured["repeatable"] or not measured["rows_alike"]:
            found.wrong.append(f"{entrant.name} {n}x{k} m={m}: {measured}")


def check_batch(product: Product, x: np.ndarray, alone: np.ndarray | None) -> dict[str, Any]:
    """How many elements are out of bounds, and whether bits repeat."""
    result, again = product.result(x), product.result(x)
    repeatable = np.array_equal(result, again, equal_nan=True)
    if len(x) > FUSED_ROWS:
        some = np.linspace(0, len(x) - 1, COMPARED_ROWS).astype(int)
        result, alone = result[some], None
        want, allowed = product.expected(x[some], len(x))
    else:
        want, allowed = product.expected(x)
    distance = np.abs(result.astype(np.float64) - want)
    out = ~(distance <= allowed)  # NaN is out, too
    relative = float(np.linalg.norm(result - want) / max(float(np.linalg.norm(want)), 1e-300))
    alike = alone is None or np.array_equal(result[:1], alone)
    return {
        "wrong": int(out.sum()),
        "relative_error": float(f"{relative:.3g}"),
        "repeatable": bool(repeatable),
        "rows_alike": bool(alike),
    }


def stage(entrants: Sequence[Entrant], sizes: Sequence[Size] = ()) -> Stage:
    """The stage for our own products."""
    ours = [entrant for entrant in entrants if not entrant.peer]
    return Stage(name="products", run=lambda given: check(given, ours, sizes), seconds=90)
