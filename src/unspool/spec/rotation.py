"""Rotations: a block Hadamard transform with random signs, which makes weights near Gaussian.

The signs depend on the seed, the side and the index alone (`encode.rotate.signs`), so all layers
that read the same activation share its rotation without being told of each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from unspool.errors import DeclarationError

SIDES = ("in", "out", "both")
_NAME = re.compile(r"h(?P<size>\d+)(-(?P<side>in|out|both))?(-s(?P<seed>\d+))?")


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """A Hadamard transform of `size` columns, on the side of the inputs (k), outputs (n) or both.

    Names: `raw` (none), `h128` (inputs), `h128-out`, `h64-both-s7` (seed 7).
    """

    #: 0: no rotation
    size: int = 0
    side: str = "in"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 0 or self.size & (self.size - 1) or self.size == 1:
            raise DeclarationError(
                "a Hadamard size is no power of two", found=self.size, allowed="0 (none), 2, 4, ..."
            )
        if self.side not in SIDES:
            raise DeclarationError("no such side", found=self.side, allowed=SIDES)
        if not 0 <= self.seed < 1 << 32:
            raise DeclarationError("a seed is no uint32", found=self.seed)

    @property
    def name(self) -> str:
        """The name that `parse` turns back into this rotation."""
        if not self.size:
            return "raw"
        side = "" if self.side == "in" else f"-{self.side}"
        return f"h{self.size}{side}" + (f"-s{self.seed}" if self.seed else "")

    @classmethod
    def parse(cls, name: str) -> Rotation:
        """The rotation of that name; raises DeclarationError."""
        if name == "raw":
            return cls()
        match = _NAME.fullmatch(name)
        if match is None:
            raise DeclarationError(
                "no such rotation", found=name, allowed="raw, hSIZE[-in|-out|-both][-sSEED]"
            )
        return cls(
            size=int(match["size"]), side=match["side"] or "in", seed=int(match["seed"] or 0)
        )

    @property
    def input_size(self) -> int:
        """Columns (k) of one transform; 0 where the inputs are not rotated."""
        return self.size if self.side != "out" else 0

    @property
    def output_size(self) -> int:
        """Rows (n) of one transform; 0 where the outputs are not rotated."""
        return self.size if self.side != "in" else 0
