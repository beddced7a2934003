"""A search's result: found and published codes in one table, plot or format file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unspool.decode.machine import Machine, Slot, machine
from unspool.errors import DeclarationError, EvaluationError
from unspool.evaluate.plot import check_matplotlib
from unspool.explore import cpu_rows, published, score
from unspool.explore.explorer import Settings
from unspool.explore.front import Found, pareto
from unspool.explore.row import Row, format_of
from unspool.explore.score import Sample, branches, distortion, estimated, lowered, slot_of
from unspool.matmul.cuda.recipe import recipe
from unspool.perf.bound import Bound, bound, of_count
from unspool.perf.count import PACKED_FP4, Count, count
from unspool.perf.device import DEVICES, OF_TARGET
from unspool.perf.toolchain import toolchain, why_not
from unspool.spec.catalog.files import write_format
from unspool.spec.code import Code
from unspool.spec.format import Format
from unspool.spec.operand import INT8

WORST = 2.5
"""Times the bound: Lloyd-Max levels, which decode for nothing, have 1.5 at 1 bit, 2.4 at 4."""

SIZE = (8192, 28672)
"""(n, k) of the product that bounds are of: large, so that its launch is little."""

_OWN: Mapping[Slot, tuple[str, ...]] = {PACKED_FP4: ("fp4",), Slot(INT8): ("int8",)}
"""Activations that are asked for by name beside weights in a slot."""

check_plot = check_matplotlib


def found_rows(best: Sequence[Found], settings: Settings) -> list[Row]:
    """The front, the cheapest first; what another beats once machine code was counted is left
    out."""
    hunt = settings.hunt()
    codes = [hunt.code(each.genome, each.sigma) for each in best]
    if settings.on_cpu:
        found = [
            cpu_rows.found_row(code, each, settings.target)
            for each, code in zip(best, codes, strict=True)
        ]
    else:
        target = machine(settings.target)
        found = [
            _row(code, code, counted, target, mse=each.mse or 0.0, found=True)
            for each, code, counted in zip(best, codes, _counts(codes, target), strict=True)
        ]
    most = settings.within or float("inf")
    found = [r for r in found if r.mse <= WORST * 4.0**-settings.bits and r.total <= most]
    return pareto(found, lambda row: (row.total, row.mse))


def published_rows(settings: Settings, say: Callable[[str], None]) -> list[Row]:
    """Published codes of the rate: programs, measured and counted, then figures of others. On a CPU
    the catalog's stand first: no other project's codes have a strip kernel to count."""
    if settings.on_cpu:
        return cpu_rows.published_rows(settings, say)
    target = machine(settings.target)
    whole = settings.bits == int(settings.bits)
    codes = published.trellis(int(settings.bits)) if whole else ()
    # A ring's length changes no count; 256 steps take the compiler four times as long as 64. And
    # rings of 8 rows are what a product of ours has.
    short = [replace(code, tile=(8, 8)) for code in codes]
    sample = Sample(weights=score.PUBLISHED, seed=settings.seed)
    made = []
    for code, ours, counted in zip(codes, short, _counts(short, target), strict=True):
        say(f"measuring {code.name}")
        mse = float(f"{distortion(code, sample, threads=None):.5g}")
        made.append(_row(code, ours, counted, target, mse=mse, found=False))
    for point in published.points(settings.bits):
        total_known = float("inf") if point.total is None else point.total
        made.append(Row(
            name=point.name, operand="", target=target.name, bits_per_weight=point.bits,
            mse=point.mse, total=total_known, counted=False, found=False, source=point.source,
        ))  # fmt: skip
    return made


def _row(
    code: Code, ours: Code, counted: Count | None, target: Machine, *, mse: float, found: bool
) -> Row:
    """`ours`: the code on rings that our kernels have."""
    fmt = format_of(code)
    return Row(
        name=fmt.name if found else code.name, operand=str(slot_of(code, target)),
        target=target.name, bits_per_weight=code.bits_per_weight, mse=mse,
        total=counted.total if counted else estimated(code, target), counted=counted is not None,
        found=found, edges=branches(code), code=fmt.code if found else code,
        predicted=predicted(format_of(ours), target, counted),
    )  # fmt: skip


def predicted(fmt: Format, target: Machine, counted: Count | None) -> Bound | None:
    """The bound of a product of SIZE with one token on the GPU that stands for a target.

    counted: of the slot of `slot_of`. FP4 activations where that is packed FP4, INT8 where it is
    INT8, and a kernel takes them. None where no kernel does it, or no GPU of the target is known.
    """
    if target.name not in OF_TARGET:
        return None
    slot = slot_of(fmt.code, target)
    for activations in (*_OWN.get(slot, ()), "auto"):
        try:
            made = recipe(fmt, target, activations)
        except DeclarationError:
            continue
        same = counted is not None and made.geometry.lowering.slot == slot
        each = of_count(counted) if counted is not None and same else None
        gpu, (n, k) = DEVICES[OF_TARGET[target.name]], SIZE
        return bound(fmt, gpu, n=n, k=k, m=1, activations=activations, instructions=each)
    return None


def _counts(codes: Sequence[Code], target: Machine) -> list[Count | None]:
    """What machine code says of the decoders; None of each without a compiler."""
    if not codes or why_not():
        return [None] * len(codes)
    return list(count([lowered(code, target) for code in codes], target, toolchain()))


def as_format(row: Row, settings: Settings, generations: int, path: Path) -> Format:
    """Writes a found code as a format's file."""
    if row.code is None:
        raise DeclarationError("only a found code has a format", found=row.name)
    source = f"{settings.command} --generations {generations}"
    fmt = format_of(row.code, source)
    write_format(fmt, path)
    return fmt


def draw(found: Sequence[Row], title: str, path: Path) -> None:
    """Writes a PNG: error over instructions per weight, the found front as a line.

    Raises EvaluationError without matplotlib, or where the file cannot be written.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    ours = [row for row in found if row.found]
    others = [row for row in found if not row.found and row.total != float("inf")]
    axes.plot([r.total for r in ours], [r.mse for r in ours], "o-", label="found")
    axes.plot([r.total for r in others], [r.mse for r in others], "s", label="published")
    for place, row in enumerate(sorted(others, key=lambda row: row.total)):
        above = 8 if place % 2 else -14  # neighbours in turns
        axes.annotate(row.name, (row.total, row.mse), (0, above), ha="center", fontsize="small",
                      textcoords="offset points")  # fmt: skip
    for row in found:
        if row.total == float("inf"):
            axes.axhline(row.mse, linestyle=":", linewidth=0.8, color="0.5")
            axes.annotate(row.name, (0.99, row.mse), ha="right", va="bottom",
                          xycoords=("axes fraction", "data"), fontsize="small")  # fmt: skip
    axes.set(title=title, xlabel="instructions per weight", ylabel="mean squared error")
    axes.margins(x=0.1)
    axes.set_ylim(
        0.9 * min(r.mse for r in found), 1.1 * max((r.mse for r in (*ours, *others)), default=1.0)
    )
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise EvaluationError("the plot cannot be written", where=str(path), found=str(error)
                              ) from error  # fmt: skip
