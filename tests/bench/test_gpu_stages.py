"""Each stage of the GPU run finds what it is for, on a fake GPU.

Compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter

import numpy as np
import pytest

from unspool.decode.lowering import run
from unspool.decode.machine import MACHINES
from unspool.errors import UnspoolError
from unspool.matmul.cuda import jit
from unspool.matmul.cuda.device import machine_of
from unspool.model import device_search
from unspool.perf.machine_code import loops
from unspool.perf.toolchain import toolchain, why_not
from unspool.spec.catalog import FORMATS

counting = pytest.mark.skipif(bool(why_not()), reason=why_not() or "counting works")
compiling = pytest.mark.skipif(bool(jit.why_not()), reason=jit.why_not() or "compiling works")
twin = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++")

CAPABILITIES = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]
VARIED = ("m2-e4m3", "t2-e2m1", "lut3-row", "lut-b", "mxfp4", "s4-e4m3", "nf4")


@twin
@pytest.mark.parametrize("name", VARIED)
def test_the_very_text_of_the_decode_kernels_gives_every_state(board_of, given_of, name):
    from gpu import conformance

    given = given_of(board_of(compiles=True), formats=[name])
    conformance.check(given, conformance.on_gpu(given.board))
    assert given.findings.wrong == []
    assert len(given.findings.rows) >= len(conformance.chosen(FORMATS[name].code, MACHINES["sm90"]))
    assert all(row["every_state"] and row["weights"] > 0 for row in given.findings.rows)


def numpy_decoder(*, flip: int = 0):
    def decoder(lowerings):
        def decode(which, words, handed):
            registers = run(lowerings[which], words, handed).copy()
            registers[5, 0] ^= np.uint32(flip)
            return registers

        return decode

    return decoder


def test_one_wrong_bit_fails_the_stage(board_of, given_of):
    from gpu import conformance

    given = given_of(board_of(), formats=["s2-e4m3"])
    conformance.check(given, numpy_decoder(flip=1 << 3))
    assert len(given.findings.wrong) == len(given.findings.rows) > 0
    assert "s2-e4m3 in E4M3: 1 of" in given.findings.wrong[0]


def test_formats_of_one_code_share_a_check_and_none_is_forgotten():
    from gpu import conformance

    names = [name for names in conformance.codes().values() for name in names]
    assert sorted(names) == sorted(FORMATS)


def test_decoding_stops_when_the_time_is_up(board_of, given_of):
    from gpu import conformance

    given = given_of(board_of(), seconds=0)
    conformance.check(given, numpy_decoder())
    assert given.findings.cut
    assert given.findings.rows == []


@compiling
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_decode_kernels_compile_for_every_machine(capability):
    from gpu import conformance

    machine = machine_of(capability)
    lowerings = conformance.chosen(FORMATS["mxfp6-e2m3"].code, machine)
    lowerings += conformance.chosen(FORMATS["lut3-row"].code, machine)
    cubin = jit.from_nvrtc().cubin(conformance.source(lowerings), machine.architecture)
    assert b"decode_1" in cubin


@counting
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_probes_loop_is_the_instruction_under_test_and_little_else(capability):
    from gpu import probe_source

    machine, tools = machine_of(capability), toolchain()
    cubin = tools.cubin(probe_source.source(capability), machine.architecture)
    found = loops(tools.disassemble(cubin))
    for name, probe in probe_source.probes(capability).items():
        (body,) = found[probe_source.kernel_name(name)]
        under_test = sum(
            f"{opcode}.".startswith(f"{stem}.") for stem in probe.stems for opcode in body
        )
        counter = 1 if name == "IADD3" and capability < (9, 0) else 0  # the loop's own
        assert under_test == probe_source.BODY + counter, (name, Counter(body))
        assert len(body) <= probe_source.BODY + 3, (name, Counter(body))


def test_probes_count_all_threads_of_a_block(board_of, given_of):
    from gpu import probe

    given = given_of(board_of())
    probe.measure(given)
    rates = {r["instruction"]: r for r in given.findings.rows if r["what"] == "rate"}
    assert rates["LOP3"]["instructions_per_clock"] == 64
    assert rates["F2FP.UNPACK"]["results_per_clock"] == 128
    copies = [row for row in given.findings.rows if row["what"] == "copy"]
    assert [row["nbytes"] for row in copies] == [1 << 20, 2 << 20]  # a quarter of the memory
    assert all(row["tbps"] > 0 for row in copies)
    reads = [row for row in given.findings.rows if row["what"] == "read"]
    assert [row["nbytes"] for row in reads] == [1 << 20, 2 << 20]
    assert given.board.launches["read"] > 2 * 15 * probe.copies(given.board, 1 << 20)


@counting
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_reading_has_four_loads_of_sixteen_bytes_in_flight(capability):
    from gpu import probe_source

    machine, tools = machine_of(capability), toolchain()
    cubin = tools.cubin(probe_source.read_source(), machine.architecture)
    body, rest = loops(tools.disassemble(cubin))["read"]
    wide = [[o for o in ops if o.startswith("LDG") and ".128" in o] for ops in (body, rest)]
    assert [len(ops) for ops in wide] == [probe_source.READ_AHEAD, 1]
    waits = next(i for i, opcode in enumerate(body) if opcode.startswith("LOP3"))
    assert sum(opcode.startswith("LDG") for opcode in body[:waits]) >= 4


def test_a_code_that_breaks_is_wrong_and_others_go_on(board_of, given_of):
    from gpu import conformance

    def decoder(lowerings):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no such kernel")
        return numpy_decoder()(lowerings)

    calls = []
    given = given_of(board_of(), formats=["s2-e4m3", "s3-e4m3"])
    conformance.check(given, decoder)
    assert given.findings.wrong == ["s2-e4m3: RuntimeError: no such kernel"]
    assert {row["formats"] for row in given.findings.rows} == {"s3-e4m3"}
    assert len(given.board.compiled[0]) == 2


def test_sm80_has_no_fp8_to_convert():
    from gpu import probe_source

    assert "F2FP.UNPACK" not in probe_source.probes((8, 6))
    assert "F2FP.UNPACK" in probe_source.probes((8, 9))


def test_copies_are_more_than_three_times_the_cache(board_of):
    from gpu import probe

    board = board_of()
    for nbytes in (1, 1000, 1 << 16, 1 << 20):
        assert probe.copies(board, nbytes) * nbytes > 3 * board.gpu.facts.l2_bytes


def test_who_is_compared_takes_turns(board_of):
    from gpu.stage import Deadline
    from gpu.timing import interleaved

    order: list[str] = []
    replays = [lambda: order.append("a"), lambda: order.append("b")]
    seconds = interleaved(board_of(), replays, 6, Deadline(seconds=1e9))
    assert "".join(order) == "ab" + ("aab" + "bab") * 3  # the first to warm up, then behind a cover
    assert [len(seen) for seen in seconds] == [6, 6]
    seconds = interleaved(board_of(), replays, 60, Deadline(seconds=0))
    assert [len(seen) for seen in seconds] == [5, 5]


def test_quartiles_are_of_one_call():
    from gpu.timing import quartiles

    assert quartiles([2e-6, 4e-6, 6e-6, 8e-6, 10e-6], 2) == {"us": 3, "spread": [1, 2, 4, 5]}


def test_no_sanitizer_is_told(given_of, board_of, monkeypatch):
    from gpu import sanitizer
    from gpu.stage import AbsentError

    monkeypatch.setattr(sanitizer, "find", lambda: None)
    with pytest.raises(AbsentError, match="compute-sanitizer is neither in CUDA_HOME nor on"):
        sanitizer.check(given_of(board_of()))


RUN = "== products (9 s left)\n   passed in 3.0 s\n"
CLEAN = "========= ERROR SUMMARY: 0 errors\n"
READ = "========= Invalid __global__ read of size 4 bytes\n"


@pytest.mark.parametrize(
    ("code", "text", "status", "said"),
    [
        (0, RUN + CLEAN, "passed", "========= ERROR SUMMARY: 0 errors"),
        (77, RUN + READ + "========= ERROR SUMMARY: 1 error\n", "failed", READ.strip()),
        (None, READ, "failed", READ.strip()),
        (None, "torch\n", "cut", "the time was up: torch"),
        (4, RUN.replace("passed", "cut"), "cut", "the time was up"),
        (1, RUN.replace("passed", "failed") + CLEAN, "failed", "ended with exit code 1: == prod"),
        (-11, RUN, "failed", "ended with exit code -11"),
        (1, "========= Error: Device not supported\n", "absent", "exit code 1: ========= Error"),
        (3, "no GPU to run on: GPU: x\n" + CLEAN, "absent", "exit code 3: no GPU to run on"),
        (0, RUN.replace("passed", "absent") + CLEAN, "absent", "absent in 3.0 s"),
    ],
)
def test_what_became_of_a_sanitizer_is_told(code, text, status, said):
    from gpu import sanitizer

    found = sanitizer.judged(code, text)
    assert found[0] == status
    assert said in found[1]


@pytest.fixture
def sanitized(given_of, board_of, monkeypatch):
    """Runs the stage where every tool ends so; what it found and was asked."""

    def run(code, text, seconds: float = 100):
        from gpu import sanitizer

        asked = []

        def output(command, seconds):
            asked.append((command, seconds))
            return code, text

        monkeypatch.setattr(sanitizer, "find", lambda: sanitizer.Path("sanitizer"))
        monkeypatch.setattr(sanitizer, "output", output)
        given = given_of(board_of(), seconds)
        sanitizer.check(given)
        return given.findings, asked

    return run


def test_what_a_sanitizer_finds_fails_the_stage(sanitized):
    found, asked = sanitized(77, READ)
    assert [line.split(":")[0] for line in found.wrong] == ["memcheck", "racecheck"]
    assert [row["tool"] for row in found.rows] == ["memcheck", "racecheck"]
    assert asked[0][0][:3] == ["sanitizer", "--tool", "memcheck"]
    assert "--no-json" in asked[0][0]


def test_tools_share_the_time_and_what_is_watched_ends_before_them(sanitized):
    found, asked = sanitized(None, "")
    assert found.cut
    assert found.wrong == []
    (memcheck, first), (_, second) = asked
    assert (first, second) == (pytest.approx(50, abs=1), pytest.approx(100, abs=1))  # none ran
    assert float(memcheck[memcheck.index("--seconds") + 1]) == pytest.approx(first / 2, abs=0.1)


def test_a_sanitizer_that_does_not_know_the_gpu_is_absent(sanitized):
    from gpu.stage import AbsentError

    with pytest.raises(AbsentError, match=r"did not start the run, exit code 1: .* supported"):
        sanitized(1, "========= Error: Device not supported\n")


def test_no_sanitizer_begins_without_time(sanitized):
    found, asked = sanitized(0, RUN, seconds=8)
    assert (found.cut, found.rows, asked) == (True, [], [])


def test_the_children_of_a_sanitizer_end_with_it_and_what_they_said_is_kept(tmp_path):
    from gpu import sanitizer

    mark = tmp_path / "alive"
    child = (
        "import time, pathlib; print('found', flush=True); time.sleep(4);"
        f"pathlib.Path({str(mark)!r}).touch()"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert sanitizer.output([sys.executable, "-c", parent], 2) == (None, "found\n")
    time.sleep(3)
    assert not mark.exists()
    assert sanitizer.output([sys.executable, "-c", "print('x'); exit(3)"], 60) == (3, "x\n")


def test_the_sanitizers_command_is_one_that_the_program_takes():
    from gpu import sanitizer
    from gpu.__main__ import options

    command = sanitizer.command(sanitizer.Path("s"), "memcheck", 30, ["m2-e4m3 fp8"])
    parsed = options(command[command.index("gpu") + 1 :])
    assert (parsed.only, parsed.no_json, parsed.small) == (["products"], True, True)
    assert (parsed.without, parsed.seconds) == (["m2-e4m3 fp8"], 15)
    assert set(parsed.formats) <= set(FORMATS)


def test_what_a_sanitizer_watches_is_one_shape_of_few_rows(board_of, given_of):
    from exact_product import entrant
    from gpu import correctness

    given = given_of(board_of())
    correctness.stage([entrant()], correctness.SMALL).run(given)
    assert [(row["n"], row["k"], row["m"]) for row in given.findings.rows] == [
        (264, 520, 1), (264, 520, 9),
    ]  # fmt: skip


def test_the_search_is_compared_with_the_cpus_and_timed(board_of, given_of):
    from gpu import search

    given = given_of(board_of(), formats=["t2-e2m1", "t1-e2m1", "nvfp4"])
    search.check(given, timed=1 << 12)
    assert given.findings.wrong == []
    assert [row["format"] for row in given.findings.rows] == ["t1-e2m1", "t2-e2m1"]
    assert [row["way"] for row in given.findings.rows] == ["floats", "words"]
    for row in given.findings.rows:
        assert row["states"] == search.CHECKED_RINGS * 64
        assert row["seconds"] * row["weights_per_second"] == pytest.approx(1 << 12)


def test_a_search_that_finds_another_state_fails_the_stage(board_of, given_of, monkeypatch):
    from gpu import search

    class Wrong(device_search.DeviceSearch):
        def __call__(self, *given, **how):
            states = super().__call__(*given, **how).copy()
            states[0, 0] ^= 1
            return states

    monkeypatch.setattr(device_search, "DeviceSearch", Wrong)
    given = given_of(board_of(), formats=["t2-e2m1"])
    search.check(given, timed=64)
    assert given.findings.wrong == ["t2-e2m1 by words: 1 of 4096 states"]


def test_searching_stops_when_the_time_is_up_and_needs_a_trellis(board_of, given_of):
    from gpu import search
    from gpu.stage import AbsentError

    given = given_of(board_of(), seconds=0)
    search.check(given)
    assert given.findings.cut
    assert given.findings.rows == []
    with pytest.raises(AbsentError, match="none of these formats has a trellis"):
        search.check(given_of(board_of(), formats=["mxfp4"]))


def test_codes_with_a_kernel_are_searched_with_it_and_without(board_of, given_of, monkeypatch):
    from gpu import search

    class Kernels(device_search.DeviceSearch):
        def __init__(self, device, *, kernels=True):
            super().__init__(device, kernels=kernels)
            self.kernels = kernels

        def way(self, values, planes):
            return device_search.KERNEL if self.kernels else "bytes"

    monkeypatch.setattr(device_search, "DeviceSearch", Kernels)
    given = given_of(board_of(), formats=["t2-e2m1"])
    search.check(given, timed=64)
    assert [row["way"] for row in given.findings.rows] == [device_search.KERNEL, "bytes"]


def test_a_device_that_is_not_trusted_fails_the_stage(board_of, given_of, monkeypatch):
    from gpu import search

    def not_trusted(self, values, planes):
        raise UnspoolError("the device finds other states than the CPU")

    monkeypatch.setattr(device_search.DeviceSearch, "way", not_trusted)
    given = given_of(board_of(), formats=["t2-e2m1"])
    search.check(given)
    assert given.findings.wrong == 2 * ["t2-e2m1: the device finds other states than the CPU"]
