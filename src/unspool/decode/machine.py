"""NVIDIA machines: which operands their matrix units read, and in which containers.

Sources: the PTX ISA 9.0 (mma, wgmma, tcgen05.mma, cvt) and what ptxas 13.0 accepts. E2M1 in an
8-bit container stands in bits [5:2], E2M3 and E3M2 in bits [5:0].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unspool.errors import DeclarationError
from unspool.spec.operand import BF16, E2M1, E2M3, E3M2, E4M3, E5M2, FP16, INT8, Operand

PACKED, BYTES = "packed", "bytes"
CONTAINERS = (PACKED, BYTES)


@dataclass(frozen=True)
class Slot:
    """An operand and how it sits in a 32-bit register: side by side, or in bytes."""

    operand: Operand
    container: str = PACKED

    def __post_init__(self) -> None:
        narrow = self.operand.bits < 8
        allowed = CONTAINERS if self.operand is E2M1 else (BYTES if narrow else PACKED,)
        if self.container not in allowed:
            raise DeclarationError(
                f"no registers hold {self.operand.name} so", found=self.container, allowed=allowed
            )

    @property
    def width(self) -> int:
        """Bits of a register that one operand takes."""
        return 8 if self.container == BYTES else self.operand.bits

    @property
    def low(self) -> int:
        """Bits below the operand in its container."""
        return 2 if self.operand is E2M1 and self.container == BYTES else 0

    @property
    def per_register(self) -> int:
        """Operands in a register."""
        return 32 // self.width

    def __str__(self) -> str:
        return self.operand.name + (" in bytes" if self.container == BYTES else "")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A target of emitted CUDA."""

    name: str
    #: as ptxas spells it; the letter unlocks what the matrix units of this family have
    architecture: str
    #: what the matrix units read, the narrowest first: it carries most weights per instruction
    slots: tuple[Slot, ...]
    #: instructions of `lowering.CONVERSIONS` that it has
    converts: frozenset[str] = frozenset()


_WIDE = (Slot(INT8), Slot(FP16), Slot(BF16))
_EIGHT = (Slot(E4M3), Slot(E5M2), *_WIDE)
_FOUR = (Slot(E2M1), Slot(E2M1, BYTES), Slot(E2M3, BYTES), Slot(E3M2, BYTES), *_EIGHT)
_FROM_E4M3 = frozenset({"half2-of-e4m3"})
_FROM_NARROW = _FROM_E4M3 | {"half2-of-e2m1", "half2-of-e2m3", "half2-of-e3m2"}

MACHINES: Mapping[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine(name="sm80", architecture="sm_80", slots=(Slot(FP16), Slot(BF16), Slot(INT8))),
        Machine(name="sm89", architecture="sm_89", slots=_EIGHT, converts=_FROM_E4M3),
        Machine(name="sm90", architecture="sm_90a", slots=_EIGHT, converts=_FROM_E4M3),
        Machine(name="sm100", architecture="sm_100a", slots=_FOUR, converts=_FROM_NARROW),
        Machine(name="sm120", architecture="sm_120a", slots=_FOUR, converts=_FROM_NARROW),
    )
}


def machine(name: str) -> Machine:
    """The machine of that name; raises DeclarationError."""
    if name not in MACHINES:
        raise DeclarationError("no such CUDA target", found=name, allowed=MACHINES)
    return MACHINES[name]
