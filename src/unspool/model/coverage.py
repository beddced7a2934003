"""How well a calibration text covers the experts of a model: tokens that reach each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from unspool.model.expert_names import expert_of


@dataclass(frozen=True, kw_only=True)
class Reach:
    """A calibrated layer, the columns of its weight, and the tokens it was calibrated on."""

    name: str
    columns: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Tokens per expert.

    experts    how many there are
    least      tokens of the expert that has fewest, and the median
    thin       experts with fewer tokens than columns: their moments have not full rank, and what
               is known of the other directions is the damping
    unreached  those without any, which were rounded plainly
    """

    experts: int
    least: int
    median: float
    thin: int
    unreached: int

    def __str__(self) -> str:
        return (
            f"{self.experts} experts calibrated on {self.least:,} tokens or more, "
            f"{self.median:,.0f} in the median; {self.thin} on fewer tokens than columns, "
            f"{self.unreached} on none"
        )


def coverage(layers: Iterable[Reach]) -> Coverage | None:
    """Of the experts among the layers; None where there is none.

    An expert's layers are reached by the same tokens; its columns are those of the widest.
    """
    columns: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for layer in layers:
        expert = expert_of(layer.name)
        if expert is not None:
            columns[expert] = max(columns.get(expert, 0), layer.columns)
            tokens[expert] = min(tokens.get(expert, layer.tokens), layer.tokens)
    if not tokens:
        return None
    return Coverage(
        experts=len(tokens),
        least=min(tokens.values()),
        median=median(tokens.values()),
        thin=sum(0 < tokens[name] < columns[name] for name in tokens),
        unreached=sum(not count for count in tokens.values()),
    )
