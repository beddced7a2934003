"""Mask-and-tile: where to store the bits of codes without memory so that masks take them out.

    word      s a a a s a a a ...  one AND gives the first register of a word,
              . . . .              the word turned by a few bits and the same AND the next

Given which bits of a field a code's bits must reach, the cheapest way to cut a few words into such
fields is found by exact cover; the words' bits are then stored in the order that it wants.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import lcm

from unspool.decode.lowering import Tape

#: (word, rotation right, destinations in the field)
Piece = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """`words` words give `len(registers)` registers, each an or of pieces."""

    words: int
    registers: tuple[tuple[Piece, ...], ...]

    @property
    def cost(self) -> int:
        """Shifts and LOP3s."""
        return sum(_cost(register) for register in self.registers)


def tiling(field: int, destinations: tuple[int, ...]) -> Tiling:
    """The cheapest tiling of words into fields with all of `destinations` taken."""
    words = lcm(field, len(destinations)) // field
    count = words * field // len(destinations)
    first: list[tuple[Piece, ...]] = []
    free = frozenset((word, bit) for word in range(words) for bit in range(field))
    if words > 1:  # every word gives one register by a mask alone; the rest is what remains
        first = [((word, 0, destinations),) for word in range(words)]
        free -= {(word, bit) for word in range(words) for bit in destinations}
    _, rest = _cover(free, field, destinations)
    assert len(first) + len(rest) == count
    return Tiling(words=words, registers=(*first, *rest))


def cut(tape: Tape, words: list[str], field: int, found: Tiling) -> list[str]:
    """Writes a tiling down for some words; its registers."""
    registers = []
    for pieces in found.registers:
        merged = [
            (words[word], amount, _mask(field, destinations))
            for word, amount, destinations in pieces
        ]
        registers.append(tape.merge(merged, {}))
    return registers


def sources(field: int, found: Tiling, register: int) -> dict[int, tuple[int, int]]:
    """Bit of a register -> (word, bit of the word) that it comes from."""
    return {
        place + bit: (word, (place + bit + amount) % 32)
        for word, amount, destinations in found.registers[register]
        for bit in destinations
        for place in range(0, 32, field)
    }


def _mask(field: int, destinations: tuple[int, ...]) -> int:
    return sum(1 << (place + bit) for place in range(0, 32, field) for bit in destinations)


def _cost(pieces: tuple[Piece, ...]) -> int:
    return sum(1 + (amount != 0) for _, amount, _ in pieces)


@functools.lru_cache(maxsize=1 << 16)
def _cover(
    free: frozenset[tuple[int, int]], field: int, destinations: tuple[int, ...]
) -> tuple[int, tuple[tuple[Piece, ...], ...]]:
    """Cost and registers of the cheapest cover of the free bits."""
    if not free:
        return 0, ()
    best: tuple[int, tuple[tuple[Piece, ...], ...]] = (1 << 30, ())
    least = -(-len(free) // len(destinations))
    for pieces in sorted(_registers(free, field, destinations), key=_cost):
        if _cost(pieces) + least - 1 >= best[0]:
            break
        cost, rest = _cover(free - _taken(pieces, field), field, destinations)
        if cost + _cost(pieces) < best[0]:
            best = cost + _cost(pieces), (pieces, *rest)
    return best


def _taken(pieces: tuple[Piece, ...], field: int) -> frozenset[tuple[int, int]]:
    return frozenset((word, (bit + turn) % field) for word, turn, bits in pieces for bit in bits)


def _registers(
    free: frozenset[tuple[int, int]], field: int, destinations: tuple[int, ...]
) -> Iterator[tuple[Piece, ...]]:
    """Ways to fill one register that take the lowest free bit, of one to three pieces."""
    lowest = min(free)
    for pieces in _fillings(free, field, destinations, 3):
        if lowest in _taken(pieces, field):
            yield pieces


def _fillings(
    free: frozenset[tuple[int, int]], field: int, destinations: tuple[int, ...], most: int
) -> Iterator[tuple[Piece, ...]]:
    words = sorted({word for word, _ in free})
    for word in words:
        for amount in range(field):
            able = [d for d in destinations if (word, (d + amount) % field) in free]
            if len(able) == len(destinations):
                yield ((word, amount, destinations),)
            elif most > 1:
                yield from _split(free, field, destinations, most, (word, amount), able)


def _split(
    free: frozenset[tuple[int, int]],
    field: int,
    destinations: tuple[int, ...],
    most: int,
    way: tuple[int, int],
    able: list[int],
) -> Iterator[tuple[Piece, ...]]:
    """Fillings whose piece with the highest destination takes the given word and amount."""
    top = destinations[-1]
    if top not in able:
        return
    for size in range(len(able) - 1, -1, -1):
        for others in combinations([d for d in able if d != top], size):
            piece = (*way, (*others, top))
            rest = tuple(d for d in destinations if d not in piece[2])
            left = free - _taken((piece,), field)
            for more in _fillings(left, field, rest, most - 1):
                yield (piece, *more)
