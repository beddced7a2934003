"""Search for the constants of multiply codes: the bits of a product are the weights.

    to E2M1    spread = permute-bytes(window)          to E4M3    word = window * C + D
               word   = spread * C + D                            word = (word ^ permute-bytes(
               lanes  = word's upper four nibbles                  window)) & 0x9f9f9f9f

Three instructions for four weights each (the multiply-add is one); no table anywhere. E4M3-quick is
`spread * C + D & 0x9f9f9f9f`, E2M3 is the form of E4M3 with `& 0x3f3f3f3f`. `& 0x9f`
leaves a sign, two exponent and three mantissa bits: exactly E2M3 x 2**-6, so no pattern is a NaN.
Candidates are drawn at random and go through rounds of more and more weights; the best survive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from unspool.explore.score import Sample, distortion, fitted, with_sigma
from unspool.spec.catalog.multiply import to_e2m1, to_e2m3, to_e4m3, to_e4m3_quick
from unspool.spec.code import Code

#: name on the command line -> maker of the code
FORMS: Mapping[str, Callable[..., Code]] = {
    "E2M1": to_e2m1,
    "E4M3": to_e4m3,
    "E4M3-quick": to_e4m3_quick,
    "E2M3": to_e2m3,
}

#: rings searched and candidates kept, round after round
ROUNDS = ((12, 24), (96, 6), (768, 1))
SIGMAS = (0.96, 1.0, 1.04)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A code and its mean squared error on a unit Gaussian."""

    code: Code
    mse: float


def search(
    bits: int,
    form: Callable[..., Code],
    *,
    trials: int,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda trial, mse: None,
) -> Found:
    """The best of `trials` random multiply codes of 2 or 3 bits in one of the FORMS.

    `progress(trial, best error so far)` is called after each trial of the first round.
    """
    random = np.random.default_rng(seed)
    rings, kept = ROUNDS[0]
    found: list[Found] = []
    for trial in range(trials):
        found.append(_measure(_draw(random, bits, form), rings, seed))
        found = sorted(found, key=_error)[:kept]
        progress(trial, found[0].mse)
    for rings, kept in ROUNDS[1:]:
        again = [_best_sigma(entry.code, rings, seed + 1) for entry in found]
        found = sorted(again, key=_error)[:kept]
    return found[0]


def _error(found: Found) -> float:
    return found.mse


def _draw(random: np.random.Generator, bits: int, form: Callable[..., Code]) -> Code:
    """A random code, its sigma near the best."""
    multiplier, addend = (int(word) for word in random.integers(0, 1 << 32, 2))
    places = random.integers(0, bits, 4)  # the window's bytes: two at 2 bits, three at 3
    selector = int(sum(int(place) << (4 * lane) for lane, place in enumerate(places)))
    code = form(bits, selector=selector, multiplier=multiplier | 1, addend=addend, sigma=1.0)
    return fitted(code)


def _best_sigma(code: Code, rings: int, seed: int) -> Found:
    assert code.sigma is not None
    each = [with_sigma(code, code.sigma * factor) for factor in SIGMAS]
    return min((_measure(code, rings, seed) for code in each), key=_error)


def _measure(code: Code, rings: int, seed: int) -> Found:
    sample = Sample(weights=rings * code.steps * code.lanes, seed=seed)
    return Found(code=code, mse=distortion(code, sample, threads=None))
