"""Predicted times of formats in a model: what all quantized layers of one step need at least.

On a GPU every layer is a product of its own (`model.siblings` joins products on CPUs alone), so
times and launches add up. Bounds, not promises (`perf.bound`): good to compare plans.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from unspool.errors import DeclarationError, ModelError
from unspool.explore.allocate import NANOSECONDS, Group
from unspool.perf.bound import bound
from unspool.perf.device import DEVICES, Device
from unspool.spec.catalog import parse

Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where a step is made, and of how many tokens."""

    device: Device
    tokens: int

    def seconds(self, fmt: str, shapes: Iterable[Shape]) -> float:
        """The time of layers of these sizes `(n, k)` in a format, each in whole nanoseconds.

        Raises DeclarationError where no kernel multiplies the format there.
        """
        gpu, tokens = self.device.name, self.tokens
        return sum(_nanoseconds(fmt, shape, gpu, tokens) for shape in shapes) / NANOSECONDS

    def timed(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups with the time of every option; options that no kernel multiplies are left out.

        Raises ModelError for a group with none left, and for experts, whose tokens routing decides.
        """
        return tuple(map(self._timed, groups))

    def _timed(self, group: Group) -> Group:
        if "experts.*" in group.name:
            raise ModelError("a budget of time is for models without experts", where=group.name)
        options, refused = [], ""
        for option in group.options:
            try:
                seconds = self.seconds(option.format, group.shapes)
            except DeclarationError as error:
                refused = str(error)
                continue
            options.append(replace(option, seconds=seconds))
        if not options:
            raise ModelError("no format of a group has a kernel", where=group.name, found=refused)
        return replace(group, options=tuple(options))


@functools.lru_cache(maxsize=4096)
def _nanoseconds(fmt: str, shape: Shape, gpu: str, tokens: int) -> int:
    n, k = shape
    found = bound(parse(fmt), DEVICES[gpu], n=n, k=k, m=tokens)
    return round(found.seconds * NANOSECONDS)
