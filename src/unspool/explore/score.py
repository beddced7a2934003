"""What a code is worth: distortion on a unit Gaussian, and instructions per weight of a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from unspool.decode.interpret import state_values
from unspool.decode.lower import cost, lower, operations, slots
from unspool.decode.lowering import Lowering
from unspool.decode.machine import Machine, Slot
from unspool.decode.values import pattern_counts
from unspool.encode.viterbi import viterbi
from unspool.errors import DeclarationError
from unspool.spec.code import Code
from unspool.spec.operand import BF16, FP16, INT8

if TYPE_CHECKING:
    from jaxtyping import Float32

SCREEN, RACE, FINAL = 8192, 32768, 262144
"""Weights of the three rounds, the same ones for all codes. The last tells errors to 0.3 %."""

TRAINED = (16384, 65536, 262144)
"""Weights that a book is trained on before the screen, the race and the last measure; others."""

PUBLISHED = 65536
"""Weights that other codes are measured on: some of them have 256 times as many edges."""

FIRST_SIGMAS = (0.94, 1.04, 1.15, 1.27)
"""Tried before the screen, as multiples of what the rate asks for: at 3 bits uniform bytes have
their least error at .83 of their RMS, with a thinned tail at .97, 4 % below that at .83."""

SIGMAS = (0.94, 0.97, 1.0, 1.03, 1.06)
"""Tried in the race, as multiples of what the screen has."""

RATES, SIGMA_OF_RMS = (1.0, 2.0, 3.0, 4.0), (1.0, 0.95, 0.82, 0.72)
"""Sigma over the RMS of the values by bits per weight: at higher rates the values must reach
further into the tails (2 and 3 bits measured on random constants, flat within 5 %)."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Unit Gaussian weights that codes are measured on."""

    weights: int
    seed: int


def fitted(code: Code) -> Code:
    """The code with the sigma that its values ask for."""
    counts = pattern_counts(code)
    values = np.where(counts > 0, code.operand.values(), 0.0)
    rms = float(np.sqrt(np.sum(counts * values**2) / np.sum(counts)))
    factor = float(np.interp(code.bits_per_weight, RATES, SIGMA_OF_RMS))
    return with_sigma(code, rms * factor)


def distortion(code: Code, sample: Sample, *, threads: int | None = 1) -> float:
    """Mean squared error of a code's rings, over the sample's mean square."""
    (found,) = distortions(code, sample, (1.0,), threads=threads)
    return found


def distortions(
    code: Code, sample: Sample, factors: Sequence[float], *, threads: int | None = 1
) -> list[float]:
    """The same with multiples of the code's sigma: in one search of as many times the rings, since
    values over a larger sigma miss weights as the values miss larger weights."""
    assert code.sigma is not None
    x = gaussian(code, sample)
    values = (state_values(code) / code.sigma).astype(np.float32)
    targets = np.concatenate([x * np.float32(factor) for factor in factors])
    states = viterbi(values, [(p.window, p.stride) for p in code.planes], targets, threads=threads)
    missed = np.square((targets - values[states]).astype(np.float64))
    power = np.mean(np.square(x.astype(np.float64)))
    each = missed.reshape(len(factors), -1).mean(axis=1)
    return [float(e / (f * f) / power) for e, f in zip(each, factors, strict=True)]


def gaussian(code: Code, sample: Sample) -> Float32[np.ndarray, "rings steps lanes"]:
    """The sample cut into rings of a code."""
    rings = max(1, sample.weights // code.steps // code.lanes)
    shape = (rings, code.steps, code.lanes)
    return np.random.default_rng(sample.seed).standard_normal(shape, dtype=np.float32)


def best_sigma(code: Code, sample: Sample, factors: Sequence[float] = SIGMAS) -> Code:
    """The code with the best of a few multiples of its sigma."""
    assert code.sigma is not None
    found = distortions(code, sample, factors)
    return with_sigma(code, code.sigma * factors[int(np.argmin(found))])


def lowered(code: Code, machine: Machine) -> Lowering:
    """A code's lowering to the narrowest float slot of a machine; integers have their own.

    Raises DeclarationError where there is none.
    """
    held = [s for s in slots(code, machine) if (s.operand is INT8) == code.operand.integer]
    refused = DeclarationError(
        f"{machine.name} has no matrix unit for these values", found=code.operand.name
    )
    for slot in sorted(held, key=lambda slot: slot.operand in (FP16, BF16)):
        try:
            return lower(code, slot, machine)
        except DeclarationError as error:
            refused = error
    raise refused


def slot_of(code: Code, machine: Machine) -> Slot:
    """The slot of that lowering."""
    return lowered(code, machine).slot


def estimated(code: Code, machine: Machine) -> float:
    """Instructions per weight by our own lowering, before any compiler, look-ups at what they are
    worth."""
    return cost(lowered(code, machine))


def instructions(lowering: Lowering) -> float:
    """The same, a look-up being one."""
    return operations(lowering).total() / lowering.weights


def branches(code: Code) -> int:
    """Edges per weight that the encoder looks at: 2^window over the lanes."""
    return (1 << code.state_bits) // code.lanes


def with_sigma(code: Code, sigma: float) -> Code:
    """The code with a sigma of four digits."""
    return replace(code, sigma=float(f"{sigma:.4g}"))
