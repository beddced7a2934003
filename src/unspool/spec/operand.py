"""Operands: the number formats that matrix units eat, and those that scales are stored in.

Each is the facts of its data sheet; every value is derived from them. Sources: OCP 8-bit Floating
Point 1.0 (E4M3, E5M2), OCP Microscaling Formats 1.0 (E2M1, E2M3, E3M2, E8M0, INT8), IEEE 754
(FP16), and bfloat16 as the upper half of an IEEE binary32.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from unspool.errors import DeclarationError

if TYPE_CHECKING:
    from jaxtyping import Float64


class Specials(StrEnum):
    """Which bit patterns are not finite numbers."""

    NONE = "none"
    TOP_IS_NAN = "top-is-nan"  # all exponent and mantissa bits set: NaN; there is no infinity
    IEEE = "ieee"  # all exponent bits set: infinity, or NaN where a mantissa bit is set


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A hardware number format: sign, exponent and mantissa fields, from the top bit down."""

    name: str
    #: one sign bit, or none
    signed: bool = True
    exponent_bits: int
    mantissa_bits: int
    #: subtracted from the stored exponent
    bias: int
    #: a stored exponent of zero drops the hidden bit
    subnormals: bool = True
    specials: Specials = Specials.NONE
    #: two's complement instead of sign and magnitude (then there is no exponent)
    integer: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise DeclarationError(
                "an operand has too many bits", where=self.name, found=self.bits, allowed="1 to 16"
            )
        if self.integer and self.exponent_bits:
            raise DeclarationError("an integer operand has no exponent", where=self.name)

    @property
    def bits(self) -> int:
        """The width of the bit pattern."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return float(np.nanmax(np.where(np.isinf(self.values()), np.nan, self.values())))

    def values(self) -> Float64[np.ndarray, "patterns"]:
        """The value of every bit pattern `[2**bits]`; NaN and Inf where the format has them."""
        patterns = np.arange(1 << self.bits)
        if self.integer:
            half = 1 << (self.bits - 1)
            return np.where(patterns < half, patterns, patterns - 2 * half).astype(np.float64)
        return self._floats(patterns)

    def _floats(self, patterns: np.ndarray) -> Float64[np.ndarray, "patterns"]:
        mantissa = patterns & ((1 << self.mantissa_bits) - 1)
        exponent = (patterns >> self.mantissa_bits) & ((1 << self.exponent_bits) - 1)
        normal = exponent > 0 if self.subnormals else np.ones_like(exponent, dtype=bool)
        power = np.where(normal, exponent, 1) - self.bias
        fraction = normal + mantissa / (1 << self.mantissa_bits)
        magnitude = np.ldexp(fraction, power)
        magnitude = np.where(exponent == exponent.max(), self._top(mantissa, magnitude), magnitude)
        negative = self.signed & (patterns >> (self.bits - 1)).astype(bool)
        return np.where(negative, -magnitude, magnitude)

    def _top(self, mantissa: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
        """The values of the patterns with all exponent bits set."""
        if self.specials is Specials.IEEE:
            return np.where(mantissa > 0, np.nan, np.inf)
        if self.specials is Specials.TOP_IS_NAN:
            return np.where(mantissa == (1 << self.mantissa_bits) - 1, np.nan, magnitude)
        return magnitude


E2M1 = Operand(name="E2M1", exponent_bits=2, mantissa_bits=1, bias=1)
E2M3 = Operand(name="E2M3", exponent_bits=2, mantissa_bits=3, bias=1)
E3M2 = Operand(name="E3M2", exponent_bits=3, mantissa_bits=2, bias=3)
E4M3 = Operand(name="E4M3", exponent_bits=4, mantissa_bits=3, bias=7, specials=Specials.TOP_IS_NAN)
E5M2 = Operand(name="E5M2", exponent_bits=5, mantissa_bits=2, bias=15, specials=Specials.IEEE)
INT8 = Operand(name="INT8", exponent_bits=0, mantissa_bits=7, bias=0, integer=True)
FP16 = Operand(name="FP16", exponent_bits=5, mantissa_bits=10, bias=15, specials=Specials.IEEE)
BF16 = Operand(name="BF16", exponent_bits=8, mantissa_bits=7, bias=127, specials=Specials.IEEE)

E8M0 = Operand(
    name="E8M0",
    signed=False,
    exponent_bits=8,
    mantissa_bits=0,
    bias=127,
    subnormals=False,
    specials=Specials.TOP_IS_NAN,
)
"""A power of two; a scale only, never a weight."""

OPERANDS = {operand.name: operand for operand in (E2M1, E2M3, E3M2, E4M3, E5M2, INT8, FP16, BF16)}
SCALE_OPERANDS = {operand.name: operand for operand in (FP16, E8M0, E4M3)}
