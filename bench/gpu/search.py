"""The trellis search on the GPU: the CPU's states bit for bit, and how many weights a second.

`unspool.model.device_search` against the compiled CPU search, or its definition in numpy where no
library is there; dense trellises by their kernel and by torch's operations. Cheap codes first:
numpy takes seconds for a ring of the dearest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpu.stage import AbsentError, Given, Stage, said
from unspool.decode.interpret import state_values
from unspool.encode.encode import is_searched
from unspool.encode.viterbi import viterbi
from unspool.errors import UnspoolError
from unspool.spec.catalog import FORMATS
from unspool.spec.code import Code

if TYPE_CHECKING:
    from unspool.model.device_search import DeviceSearch

CHECKED_EDGES, CHECKED_RINGS = 1 << 20, 64
"""Edges of a step of all rings that are compared, and so many rings at most."""

TIMED = 1 << 21
"""Weights of a timed search: a strip of `encode`."""

DEAR_EDGES, DEAR_TIMED = 1 << 17, 1 << 18
"""From so many edges on a step, fewer weights."""


def check(given: Given, *, timed: int = TIMED) -> None:
    """A row per code that has a trellis, and way to search it; states that differ are wrong."""
    from unspool.model.device_search import KERNEL, DeviceSearch

    codes = {name: FORMATS[name].code for name in FORMATS if is_searched(FORMATS[name])}
    wanted = {n: c for n, c in codes.items() if not given.formats or n in given.formats}
    if not wanted:
        raise AbsentError("none of these formats has a trellis")
    device = given.board.device
    searches = DeviceSearch(device), DeviceSearch(device, kernels=False)
    for name, code in sorted(wanted.items(), key=lambda item: len(state_values(item[1]))):
        for search in searches:
            if given.deadline.over:
                given.findings.cut = True
                return
            try:
                way = search.way(state_values(code), planes_of(code))
                _check_code(given, search, code, {"format": name, "way": way}, timed)
            except Exception as error:  # noqa: BLE001  whatever is wrong with one, others follow
                told = isinstance(error, UnspoolError)
                given.findings.wrong.append(f"{name}: {error if told else said(error)}")
                given.go_on(error)
                continue
            given.keep()
            if way != KERNEL:
                break  # the other would do the same


def _check_code(
    given: Given, search: DeviceSearch, code: Code, row: Mapping[str, Any], timed: int
) -> None:
    row = {**row, **compared(search, code), **speed(search, code, timed)}
    given.findings.rows.append(row)
    if row["different"]:
        found = f"{row['different']} of {row['states']} states"
        given.findings.wrong.append(f"{row['format']} by {row['way']}: {found}")


def compared(search: DeviceSearch, code: Code) -> Mapping[str, Any]:
    """How many states of some rings differ from the CPU's; a few rings hold large weights."""
    edges = len(state_values(code))
    targets = rings(code, min(CHECKED_RINGS, max(2, CHECKED_EDGES // edges)))
    targets[-1] *= np.float32(1e8)
    ours, theirs = (_states(each, code, targets) for each in (search, viterbi))
    return {"states": ours.size, "different": int((ours != theirs).sum())}


def speed(search: DeviceSearch, code: Code, timed: int) -> Mapping[str, Any]:
    """Seconds of a search from the CPU's memory to it, set up before, and weights a second."""
    weights = min(timed, DEAR_TIMED) if len(state_values(code)) >= DEAR_EDGES else timed
    targets = rings(code, max(1, weights // (code.steps * code.lanes)))
    begun = time.perf_counter()
    _states(search, code, targets)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "weights_per_second": targets.size / seconds}


def rings(code: Code, count: int) -> np.ndarray:
    """Gaussian targets [count, steps, lanes] as wide as the code's values."""
    dice = np.random.default_rng(0)
    targets = dice.standard_normal((count, code.steps, code.lanes), np.float32)
    return targets * np.float32(code.sigma or 1)


def planes_of(code: Code) -> tuple[tuple[int, int], ...]:
    """(window, stride) of every plane."""
    return tuple((plane.window, plane.stride) for plane in code.planes)


def _states(search: Any, code: Code, targets: np.ndarray) -> np.ndarray:
    return search(state_values(code), planes_of(code), targets)


STAGE = Stage(name="search", run=check, seconds=35)
