"""A product as launches: tiles of tokens, blocks, workspaces, and the structs that kernels take."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from unspool.errors import UnspoolError
from unspool.matmul.cuda.geometry import BLOCK_ROWS
from unspool.matmul.cuda.recipe import NARROW_COLUMNS, Recipe

MOST_PRODUCT = 1 << 31
"""Units times blocks must be less: kernels divide in 32 bits."""

RESERVED = 1024
"""Bytes of shared memory that CUDA takes of every block."""

MOST_BLOCKS = {"mma_sync": 3, "wgmma": 2, "tcgen05": 2}
"""Blocks of a multiprocessor for which registers (168 a thread each) and tensor memory (half of it
each) may do; more would only make more partial sums."""

MOST_PARTIAL_BYTES = 256 << 20
"""Of the sums that the blocks of a mixture's launch leave for each other; more tiles take turns. Of
32,768 tokens of a Mixtral layer all tiles would have 35 GB of them."""

USUAL_TOKENS = 16
"""What a GPU's number of blocks is made for: it must not depend on m."""


class Arguments(ctypes.Structure):
    """As `arguments.cuh` has them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "weights", "activations", "row_scales", "token_scales", "levels", "experts", "targets",
            "output", "partials", "arrivals",
        )),
        *((name, ctypes.c_int) for name in ("m", "n", "row_blocks", "stages")),
    ]  # fmt: skip


class ActivationArguments(ctypes.Structure):
    """As `activations.cuh` has them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "input", "signs", "sources", "positions", "output", "token_scales",
        )),
        *((name, ctypes.c_int) for name in ("rows", "k", "stages")),
    ]  # fmt: skip


class ExpandArguments(ctypes.Structure):
    """As `expand.cuh` has them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weights", "levels", "output")),
        *((name, ctypes.c_int) for name in ("row_blocks", "stages")),
    ]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a product of m tokens is spread over a GPU.

    Blocks and their shares depend on the matrix and the GPU, never on m: the sums of a token are
    the same whatever batch it stands in.
    """

    recipe: Recipe
    m: int
    row_blocks: int
    stages: int
    #: tokens of a tile
    tokens: int
    #: blocks along x, each with the same number of units
    blocks: int

    @property
    def tiles(self) -> int:
        """Tiles of tokens: blocks along y."""
        return -(-self.m // self.tokens)

    @property
    def columns(self) -> int:
        """Columns of a tile's product."""
        return self.tokens * self.recipe.terms

    @property
    def activation_bytes(self) -> int:
        """Bytes of all prepared activations."""
        return self.tiles * self.stages * self.recipe.activation_bytes(self.tokens)

    @property
    def partial_bytes(self) -> int:
        """Bytes of the sums that blocks leave for each other, of all tiles."""
        return self.tiles * self._tile_partial_bytes

    @property
    def together(self) -> int:
        """Tiles whose sums may take memory at a time, where tiles can take turns."""
        return min(self.tiles, max(1, MOST_PARTIAL_BYTES // self._tile_partial_bytes))

    @property
    def _tile_partial_bytes(self) -> int:
        return 2 * self.blocks * self.columns * BLOCK_ROWS * 4

    @property
    def arrivals(self) -> int:
        """Counters, zero before the first launch; every launch leaves them so."""
        return self.tiles * self.row_blocks


def tokens_of(made: Recipe, m: int) -> int:
    """Tokens of a tile: as few as hold m, in eights (sixteens of columns for tcgen05)."""
    least = 16 if made.loop == "tcgen05" and made.terms % 2 else 8
    wanted = max(least, 8 * -(-m // 8))
    tokens = least
    while tokens < wanted and 2 * tokens * made.terms <= made.most_columns:
        tokens *= 2
    return tokens


def most_blocks(made: Recipe, tokens: int) -> int:
    """MOST_BLOCKS, but one where 168 registers would be too few, in tiles of so many tokens.

    wgmma takes 220 to 255 beside several terms and in tiles of more than 16 columns; tcgen05 as
    many in those of more than 32.
    """
    columns = tokens * made.terms
    several = made.loop == "wgmma" and (made.terms > 1 or columns > USUAL_TOKENS)
    wide = made.loop == "tcgen05" and columns > NARROW_COLUMNS
    return 1 if several or wide else MOST_BLOCKS[made.loop]


SLOTS = range(6, 1, -1)
"""Stages in flight: as many as leave room for a second block, where registers do, for one can wait
for the other."""


def slots_of(made: Recipe, tokens: int, *, per_block: int, per_processor: int) -> tuple[int, int]:
    """(stages in flight, blocks of a multiprocessor) in so many bytes of shared memory.

    Raises UnspoolError where not even two stages fit.
    """
    most = most_blocks(made, tokens)
    for at_least in range(min(2, most), 0, -1):
        for slots in SLOTS:
            needed = made.shared_bytes(tokens, slots) + RESERVED
            blocks = per_processor // needed
            if needed <= per_block + RESERVED and blocks >= at_least:
                return slots, min(blocks, most)
    raise UnspoolError(
        "two stages do not fit into shared memory",
        where=f"{made.format.name} on {made.machine.name}, {tokens} tokens",
        found=f"{made.shared_bytes(tokens, 2)} bytes",
        allowed=per_block,
    )


def blocks_of(made: Recipe, *, processors: int, per_block: int, per_processor: int) -> int:
    """Blocks that a GPU of so many multiprocessors runs at once, whatever m is."""
    tokens = tokens_of(made, USUAL_TOKENS)
    _, each = slots_of(made, tokens, per_block=per_block, per_processor=per_processor)
    return processors * each


def plan(
    made: Recipe, m: int, row_blocks: int, stages: int, *, blocks: int, tokens: int | None = None
) -> Plan:
    """The plan for m tokens; `blocks` is how many the GPU runs at once, `tokens` those of a tile.

    Raises UnspoolError for a matrix too large for a kernel's 32-bit arithmetic.
    """
    units = row_blocks * stages
    if units * (blocks + 1) >= MOST_PRODUCT:
        raise UnspoolError("a matrix is too large for one launch", found=f"{units} units")
    return Plan(
        recipe=made,
        m=m,
        row_blocks=row_blocks,
        stages=stages,
        tokens=tokens or tokens_of(made, m),
        blocks=min(blocks, units),
    )
