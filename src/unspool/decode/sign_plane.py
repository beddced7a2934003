"""Sign planes: a plain bit per weight beside a plane with memory, xored into the fields' signs.

program    plain = shr(state, window), spread = mul(plain, C), (spread & signs) ^ fields
stored     bits of the plane in such an order that a shift of a word brings a step's to the
           signs, and shifts by other amounts those of other steps: no cutting, no spreading

E4M3, four weights a step: word s...s... s...s...  of steps 0, 4, ...  shl 0, 4, ...
                                .s...s.. .s...s..  of steps 1, 5, ...  shl 1, 5, ...
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from unspool.decode.lowering import AND_XOR, Tape
from unspool.spec.code import WORD_BITS, Code
from unspool.spec.program import STATE, Instruction


@dataclass(frozen=True, kw_only=True)
class SignPlane:
    """Where a program's plain bits go."""

    #: the register that holds them at the signs, and whatever beside
    spread: str
    signs: int
    #: (bit of the register, bit of a step's plain bits)
    places: tuple[tuple[int, int], ...]
    #: how far right a word turns for every step whose bits it has
    amounts: tuple[int, ...]

    def register(self, tape: Tape, words: list[str], step: int) -> str:
        """The register of a step, from the plane's words."""
        word, turn = divmod(step, len(self.amounts))
        return tape.rotate(words[word], self.amounts[turn], self.signs)


def sign_plane(code: Code) -> SignPlane | None:
    """The sign plane of a code; None where its program has none."""
    if len(code.planes) != 2 or code.planes[1].memory:
        return None
    program, plain = code.program, code.planes[1].window
    made = {i.result: i for i in program.instructions}
    reads = Counter(a for i in program.instructions for a in i.arguments if isinstance(a, str))
    reads.update(name for name, _ in program.outputs)
    for reader in program.instructions:
        spread = made.get(str(reader.arguments[0]))
        if spread is None or not _signs(reader) or spread.op != "mul":
            continue
        source, constant = made.get(str(spread.arguments[0])), spread.arguments[1]
        cut = source is not None and source.op == "shr"
        if source is None or not cut or source.arguments != (STATE, code.planes[0].window):
            continue
        alone = reads[source.result] == reads[spread.result] == 1
        signs = int(reader.arguments[1])
        places = _places(int(constant), signs, plain) if isinstance(constant, int) else ()
        amounts = _amounts(signs, WORD_BITS // plain)
        if alone and len(places) == plain and len(amounts) * plain == WORD_BITS:
            return SignPlane(spread=spread.result, signs=signs, places=places, amounts=amounts)
    return None


def stored_bits(code: Code, plane: SignPlane) -> tuple[int, ...]:
    """Which canonical bit of a ring stands at each bit of its words."""
    bits = list(range(WORD_BITS * code.words))
    first, stride = code.plane_bits[0], code.planes[1].stride
    for step in range(code.steps):
        word, turn = divmod(step, len(plane.amounts))
        for place, bit in plane.places:
            at = (place + plane.amounts[turn]) % WORD_BITS
            bits[first + WORD_BITS * word + at] = first + step * stride + bit
    return tuple(bits)


def _signs(reader: Instruction) -> bool:
    """Whether an instruction is (its first argument & a constant) ^ another."""
    arguments = reader.arguments
    return reader.op == "lop3" and arguments[3] == AND_XOR and isinstance(arguments[1], int)


def _places(constant: int, signs: int, plain: int) -> tuple[tuple[int, int], ...]:
    """Where a product with sparse ones has each of the plain bits; empty where they may carry."""
    shifts = [shift for shift in range(WORD_BITS) if constant >> shift & 1]
    if any(b - a < plain for a, b in pairwise(shifts)):
        return ()
    at = [
        (place, place - shift)
        for place in range(WORD_BITS) if signs >> place & 1
        for shift in shifts if 0 <= place - shift < plain
    ]  # fmt: skip
    return tuple(at) if len({bit for _, bit in at}) == len(at) else ()


def _amounts(signs: int, count: int) -> tuple[int, ...]:
    """So many rotations that take the signs from different bits of a word; fewer where it has no
    more."""
    found: list[int] = []
    taken = 0
    for amount in range(WORD_BITS):
        turned = (signs << amount | signs >> (WORD_BITS - amount)) & ((1 << WORD_BITS) - 1)
        if len(found) < count and not turned & taken:
            found.append(amount)
            taken |= turned
    return tuple(found)
