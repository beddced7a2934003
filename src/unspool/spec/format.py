"""Formats: a code, its scales and its rotation; all there is to know about a stored matrix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

from unspool.errors import DeclarationError
from unspool.spec.code import Code
from unspool.spec.operand import E4M3, FP16
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale

UNROTATED = Rotation()


def digest(data: object) -> str:
    """16 hexadecimal digits of SHA-256 over what JSON makes of data, keys in order."""
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A code, its scales and its rotation. The name is `CODE[:SCALE][:ROTATION]`.

    The name of a catalog entry stands for all three; a part that differs is spelled behind it, as
    in `t2-e2m1:b128-fp16:h64-both`.
    """

    name: str
    code: Code
    scale: Scale
    rotation: Rotation = UNROTATED
    #: where the format comes from: a standard, a paper, or the command that made it
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        block = self.scale.block
        if block is not None and block % self.code.lanes:
            raise DeclarationError(
                "a block of scales ends inside a step",
                where=self.name,
                found=block,
                allowed=f"multiples of {self.code.lanes}",
            )
        if self.code.sigma is not None and self.scale.operand not in (FP16, E4M3):
            # A trellis need not pass through zero: a row of zeros needs a scale of zero.
            raise DeclarationError(
                "a fitted code needs scales that can be zero, per row or block",
                where=self.name,
                found=self.scale.name,
                allowed="row-fp16, row-e4m3, bCOLUMNS-fp16, bCOLUMNS-e4m3",
            )

    def vary(self, *, scale: Scale | None = None, rotation: Rotation | None = None) -> Format:
        """The same code with another scale or rotation, spelled in the name."""
        base, *spelled = self.name.split(":")
        parts = [base]
        for old, new in ((self.scale, scale), (self.rotation, rotation)):
            if new is not None or old.name in spelled:
                parts.append((new or old).name)
        return replace(
            self,
            name=":".join(parts),
            scale=scale or self.scale,
            rotation=rotation or self.rotation,
        )

    def padded(self, n: int, k: int) -> tuple[int, int]:
        """The stored size of an `[n, k]` matrix: whole tiles, blocks and transforms."""
        return _up(n, self.row_unit), _up(k, self.column_unit)

    @property
    def row_unit(self) -> int:
        """n is padded to a multiple of this."""
        return lcm(self.code.tile[0], self.rotation.output_size or 1, self._parameter_tile[0])

    @property
    def column_unit(self) -> int:
        """k is padded to a multiple of this."""
        sizes = self.code.tile[1], self.rotation.input_size or 1, self._parameter_tile[1]
        return lcm(*sizes, self.scale.block or 1)

    def stored_bits(self, n: int, k: int) -> int:
        """All bits stored for an `[n, k]` matrix: codes, scales, parameters, padding."""
        rows, columns = self.padded(n, k)
        codes = rows * columns * self.code.bits_per_weight
        parameters = 0
        for parameter in self.code.program.parameters:
            down, across = parameter.units(rows, columns)
            parameters += down * across * parameter.bits
        return int(codes) + parameters + self.scale.bits(rows, columns)

    def bits_per_weight(self, n: int = 4096, k: int = 4096) -> float:
        """Stored bits per weight of an `[n, k]` matrix, everything included."""
        return self.stored_bits(n, k) / (n * k)

    @property
    def overheads(self) -> dict[str, str]:
        """What is stored beside the codes, as `{name: what, per what}`."""
        found = {
            parameter.name: f"{parameter.length} x {parameter.operand.name} per "
            + (
                f"{parameter.tile[0]}x{parameter.tile[1]} tile"
                if parameter.tile
                else parameter.scope
            )
            for parameter in self.code.program.parameters
        }
        if self.scale.operand is not None:
            per = f"block of {self.scale.block}" if self.scale.block else "row"
            found["scale"] = f"{self.scale.operand.name} per {per}"
        if self.scale.tensor:
            found["tensor scale"] = "FP32 per tensor"
        return found

    def to_json(self) -> dict[str, Any]:
        """The full declaration as a plain dictionary; `from_json` turns it back."""
        return {
            "name": self.name,
            "code": self.code.to_json(),
            "scale": self.scale.name,
            "rotation": self.rotation.name,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Format:
        """The format that `to_json` wrote; raises DeclarationError on anything else."""
        try:
            return cls(
                name=data["name"],
                code=Code.from_json(data["code"]),
                scale=Scale.parse(data["scale"]),
                rotation=Rotation.parse(data["rotation"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DeclarationError(
                "not a declaration of a format", found=f"{type(error).__name__}: {error}"
            ) from error

    @property
    def content_hash(self) -> str:
        """16 hexadecimal digits of SHA-256 over the declaration; names do not count."""
        data = self.to_json()
        del data["name"], data["code"]["name"]
        return digest(data)

    @property
    def _parameter_tile(self) -> tuple[int, int]:
        tiles = [p.tile for p in self.code.program.parameters if p.tile]
        return tiles[0] if tiles else (1, 1)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
