"""A program the search made up goes through files, encoder and kernels (tests/cli: a model)."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from unspool.decode.machine import MACHINES
from unspool.decode.target import why_not
from unspool.encode.encode import encode
from unspool.errors import DeclarationError
from unspool.explore.explorer import Settings, scored
from unspool.explore.front import Found
from unspool.explore.moves import drawn
from unspool.explore.report import as_format, found_rows
from unspool.explore.score import Sample, distortion, fitted
from unspool.explore.space import Space
from unspool.explore.table_hunt import Effort, TableHunt
from unspool.matmul.choose import PATHS
from unspool.matmul.cuda.recipe import recipe
from unspool.matmul.cuda.simulated import Product
from unspool.matmul.kernel import Kernel
from unspool.matmul.reference import decode
from unspool.perf.strip_loop import StripShape
from unspool.spec.catalog import parse
from unspool.spec.format import Format
from unspool.spec.operand import E4M3

SETTINGS = Settings(bits=2, operand="E4M3", target="sm90")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    space, random = Space.of(2, E4M3), np.random.default_rng(11)
    error, sample = 1.0, Sample(weights=1024, seed=0)
    while error > 0.1:
        genome = drawn(space, random)
        plain = genome.end is None and not genome.signs  # others: tests/cli/test_found_kinds.py
        if genome.lanes == 4 and len(genome.steps) > 1 and plain:
            with suppress(DeclarationError):  # all its values are zero
                code = fitted(space.code(genome))
                error = distortion(code, sample)
    sigma = code.sigma or 1.0
    found = Found(genome=genome, sigma=sigma, cost=1.0, screened=0.08, raced=0.08, mse=0.08)
    (row,) = found_rows([found], SETTINGS)
    path = tmp_path_factory.mktemp("found") / "code.json"
    as_format(row, SETTINGS, 1, path)
    return path


SHAPES = {
    2: (StripShape(window=7, plain=0, stride=2), StripShape(window=6, plain=1)),
    1.5: (StripShape(window=4, plain=2, lanes=2),),
}
TABLES = [(bits, operand, shape) for bits, shapes in SHAPES.items() for shape in shapes
          for operand in ("INT8", "E2M3", "E2M1")]  # fmt: skip


@pytest.fixture(params=TABLES, ids=lambda table: f"{table[0]} {table[1]} {table[2]}")
def table(request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of a table that a search for CPUs trained a little."""
    bits, operand, shape = request.param
    effort = Effort(few=2048, many=4096)
    hunt = TableHunt(operand=operand, costs={shape: 0.1}, seed=0, effort=effort)
    monkeypatch.setattr(TableHunt, "of", lambda *arguments: hunt)
    (found,) = scored(hunt, [hunt.drawn(np.random.default_rng(3))], [])
    settings = Settings(bits=bits, operand=operand, target="avx512")
    (row,) = found_rows([found], settings)
    assert (row.total, row.instructions_per_64_weights) == (0.1, 6.4)
    as_format(row, settings, 1, tmp_path / "table.json")
    return tmp_path / "table.json"


def test_cpu_kernels_multiply_a_found_table_to_the_bit(table: Path):
    fmt = parse(str(table))
    assert fmt.name.startswith(f"x{fmt.code.bits_per_weight:g}-{fmt.code.operand.name.lower()}-")
    assert "--target avx512" in json.loads(table.read_text())["source"]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((72, 256), dtype=np.float32)
    matrix = encode(weight, fmt)
    assert float(np.mean((weight - decode(matrix)) ** 2)) < 2.5 * 4.0**-fmt.code.bits_per_weight
    x = rng.standard_normal((5, 256), dtype=np.float32)
    expected = Kernel(matrix, target="numpy")(x)
    for target in (name for name in PATHS if not why_not(name)):
        kernel = Kernel(matrix, target=target)
        assert kernel.activations == "int8"
        assert kernel.owns_codes or target == "avx2"
        assert np.array_equal(kernel(x), expected), target


def test_a_file_stands_for_a_name(file: Path):
    fmt = parse(str(file))
    assert fmt.name.startswith("x2-e4m3-")
    assert parse(f"{file}:h64").rotation.input_size == 64
    assert Format.from_json(json.loads(file.read_text())) == fmt


def test_kernels_multiply_what_the_reference_decodes(file: Path):
    fmt = parse(str(file))
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 256), dtype=np.float32)
    matrix = encode(weight, fmt)
    error = float(np.mean((weight - decode(matrix)) ** 2))
    assert error < 0.12
    x = rng.standard_normal((3, 256), dtype=np.float32)
    product = Product(matrices=(matrix,), made=recipe(fmt, MACHINES["sm90"], "fp8x2"))(x)
    wanted, magnitude = x @ decode(matrix).T, np.abs(x) @ np.abs(decode(matrix)).T
    assert (np.abs(product - wanted) <= 2**-8 * magnitude).all()  # two E4M3 terms keep 8 bits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(name="x; system('y')"), "letters, digits"),
        (lambda d: d["code"]["program"]["instructions"].append(["a", "jump", 1]), "no such instr"),
        (lambda d: d["code"]["program"]["instructions"].append(["a", "add", 1, "z()"]), "uint32"),
        (lambda d: d["code"]["program"]["instructions"].append(["a", "add", 1, 1 << 40]), "uint32"),
        (lambda d: d["code"]["program"]["instructions"].extend(
            [[f"a{i}", "add", 1, 1] for i in range(64)]), "too many instructions"),
        (lambda d: d["code"]["program"]["tables"].update(big=[0] * 32768), "bytes of tables"),
        (lambda d: d["code"].update(planes=[[32, 8]]), "too many states"),
        (lambda d: d.pop("code"), "not a declaration"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_format_is_refused(file: Path, tmp_path: Path, change, message):
    data = json.loads(file.read_text())
    change(data)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(DeclarationError, match=message):
        parse(str(path))


def test_names_of_a_file_never_reach_generated_source(file: Path, tmp_path: Path):
    from unspool.decode.emit_cuda import emit
    from unspool.decode.lower import lower
    from unspool.explore.score import slot_of

    data = json.loads(file.read_text())
    text = json.dumps(data["code"]["program"])
    hostile = '"); } __asm__("'.replace('"', "'")
    data["code"]["program"] = json.loads(text.replace('"word"', json.dumps(hostile)))
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(data))
    code = parse(str(path)).code
    assert any(i.result == hostile for i in code.program.instructions)
    source = emit(lower(code, slot_of(code, MACHINES["sm90"]), MACHINES["sm90"]))
    assert "asm" not in source
    plain = parse(str(file)).code
    assert source == emit(lower(plain, slot_of(plain, MACHINES["sm90"]), MACHINES["sm90"]))


def test_a_missing_file_is_no_such_format(tmp_path: Path):
    with pytest.raises(DeclarationError, match="no such format"):
        parse(str(tmp_path / "none.json"))
