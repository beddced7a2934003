"""A product in numpy that is checked and timed like ours."""

from __future__ import annotations

import numpy as np


class Exact:
    """A product in numpy, with faults on demand."""

    format, activations = "exact", "float32"

    def __init__(self, board, n: int, k: int, copies: int, fault: str = "") -> None:
        self.weight = np.random.default_rng(7).standard_normal((n, k), np.float32)
        self.nbytes, self.copies, self._fault = self.weight.nbytes, copies, fault
        self.calls: list[int] = []

    def queue(self, m: int):
        return self.calls.append

    def result(self, x: np.ndarray) -> np.ndarray:
        product = np.stack([self.weight @ row for row in x])
        if self._fault == "raises":
            raise RuntimeError("no such kernel\nand more")
        if self._fault == "element" and len(x) == 7:
            product[3, 5] += 1
        if self._fault == "nan" and len(x) == 8:
            product[0, 0] = np.nan
        if self._fault == "rows" and len(x) > 1:
            product = np.nextafter(product, np.float32(9e9))
        if self._fault == "wide" and len(x) == 64:
            product[63, 5] += 1
        if self._fault == "other":
            product = product[:, ::-1]
        if self._fault == "unsteady":
            self.calls.append(0)
            product[0, 0] += np.float32(1e-6 * len(self.calls) * abs(product[0, 0]))
        return product

    def expected(self, x: np.ndarray, batch: int = 0):
        want = x.astype(np.float64) @ self.weight.astype(np.float64).T
        want += self._fault == "batch" and batch == 8192
        size = np.abs(x).astype(np.float64) @ np.abs(self.weight).T
        return want, size * 2.0**-18


def entrant(fault: str = "", **named):
    from gpu.product import Entrant

    def make(board, n, k, copies):
        return Exact(board, n, k, copies, fault)

    return Entrant(**{"name": "exact", "make": make, "bits": 32, **named})
