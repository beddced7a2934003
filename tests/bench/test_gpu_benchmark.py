"""The benchmark: what is timed, in which order, and what becomes of one that breaks.

On a fake GPU: compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import dataclasses

import pytest

ROW = {
    "format", "peer", "bits_per_weight", "activations", "n", "k", "m", "us", "spread", "rounds",
    "copies", "tbps", "fraction_of_copy", "fraction_of_read", "tflops",
}  # fmt: skip


def entrant(*arguments, **named):
    from exact_product import entrant

    return entrant(*arguments, **named)


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
    from exact_product import Exact
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
    from exact_product import Exact
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
    assert given.findings.facts["broken_by"] == "exact"


def test_what_broke_the_gpu_before_is_left_out(measured, board_of, given_of):
    given = dataclasses.replace(given_of(board_of()), without=["exact"])
    found = measured(entrant("raises"), entrant(name="other"), given=given)
    assert found.facts["absent"] == {"exact": "it broke the GPU before"}
    assert (len(found.rows), found.wrong) == (5, [])


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
    from exact_product import Exact
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
    assert sorted(set(kept)) == [0, 1, 2, 3, 4, 5]


def test_nobody_is_blamed_while_kernels_are_compiled_or_replayed(measured, board_of, given_of):
    from gpu import benchmark

    def sources(*_):
        seen.append(given.findings.facts.get("trying"))
        return ()

    seen, real = [], benchmark.interleaved

    def replayed(*arguments):
        seen.append(given.findings.facts.get("trying"))
        return real(*arguments)

    def make(board, n, k, copies):
        if n == 32:
            raise RuntimeError
        turns.append(given.findings.facts["trying"])
        return Exact(board, n, k, copies)

    from exact_product import Exact

    turns, given = [], given_of(board_of())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(benchmark, "interleaved", replayed)
        measured(entrant(make=make, sources=sources), given=given)
    assert turns == ["exact"]
    assert set(seen) == {None}
    assert len(seen) == 2 * 3 + 2


def test_of_many_rows_one_graph_is_held_at_a_time(measured, board_of, monkeypatch):
    from exact_product import Exact

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
