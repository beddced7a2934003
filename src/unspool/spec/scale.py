"""Scales: what the values of a code are multiplied with to become weights."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unspool.errors import DeclarationError
from unspool.spec.operand import SCALE_OPERANDS, Operand

_NAME = re.compile(r"none|tensor|(row|b(?P<block>\d+))-(?P<operand>[a-z0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One scale per row, or per block of columns of a row, times an FP32 scale per tensor.

    Names: `none`, `tensor` (the FP32 scale alone), `row-fp16`, `b32-e8m0`, `b16-e4m3`, ...
    E8M0 scales stand alone, as the OCP standard has it; all others have the tensor scale, which
    keeps them inside the range of their format.
    """

    #: None: no scale but the tensor's
    operand: Operand | None = None
    #: columns per scale; None: the whole row
    block: int | None = None
    #: whether an FP32 scale per tensor multiplies all
    tensor: bool = False

    def __post_init__(self) -> None:
        if self.block is not None and (self.operand is None or self.block < 1):
            raise DeclarationError("a block of scales needs a format and a size", found=self.block)
        if self.operand is not None and self.operand.name not in SCALE_OPERANDS:
            raise DeclarationError(
                "not a scale format", found=self.operand.name, allowed=SCALE_OPERANDS
            )
        if self.operand is not None and self.tensor != self.operand.signed:
            raise DeclarationError("E8M0 scales stand alone, others have a tensor scale")

    @property
    def name(self) -> str:
        """The name that `parse` turns back into this scale."""
        if self.operand is None:
            return "tensor" if self.tensor else "none"
        kind = "row" if self.block is None else f"b{self.block}"
        return f"{kind}-{self.operand.name.lower()}"

    @classmethod
    def parse(cls, name: str) -> Scale:
        """The scale of that name; raises DeclarationError."""
        match = _NAME.fullmatch(name)
        operand = (match["operand"] or "").upper() if match else ""
        if match is None or (operand not in SCALE_OPERANDS) != (name in ("none", "tensor")):
            raise DeclarationError(
                "no such scale",
                found=name,
                allowed="none, tensor, row-FORMAT or bCOLUMNS-FORMAT with FORMAT of "
                + ", ".join(sorted(SCALE_OPERANDS)).lower(),
            )
        if not operand:
            return cls(tensor=name == "tensor")
        return cls(
            operand=SCALE_OPERANDS[operand],
            block=int(match["block"]) if match["block"] else None,
            tensor=SCALE_OPERANDS[operand].signed,
        )

    def count(self, n: int, k: int) -> tuple[int, int]:
        """Scales along the rows and along the columns of an `[n, k]` matrix."""
        if self.operand is None:
            return 0, 0
        return n, 1 if self.block is None else -(-k // self.block)

    def bits(self, n: int, k: int) -> int:
        """Stored bits of all scales of an `[n, k]` matrix, the tensor's included."""
        rows, columns = self.count(n, k)
        each = self.operand.bits if self.operand else 0
        return rows * columns * each + (32 if self.tensor else 0)
