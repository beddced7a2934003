"""Codes: how a stream of bits is cut into windows, and the program that turns them into weights.

ring (64 steps)   b0 b1 b2 b3 b4 b5 ... b63 -> wraps to b0
window of step 0  [b0 b1 b2 b3 b4]              5 bits wide, lowest bit first
window of step 1     [b1 b2 b3 b4 b5]           stride 1: four bits are remembered
...
window of step 62                  [b62 b63 b0 b1 b2]

tile (8 x 8)      step i is row i // 8, column i % 8 (times the lanes, which run along k)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from unspool.errors import DeclarationError
from unspool.spec.operand import OPERANDS, Operand
from unspool.spec.program import Program

WORD_BITS = 32

TABULATED_BITS = 24
"""Codes of more state bits are not tabulated: 2**24 states of 4 lanes are 128 MiB already."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A stream of stored bits: what a step reads of it, and how far it moves on per step."""

    window: int
    stride: int

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window <= WORD_BITS:
            raise DeclarationError(
                "a plane's window cannot be shorter than its stride",
                found=f"window {self.window}, stride {self.stride}",
                allowed=f"1 <= stride <= window <= {WORD_BITS}",
            )

    @property
    def memory(self) -> int:
        """Bits that a window shares with the one before it."""
        return self.window - self.stride


@dataclass(frozen=True, kw_only=True)
class Code:
    """Planes, a program over their windows, and the tile of weights that one ring covers.

    The state of a step is the windows of all planes side by side, plane 0 in the low bits.
    """

    name: str
    planes: tuple[Plane, ...]
    #: weights per step, along k
    lanes: int = 1
    #: rows (n) and columns (k) that one ring covers
    tile: tuple[int, int] = (8, 8)
    operand: Operand
    program: Program
    #: standard deviation, in units of values, of the Gaussian source that the code fits best;
    #: None: scales are searched from the largest weight down
    sigma: float | None = None

    def __post_init__(self) -> None:
        columns = self.tile[1]
        checks = (
            (self.lanes == len(self.program.outputs), "lanes and program outputs differ"),
            (columns % self.lanes == 0, "lanes do not divide the tile's columns"),
            (1 <= self.state_bits <= WORD_BITS, "the state does not fit a 32-bit word"),
            (all(b % WORD_BITS == 0 for b in self.plane_bits), "a ring is not whole 32-bit words"),
            (all(p.window <= b for p, b in self._sized()), "a window is longer than its ring"),
            (self.sigma is None or self.sigma > 0, "sigma is not positive"),
            (all(_inside(o, self.operand) for _, o in self.program.outputs), "an operand is cut"),
            (len(self.program.parameters) <= 1, "a code has at most one parameter table"),
        )
        for holds, otherwise in checks:
            if not holds:
                raise DeclarationError(otherwise, where=f"code {self.name}")

    @property
    def steps(self) -> int:
        """Steps of a ring."""
        return prod(self.tile) // self.lanes

    @property
    def state_bits(self) -> int:
        """Bits of all windows together: the program's input."""
        return sum(plane.window for plane in self.planes)

    @property
    def plane_bits(self) -> tuple[int, ...]:
        """Stored bits of one ring, per plane."""
        return tuple(self.steps * plane.stride for plane in self.planes)

    @property
    def words(self) -> int:
        """uint32 words of one ring, all planes."""
        return sum(self.plane_bits) // WORD_BITS

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales and parameters not counted."""
        return sum(plane.stride for plane in self.planes) / self.lanes

    @property
    def memory(self) -> int:
        """Bits of trellis memory; zero for a plain code."""
        return sum(plane.memory for plane in self.planes)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that `from_json` turns back into an equal code."""
        return {
            "name": self.name,
            "planes": [[plane.window, plane.stride] for plane in self.planes],
            "lanes": self.lanes,
            "tile": list(self.tile),
            "walk": "row-major",
            "operand": self.operand.name,
            "program": self.program.to_json(),
            "sigma": self.sigma,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Code:
        """The code that `to_json` wrote; raises DeclarationError on anything else."""
        if data["walk"] != "row-major":
            raise DeclarationError("no such walk", found=data["walk"], allowed="row-major")
        if data["operand"] not in OPERANDS:
            raise DeclarationError("no such operand", found=data["operand"], allowed=OPERANDS)
        rows, columns = data["tile"]
        return cls(
            name=data["name"],
            planes=tuple(Plane(window=window, stride=stride) for window, stride in data["planes"]),
            lanes=data["lanes"],
            tile=(rows, columns),
            operand=OPERANDS[data["operand"]],
            program=Program.from_json(data["program"]),
            sigma=data["sigma"],
        )

    def _sized(self) -> tuple[tuple[Plane, int], ...]:
        return tuple(zip(self.planes, self.plane_bits, strict=True))


def _inside(offset: int, operand: Operand) -> bool:
    return offset + operand.bits <= WORD_BITS
