"""A row of a search's result, and the format of a found code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unspool.perf.bound import Bound
from unspool.spec.code import Code
from unspool.spec.format import Format
from unspool.spec.rotation import Rotation
from unspool.spec.scale import Scale


@dataclass(frozen=True, kw_only=True)
class Row:
    """A code with its two figures: error of its rings, and instructions per weight of the target.

    counted: in machine code; else by our lowering, or by the source. found: by this search.
    instructions_per_64_weights: the same count, of a CPU's loop; None on GPUs. predicted: the bound
    of a large product at batch 1 on the target's GPU; None without a kernel.
    """

    name: str
    operand: str
    target: str
    bits_per_weight: float
    mse: float
    total: float
    instructions_per_64_weights: float | None = None
    counted: bool
    found: bool
    source: str = ""
    edges: int | None = None
    code: Code | None = None
    predicted: Bound | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, the code as its declaration."""
        return asdict(self) | {
            "total": None if self.total == float("inf") else self.total,
            "code": self.code.to_json() if self.code else None,
            "predicted": self.predicted.to_json() if self.predicted else None,
        }

    def cells(self) -> tuple[str, ...]:
        """The cells of a table."""
        known, of_64 = self.total != float("inf"), self.instructions_per_64_weights
        total = f"{self.total:.3f}" if of_64 is None else f"{self.total:.3f}, {of_64:.2f} of 64"
        return (
            self.name, self.operand, f"{self.mse:.5f}",
            f"{total}{'' if self.counted else ' *'}" if known else "",
            f"{100 * self.predicted.fraction:.0f} %" if self.predicted else "",
            f"{self.mse * 4**self.bits_per_weight:.3f}x", f"{self.edges:,}" if self.edges else "",
        )  # fmt: skip


def format_of(code: Code, source: str = "") -> Format:
    """The format of a found code, named by its content: rows have scales, inputs are rotated."""
    shown = f"x{code.bits_per_weight:g}-{code.operand.name.lower()}"
    whole = Format(
        name=shown, code=code, scale=Scale.parse("row-fp16"), rotation=Rotation(size=128),
        source=source,
    )  # fmt: skip
    name = f"{shown}-{whole.content_hash[:6]}"
    return Format(
        name=name, code=Code.from_json({**code.to_json(), "name": name}), scale=whole.scale,
        rotation=whole.rotation, source=source,
    )  # fmt: skip
