"""A format explained in text: its planes drawn on their ring, its program, where its bits go."""

from __future__ import annotations

from collections.abc import Iterator

from unspool.spec.code import Code, Plane
from unspool.spec.format import Format
from unspool.spec.program import Table

HEAD, TAIL = 32, 8
"""Ring bits drawn: the first and, after a gap, the last, where windows wrap around."""

SIZE = 4096
"""Rows and columns of the matrix whose bits are added up."""

WORDS_PER_LINE, LINES = 8, 8
"""Of a table; the rest is in `--json`."""


def describe(fmt: Format, mse: float) -> str:
    """The whole explanation; `mse` is the distortion on a unit Gaussian."""
    return "\n".join(_lines(fmt, mse))


def _lines(fmt: Format, mse: float) -> Iterator[str]:
    code = fmt.code
    yield f"{fmt.name}   {fmt.source}"
    yield f"content hash {fmt.content_hash}"
    yield ""
    for place, plane in enumerate(code.planes):
        yield from _plane(place, plane, code)
    yield from _tile(code)
    yield from _program(code)
    yield ""
    yield from _operand(code)
    yield f"scale     {_scale(fmt)}"
    yield f"rotation  {_rotation(fmt)}"
    yield ""
    yield from _bits(fmt)
    yield ""
    bound = 4 ** -fmt.bits_per_weight(SIZE, SIZE)
    yield (
        f"mean squared error on a unit Gaussian {mse:.5g}, {mse / bound:.2f} times the least "
        f"possible at that rate ({bound:.4g})"
    )


def _plane(place: int, plane: Plane, code: Code) -> Iterator[str]:
    ring = code.plane_bits[place]
    kind = f"{plane.memory} bits of memory" if plane.memory else "plain bits"
    yield (
        f"plane {place}: window {plane.window}, stride {plane.stride} ({kind}); "
        f"{ring} bits per ring"
    )
    for step in (0, 1, 2, code.steps - 1):
        yield f"  step {step:<4}{draw_window(plane, step, ring)}"
    yield ""


def draw_window(plane: Plane, step: int, ring: int) -> str:
    """The ring's bits in a row, `#` where the window of a step lies and `.` elsewhere."""
    taken = {(step * plane.stride + place) % ring for place in range(plane.window)}
    drawn = "".join("#" if bit in taken else "." for bit in range(ring))
    return drawn if ring <= HEAD + TAIL else f"{drawn[:HEAD]} ~ {drawn[-TAIL:]}"


def _tile(code: Code) -> Iterator[str]:
    rows, columns = code.tile
    per_row = columns // code.lanes
    each = f"{code.lanes} weights" if code.lanes > 1 else "1 weight"
    yield f"tile {rows} x {columns}: one ring of {code.steps} steps, {each} along k at each"
    for row in (0, 1):
        first, last = row * per_row, (row + 1) * per_row - 1
        yield f"  row {row}     steps {first} to {last}"
    yield f"  row {rows - 1}     steps {code.steps - per_row} to {code.steps - 1}"
    yield ""


def _program(code: Code) -> Iterator[str]:
    program, low = code.program, 0
    yield f"program: {code.state_bits} bits of state in"
    for place, plane in enumerate(code.planes):
        yield f"  state bits {low} to {low + plane.window - 1}: window of plane {place}"
        low += plane.window
    for table in program.tables:
        yield from _table(table)
    for parameter in program.parameters:
        yield (
            f"  table {parameter.name}: {parameter.length} x {parameter.operand.name}, stored with "
            f"the weights, one per {parameter.scope}"
        )
    for instruction in program.instructions:
        yield f"    {instruction}"
    for lane, (register, offset) in enumerate(program.outputs):
        top = offset + code.operand.bits - 1
        yield f"  lane {lane}: {register}, bits {offset} to {top}"


def _table(table: Table) -> Iterator[str]:
    yield f"  table {table.name}: {len(table.entries)} entries"
    digits = max(len(f"{entry:x}") for entry in table.entries)
    shown = table.entries[: WORDS_PER_LINE * LINES]
    for first in range(0, len(shown), WORDS_PER_LINE):
        row = shown[first : first + WORDS_PER_LINE]
        yield f"    {first:>4}  " + " ".join(f"{entry:0{digits}x}" for entry in row)
    if len(shown) < len(table.entries):
        yield f"    and {len(table.entries) - len(shown)} more (--json)"


def _operand(code: Code) -> Iterator[str]:
    operand = code.operand
    yield f"operand   {operand.name}: {operand.bits} bits, values up to {operand.largest:g}"
    if code.sigma is not None:
        yield f"sigma     {code.sigma:g}: values are fitted to weights of this standard deviation"


def _scale(fmt: Format) -> str:
    stored = [what for name, what in fmt.overheads.items() if name.endswith("scale")]
    return f"{fmt.scale.name}: {', '.join(stored) or 'nothing stored'}"


def _rotation(fmt: Format) -> str:
    rotation = fmt.rotation
    if not rotation.size:
        return "raw: none"
    sides = {"in": "inputs", "out": "outputs", "both": "inputs and outputs"}[rotation.side]
    signs = f"signs of seed {rotation.seed}"
    return f"{rotation.name}: Hadamard of {rotation.size} on the {sides}, {signs}"


def _bits(fmt: Format) -> Iterator[str]:
    """Where the bits per weight of a `[SIZE, SIZE]` matrix go; the parts add up to the total."""
    rows, columns = fmt.padded(SIZE, SIZE)
    parts = {"codes": rows * columns * fmt.code.bits_per_weight}
    for parameter in fmt.code.program.parameters:
        down, across = parameter.units(rows, columns)
        parts[f"table {parameter.name}"] = down * across * parameter.bits
    parts["scales"] = fmt.scale.bits(rows, columns)
    yield f"bits per weight of a {SIZE} x {SIZE} matrix"
    for name, bits in parts.items():
        yield f"  {name:<16}{bits / SIZE**2:9.5f}"
    yield f"  {'in all':<16}{fmt.bits_per_weight(SIZE, SIZE):9.5f}"
    yield f"n padded to multiples of {fmt.row_unit}, k to multiples of {fmt.column_unit}"
