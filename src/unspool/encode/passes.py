"""How often a search goes round a ring, and where it is cut open each time (see `viterbi`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
States = NDArray[np.uint32]

Targets = NDArray[Any]
"""[rings, steps, ...]: floats of every lane, or their bins."""

Pass = Callable[[Targets, States | None], tuple[States, States]]
"""Targets from the cut on, and the node [rings] there, None where it is free:
(states [rings, steps], nodes [rings, steps + 1]) of the best walk."""


def go_round(
    targets: Targets,
    passes: int,
    one_pass: Pass,
    places: int = 1,
    roll: Callable[[Any, int, int], Any] = np.roll,
) -> States:
    """The states [rings, steps * places] of the last of some passes, of which there is one or more.

    `places`: states that a pass gives per step of the targets; the ring is cut between steps.
    `roll`: that of the arrays' library.
    """
    steps = targets.shape[1]
    half = steps // 2
    boundary: States | None = None
    for number in range(passes):
        origin, other = (0, half) if number % 2 else (half, steps - half)
        walked, before = one_pass(roll(targets, -origin, 1), boundary)
        boundary, states = before[:, other * places], roll(walked, origin * places, 1)
    return states
