"""Products in the GPU run: checked element by element, timed in turns, peers absent with a reason.

On a fake GPU and on torch's CPU: compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch

ROW = {
    "format", "peer", "bits_per_weight", "activations", "n", "k", "m", "us", "spread", "rounds",
    "copies", "tbps", "fraction_of_copy", "fraction_of_read", "tflops",
}  # fmt: skip


class Exact:
    """A product in numpy, with faults on demand."""

    format, activations = "exact", "float32"

    def __init__(self, board, n: int, k: int, copies: int, fault: str = "") -> None:
        self.weight = np.random.default_rng(7).standard_normal((n, k), np.float32)
        self.nbytes, self.copies, self._fault = self.weight.nbytes, copies, fault
        self.calls: list[int] = []

    def queue(self, m: int):
        return self.calls.append

    def result(self, x: np.ndarray) -> np.ndarray:
        product = np.stack([self.weight @ row for row in x])
        if self._fault == "raises":
            raise RuntimeError("no such kernel\nand more")
        if self._fault == "element" and len(x) == 7:
            product[3, 5] += 1
        if self._fault == "nan" and len(x) == 8:
            product[0, 0] = np.nan
        if self._fault == "rows" and len(x) > 1:
            product = np.nextafter(product, np.float32(9e9))
        if self._fault == "wide" and len(x) == 64:
            product[63, 5] += 1
        if self._fault == "other":
            product = product[:, ::-1]
        if self._fault == "unsteady":
            self.calls.append(0)
            product[0, 0] += np.float32(1e-6 * len(self.calls) * abs(product[0, 0]))
        return product

    def expected(self, x: np.ndarray, batch: int = 0):
        want = x.astype(np.float64) @ self.weight.astype(np.float64).T
        want += self._fault == "batch" and batch == 8192
        size = np.abs(x).astype(np.float64) @ np.abs(self.weight).T
        return want, size * 2.0**-18


def entrant(fault: str = "", **named):
    from gpu.product import Entrant

    def make(board, n, k, copies):
        return Exact(board, n, k, copies, fault)

    return Entrant(**{"name": "exact", "make": make, "bits": 32, **named})


@pytest.fixture
def checked(board_of, given_of, monkeypatch):
    def check(*faults: str):
        from gpu import correctness

        monkeypatch.setattr(correctness, "SHAPES", ((24, 40),))
        given = given_of(board_of())
        correctness.check(given, [entrant(fault) for fault in faults or ("",)])
        return given.findings

    return check


def test_a_right_product_passes(checked):
    found = checked()
    assert found.wrong == []
    assert [row["m"] for row in found.rows] == [1, 2, 3, 7, 8, 16, 17, 32, 64, 100, 256]
    assert max(row["relative_error"] for row in found.rows) < 1e-6


def test_of_many_rows_some_are_compared_as_rows_of_many(board_of, given_of, monkeypatch):
    from gpu import correctness

    monkeypatch.setattr(correctness, "SHAPES", ((24, 40),))
    monkeypatch.setattr(correctness, "MANY_SHAPE", (24, 40))
    for fault, wrong in (("", 0), ("batch", 32 * 24)):
        given = given_of(board_of())
        correctness.check(given, [entrant(fault)])
        last = given.findings.rows[-1]
        assert (last["m"], last["wrong"]) == (8192, wrong)
        assert [found[:13] for found in given.findings.wrong] == ["exact 24x40 m"] * bool(wrong)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("element", "m=7: {'wrong': 1"),
        ("nan", "m=8: {'wrong': 1"),
        ("rows", "'rows_alike': False"),
        ("unsteady", "'repeatable': False"),
    ],
)
def test_a_fault_is_found(checked, fault, said):
    assert said in " ".join(checked(fault).wrong)


def test_one_that_breaks_is_wrong_and_the_others_go_on(checked):
    found = checked("raises", "")
    assert found.wrong == ["exact 24x40: RuntimeError: no such kernel"]
    assert len(found.rows) == 11


def test_a_gpu_that_is_broken_ends_the_stage_with_what_was_found(board_of, given_of, monkeypatch):
    from gpu import correctness
    from gpu.stage import GpuBrokenError

    monkeypatch.setattr(correctness, "SHAPES", ((24, 40),))
    given = given_of(board_of())
    given.board.fault = "an illegal access"
    with pytest.raises(GpuBrokenError, match="no such kernel; since then every call fails"):
        correctness.check(given, [entrant(), entrant("raises"), entrant()])
    assert (len(given.findings.rows), len(given.findings.wrong)) == (11, 1)


def test_a_block_of_every_gpu_uses_each_place_of_its_pipeline_again():
    from gpu import correctness

    from unspool.matmul.cuda.geometry import BLOCK_ROWS, STAGE_COLUMNS
    from unspool.matmul.cuda.launch import MOST_BLOCKS, SLOTS

    n, k = correctness.DEEP_SHAPE
    units = n // BLOCK_ROWS * (k // STAGE_COLUMNS)
    assert correctness.DEEP_SHAPE in correctness.SHAPES
    for multiprocessors, each in ((132, 2), (160, 2), (170, MOST_BLOCKS["mma_sync"])):
        assert units / (multiprocessors * each) > max(SLOTS)
    assert max(correctness.batches_of(correctness.DEEP_SHAPE)) == 64


def test_no_product_of_ours_is_told(board_of, given_of):
    from gpu import correctness
    from gpu.stage import AbsentError

    with pytest.raises(AbsentError, match=r"bench/gpu/entrants\.py"):
        correctness.check(given_of(board_of()), [])


def test_a_shape_that_a_product_refuses_is_a_row(board_of, given_of, monkeypatch):
    from gpu import correctness
    from gpu.product import Entrant
    from gpu.stage import AbsentError

    def refuse(*_):
        raise AbsentError("n is odd")

    monkeypatch.setattr(correctness, "SHAPES", ((24, 40),))
    given = given_of(board_of())
    correctness.check(given, [Entrant(name="x", make=refuse, bits=2), entrant()])
    assert len(given.findings.rows) == 1 + 11
    given = given_of(board_of())
    with pytest.raises(AbsentError, match="none of these products is here: n is odd"):
        correctness.check(given, [Entrant(name="x", make=refuse, bits=2)])
    assert {row["absent"] for row in given.findings.rows} == {"n is odd"}


@pytest.fixture
def measured(board_of, given_of, monkeypatch):
    def measure(*entrants, seconds: float = 1e9, board=None, given=None):
        from gpu import benchmark

        monkeypatch.setattr(benchmark, "SIZES", ((32, 128), (128, 256)))
        monkeypatch.setattr(benchmark, "FEW", (1, 4))
        monkeypatch.setattr(benchmark, "MANY", (64,))
        monkeypatch.setattr(benchmark, "ALONE_ROWS", 64)
        monkeypatch.setattr(benchmark, "COPY_BYTES", 1 << 16)
        given = given or given_of(board or board_of(), seconds)
        benchmark.measure(given, entrants)
        return given.findings

    return measure


def test_a_row_per_entrant_size_and_batch(measured):
    found = measured(entrant(), entrant(name="other", peer=True))
    assert [(row["n"], row["m"], row["peer"]) for row in found.rows] == [
        (n, m, peer)
        for n, m in ((32, 1), (32, 4), (128, 1), (128, 4), (32, 64))
        for peer in (False, True)
    ]
    for row in found.rows:
        assert set(row) == ROW
        assert row["bits_per_weight"] == 32
        past = row["copies"] * row["n"] * row["k"] * 4 > 3 * (1 << 16)
        assert past or row["copies"] == (2 if row["m"] == 64 else 64)
        assert row["tbps"] == pytest.approx(row["n"] * row["k"] * 4 / row["us"] / 1e6, abs=1e-4)
    assert found.facts["copy"]["tbps"] > 0
    assert found.facts["read"]["tbps"] > 0


def test_every_copy_is_multiplied_in_a_replay(board_of, given_of):
    from gpu import benchmark

    product = Exact(None, 8, 16, 5)
    benchmark._graph(given_of(board_of()), product, 3)()
    assert product.calls[-5:] == [0, 1, 2, 3, 4]


def test_a_product_of_another_weight_is_not_timed(measured):
    found = measured(entrant("other"))
    assert found.rows == []
    assert found.wrong[0].startswith("exact 32x128: WrongProductError: m=4: {'wrong': ")


@pytest.mark.parametrize(
    ("fault", "said"),
    [("wide", "m=64: {'wrong': 1"), ("unsteady", "'repeatable': False")],
)
def test_ours_is_within_its_bound_and_steady_before_it_is_timed(measured, fault, said):
    found = measured(entrant(fault))
    assert found.rows == []
    assert said in found.wrong[0]


def test_a_peer_need_not_be_steady(measured):
    assert len(measured(entrant("unsteady", peer=True)).rows) == 5


def test_rows_that_a_product_is_not_made_for_are_left_out(measured):
    assert {row["m"] for row in measured(entrant(most_rows=2)).rows} == {1}


def test_entrants_are_asked_for_by_name_or_first_word():
    made = entrant(name="m2-e4m3 fp8x2")
    assert [made.among(names) for names in ([], ["m2-e4m3"], ["m2-e4m3 fp8x2"], ["m2"])] == [
        True, True, True, False,
    ]  # fmt: skip


def test_an_entrant_that_breaks_costs_its_rows_alone(measured):
    from gpu.product import Entrant

    def broken(*_):
        raise RuntimeError("no such kernel\nand more")

    found = measured(Entrant(name="broken", make=broken, bits=4, peer=True), entrant())
    assert found.facts["absent"] == {"broken": "RuntimeError: no such kernel"}
    assert (len(found.rows), found.wrong) == (5, [])


def test_a_product_of_ours_that_breaks_is_wrong(measured):
    found = measured(entrant("raises"), entrant(name="other"))
    assert found.wrong == [
        f"exact {size}: RuntimeError: no such kernel" for size in ("32x128", "128x256", "32x128")
    ]
    assert {row["m"] for row in found.rows} == {1, 4, 64}


def test_what_finds_no_memory_is_absent(measured):
    from gpu.product import Entrant

    def large(*_):
        raise RuntimeError("CUDA out of memory. Tried to")

    found = measured(Entrant(name="large", make=large, bits=4), entrant())
    assert found.facts["absent"] == {"large": "RuntimeError: CUDA out of memory. Tried to"}
    assert (len(found.rows), found.wrong) == (5, [])


def test_nobody_here_is_absent_with_the_reasons(measured):
    from gpu.product import Entrant
    from gpu.stage import AbsentError

    def refuse(*_):
        raise AbsentError("no such machine")

    with pytest.raises(AbsentError, match="x: no such machine"):
        measured(Entrant(name="x", make=refuse, bits=4))


def test_a_broken_gpu_ends_the_benchmark_with_its_rows(measured, board_of, given_of):
    from gpu.stage import GpuBrokenError

    given = given_of(board_of())

    def breaks(board, n, k, copies):
        if n == 128:
            board.fault = "an illegal access"
            raise RuntimeError("a kernel")
        return Exact(board, n, k, copies)

    with pytest.raises(GpuBrokenError, match="an illegal access"):
        measured(entrant(make=breaks), entrant(name="other"), given=given)
    assert len(given.findings.rows) == 4
    assert given.findings.wrong == ["exact 128x256: RuntimeError: a kernel"]


def test_a_replay_that_breaks_is_wrong_and_others_go_on(measured, board_of, monkeypatch):
    from gpu import benchmark

    def interleaved(board, replays, *more):
        if benchmark.seen.append(1) or len(benchmark.seen) == 2:
            raise RuntimeError("a launch")
        return [[1e-4] for _ in replays]

    monkeypatch.setattr(benchmark, "seen", [], raising=False)
    monkeypatch.setattr(benchmark, "interleaved", interleaved)
    found = measured(entrant(), entrant(name="other"))
    assert found.wrong == ["one of exact, other 32x128 m=4: RuntimeError: a launch"]
    assert len(found.rows) == 2 * 3 + 2


def test_flagships_have_all_sizes_before_anybody_else(monkeypatch):
    from gpu import benchmark

    monkeypatch.setattr(benchmark, "GROUP", 2)
    monkeypatch.setattr(benchmark, "SIZES", ("a", "b"))
    some = [entrant(name=str(i), flagship=i < 3) for i in range(6)]
    seen = [
        (batches is benchmark.MANY, size, "".join(e.name for e in group))
        for batches, size, group in benchmark.turns(some)
    ]
    assert seen == [
        (False, "a", "012"), (False, "b", "012"), (True, "a", "012"),
        (False, "a", "34"), (False, "a", "5"), (False, "b", "34"), (False, "b", "5"),
        (True, "a", "34"), (True, "a", "5"),
    ]  # fmt: skip


def test_the_first_to_be_checked_and_timed_are_a_format_with_both_activations():
    from gpu.entrants import ENTRANTS, OURS

    assert [each.name for each in OURS[:2]] == ["m2-e4m3 fp8", "m2-e4m3 fp8x2"]
    flagships = [each.name for each in ENTRANTS if each.flagship]
    assert {"m2-e4m3 fp8", "m2-e4m3 fp8x2", "torch bf16", "torch fp8"} <= set(flagships)
    assert [each.name for each in ENTRANTS[: len(flagships)]] == flagships
    assert len({each.name for each in ENTRANTS}) == len(ENTRANTS)


def test_the_deadline_is_looked_at_for_every_entrant(board_of, given_of, monkeypatch):
    from gpu import benchmark
    from gpu.stage import Deadline

    made = []

    def slow(board, n, k, copies):
        made.append(n)
        now[0] += 10
        return Exact(board, n, k, copies)

    now = [0.0]
    monkeypatch.setattr(benchmark, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(benchmark, "SIZES", ((32, 128),))
    given = given_of(board_of())
    given = dataclasses.replace(given, deadline=Deadline(seconds=15, clock=lambda: now[0]))
    benchmark.measure(given, [entrant(make=slow, name=str(i)) for i in range(5)])
    assert len(made) == 2
    assert given.findings.cut


def test_rows_are_kept_after_every_batch(measured, board_of, given_of):
    kept = []
    given = given_of(board_of())
    given = dataclasses.replace(given, keep=lambda: kept.append(len(given.findings.rows)))
    measured(entrant(), given=given)
    assert kept == [1, 2, 3, 4, 5]


def test_of_many_rows_one_graph_is_held_at_a_time(measured, board_of, monkeypatch):
    held, most = [], {}

    class Graph:
        def __call__(self) -> None:
            pass

        def __del__(self) -> None:
            held.pop()

    def graph(self, run):
        run()
        held.append(1)
        m = self.many
        most[m] = max(most.get(m, 0), len(held))
        return Graph()

    class Watched(Exact):
        def queue(self, m: int):
            board.many = m
            return super().queue(m)

    board = board_of()
    board.many = 0
    monkeypatch.setattr(type(board), "graph", graph)
    measured(*(entrant(name=str(i), make=Watched) for i in range(3)), board=board)
    assert most == {0: 1, 1: 3, 4: 3, 64: 1}
    assert held == []


def test_the_benchmark_stops_when_the_time_is_up(measured):
    assert measured(entrant(), seconds=0).cut


@pytest.fixture
def on_cpu(board_of):
    def board(capability=(9, 0)):
        return board_of(capability, torch=torch)

    return board


def test_torch_bf16_multiplies(measured, on_cpu):
    from gpu.entrants import PEERS

    found = measured(PEERS[0], board=on_cpu())
    assert found.wrong == []
    assert {row["format"] for row in found.rows} == {"torch bf16"}
    assert {row["bits_per_weight"] for row in found.rows} == {16}


def test_peers_that_are_not_here_say_why(measured, on_cpu):
    from gpu.entrants import PEERS

    found = measured(*PEERS, board=on_cpu())
    absent = found.facts["absent"]
    assert absent["marlin int4"].startswith("marlin: No module named 'marlin'")
    assert absent["humming int2 fp8"].startswith("humming-kernels: No module named 'humming'")
    assert "_convert_weight_to_int4pack" in absent["torch int4"]
    assert found.wrong == []


@pytest.mark.parametrize(
    ("capability", "size", "reason"),
    [
        ((8, 0), (32, 128), "FP8 matrix units begin with 8.9"),
        ((9, 0), (40, 128), "sizes are multiples of 16"),
    ],
)
def test_fp8_refuses_with_the_reason(on_cpu, capability, size, reason):
    from gpu.peers import pytorch
    from gpu.stage import AbsentError

    with pytest.raises(AbsentError, match=reason):
        pytorch.fp8(on_cpu(capability), *size, 1)


def test_fp8_rounds_rows_to_their_largest(on_cpu):
    from gpu.peers import pytorch

    codes, scales = pytorch._rows(torch, torch.randn(5, 64) * 100)
    back = codes.float() * scales
    assert codes.float().abs().amax(1).tolist() == [448] * 5
    assert back.shape == (5, 64)


def test_int4_codes_are_of_their_groups():
    from gpu.peers import pytorch

    weight = torch.randn(8, 256)
    codes, scale, low = pytorch._groups(torch, weight)
    back = codes.reshape(8, 2, 128) * scale[..., None] + low[..., None]
    assert (codes.min(), codes.max()) == (0, 15)
    assert (back - weight.reshape(8, 2, 128)).abs().max() <= scale.max() / 2 + 1e-6


def test_humming_is_asked_as_its_documentation_has_it(measured, on_cpu, monkeypatch):
    from gpu.peers import humming
    from gpu.product import Entrant

    asked = []

    class HummingLayer(torch.nn.Module):
        def __init__(self, **named) -> None:
            super().__init__()
            asked.append(named)

        def load_from_unquantized(self, weight) -> None:
            self.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)

        def transform(self) -> None:
            self.ready = True

        def forward(self, inputs):
            return inputs @ self.weight.t()

    layer = types.SimpleNamespace(HummingLayer=HummingLayer)
    monkeypatch.setitem(sys.modules, "humming", types.ModuleType("humming"))
    monkeypatch.setitem(sys.modules, "humming.layer", layer)
    peer = Entrant(name="h", make=humming.maker(2, "fp8"), bits=2, peer=True)
    found = measured(peer, board=on_cpu())
    assert (found.wrong, found.facts.get("absent", {})) == ([], {})
    assert {row["activations"] for row in found.rows} == {"fp8"}
    assert asked[0] == {
        "shape_n": 32, "shape_k": 128, "weight_config": {"dtype": "int2"},
        "input_config": {"dtype": "float8e4m3"}, "torch_dtype": torch.bfloat16,
    }  # fmt: skip
    assert len(asked) == 3  # once a size: the other copies are copied


def test_humming_that_does_not_start_says_why(on_cpu, monkeypatch):
    from gpu.peers import humming
    from gpu.stage import AbsentError

    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("no nvcc")

    monkeypatch.setitem(sys.modules, "humming", types.ModuleType("humming"))
    monkeypatch.setitem(sys.modules, "humming.layer", Broken("humming.layer"))
    with pytest.raises(AbsentError, match="humming-kernels does not start: no nvcc"):
        humming.maker(2, "bfloat16")(on_cpu(), 32, 128, 1)
