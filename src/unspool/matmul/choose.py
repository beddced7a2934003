"""Which kernel multiplies: a pure function of format, target and the activations asked for.

numpy               the slow twin, where there is no library or no table
integer-TARGET      int8 activations (a scale per row and 128 columns) times int8 levels, summed
                    exactly; the same bits on every target (`matmul.integer` is the definition).
                    Codes of a few known shapes are decoded in registers, others by their table
float-TARGET        float32 activations times weights decoded to float32; portable and avx2. With
                    bf16 activations, these are rounded first
pairs-TARGET        bf16 activations times bf16 levels, two at a time (VDPBF16PS): avx512 with BF16,
                    and in plain C++ for comparison

integer-avx512 is compiled and its source run through plain C++ stand-ins of its instructions
(integer-portable is just that); native execution is yet to be recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

from unspool.errors import UnspoolError
from unspool.matmul.tables import integer_levels, why_no_entries
from unspool.spec.format import Format

KINDS = {"integer": 1, "pairs": 3}
"""Kinds of kernels as the C++ library numbers them (cpu/product.hpp)."""

FLOAT_KINDS = {"float32": 0, "bf16": 2}
"""Those of the float kernels, by what their activations are rounded to."""

#: target -> number of its kernels in the C++ library (cpu/features.hpp)
PATHS = {"portable": 0, "avx2": 1, "avx512": 2, "neon": 3}

FLOAT_PATHS = {"portable": "portable", "avx2": "avx2", "avx512": "avx2", "neon": "portable"}
"""The float kernels that a target runs."""

ACTIVATIONS = ("auto", "int8", "bf16", "float32")
"""What a product rounds its activations to. auto: int8 where the weights are exact in int8, else
bf16 where the machine multiplies that and the weights are exact in it, else float32."""

BFLOAT16_BITS = 8
"""Significant bits of a bf16 number, the hidden one included."""

BLOCK = 128
"""Columns that share the scale of an int8 activation."""

CHUNK = 512
"""Columns decoded at a time; whole tiles."""

PAIR_CHUNK = 256
"""The same for the product of pairs."""

MOST_LANES = 64


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A path, the activations it rounds to, and the reason for it."""

    path: str
    activations: str
    why: str

    @property
    def numbers(self) -> tuple[int, int]:
        """Path and kind as the C++ library numbers them."""
        kind, _, target = self.path.partition("-")
        return PATHS[target], KINDS.get(kind, FLOAT_KINDS.get(self.activations, 0))


def check_activations(name: str) -> None:
    """Raises UnspoolError for a name that is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise UnspoolError("no such activations", found=name, allowed=ACTIVATIONS)


def choose(fmt: Format, target: str, activations: str = "auto", *, pairs: bool = False) -> Choice:
    """The kernel of a format on a target of `decode.target`; `pairs`: it has VDPBF16PS.

    Raises UnspoolError for activations that do not exist, or int8 where the weights are not exact.
    """
    check_activations(activations)
    reason = why_not_integer(fmt)
    if reason and activations == "int8":
        raise UnspoolError(
            f"no product with int8 activations: {reason}",
            where=fmt.name,
            found=activations,
            allowed="auto, bf16, float32",
        )
    pairs = pairs and exact_in_bfloat16(fmt)
    rounded = activations
    if activations == "auto":
        rounded = "int8" if not reason else "bf16" if pairs and target != "portable" else "float32"
    untabulated = why_no_entries(fmt.code)
    if target == "numpy" or untabulated:
        why = untabulated or "no compiled library in use"
        return Choice(path="numpy", activations=rounded, why=why)
    if rounded == "int8":
        return Choice(path=f"integer-{target}", activations=rounded, why="values exact in int8")
    why = f"no integers: {reason}" if activations == "auto" else f"{rounded} was asked for"
    if rounded == "bf16" and pairs:
        return Choice(path=f"pairs-{target}", activations=rounded, why=why)
    return Choice(path=f"float-{FLOAT_PATHS[target]}", activations=rounded, why=why)


def exact_in_bfloat16(fmt: Format) -> bool:
    """Whether bf16 holds a format's values, and its tiles and blocks fit the product of pairs."""
    operand, block = fmt.code.operand, fmt.scale.block or PAIR_CHUNK
    significant = operand.bits if operand.integer else operand.mantissa_bits + 1
    fits = PAIR_CHUNK % fmt.code.tile[1] == 0 and block % 2 == 0 and fmt.column_unit % 2 == 0
    return significant <= BFLOAT16_BITS and fits


def why_not_integer(fmt: Format) -> str:
    """Why a format has no product with int8 activations; empty where it has."""
    code = fmt.code
    block = fmt.scale.block or BLOCK
    checks = (
        (not code.program.parameters, "the table is a parameter"),
        (not why_no_entries(code), "no table"),
        (code.lanes <= MOST_LANES, f"{code.lanes} lanes"),
        (CHUNK % code.tile[1] == 0, f"tiles of {code.tile[1]} columns do not divide {CHUNK}"),
        (block % 4 == 0 and fmt.column_unit % 4 == 0, "blocks or columns not in fours"),
    )
    for holds, otherwise in checks:
        if not holds:
            return otherwise
    if integer_levels(code) is None:
        return "values that are not int8 times a power of two"
    return ""
