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

from gpu.product import Entrant, Product, activations
from gpu.stage import AbsentError, Given, Stage

SHAPES = ((256, 512), (264, 520), (1000, 1032), (4096, 4096), (512, 14336))
"""n x k: small, not whole tiles, large, and long rows that several blocks share."""

BATCHES = (1, 2, 3, 7, 8, 16, 17, 32, 64, 100, 256)

FUSED_ROWS = 256

MANY_ROWS, MANY_SHAPE = 8192, (1000, 1032)
COMPARED_ROWS = 32
"""Of many: the first, the last, and as far apart as they are equal in number."""


def check(given: Given, entrants: Sequence[Entrant]) -> None:
    """Fills in a row per entrant, shape and batch."""
    wanted = [entrant for entrant in entrants if entrant.among(given.formats)]
    if not wanted:
        raise AbsentError("no product of ours is plugged in (bench/gpu/entrants.py)")
    for entrant in wanted:
        for shape in SHAPES:
            if given.deadline.over:
                given.findings.cut = True
                return
            _check_shape(given, entrant, shape)


def _check_shape(given: Given, entrant: Entrant, shape: tuple[int, int]) -> None:
    found, (n, k) = given.findings, shape
    row = {"format": entrant.name, "n": n, "k": k}
    try:
        product = entrant.make(given.board, n, k, 1)
    except AbsentError as absent:
        found.rows.append({**row, "absent": str(absent)})
        return
    batches = (*BATCHES, MANY_ROWS) if shape == MANY_SHAPE else BATCHES
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


def stage(entrants: Sequence[Entrant]) -> Stage:
    """The stage for our own products."""
    ours = [entrant for entrant in entrants if not entrant.peer]
    return Stage(name="products", run=lambda given: check(given, ours), seconds=90)
