"""The kernel of dense trellises, played thread by thread, and its machine code.

Compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from dense_codes import PAIRS, SINGLES, some_code
from unspool.decode.interpret import state_values
from unspool.encode.dense import Dense, dense
from unspool.encode.viterbi import trellis, viterbi
from unspool.errors import SlowPathWarning, UnspoolError
from unspool.matmul.cuda import jit, simulate
from unspool.model import device_search
from unspool.model.device_dense import DenseSteps, OnesProduct
from unspool.model.device_search import DeviceSearch
from unspool.model.processors import SimulatedProcessor
from unspool.model.search_kernel import ABREAST, MOST_WARPS, DenseKernel, walk_kernel
from unspool.perf.machine_code import kernels
from unspool.perf.toolchain import toolchain, why_not
from unspool.spec.catalog import parse

playing = pytest.mark.skipif(bool(simulate.why_not()), reason=simulate.why_not() or "g++ is here")
counting = pytest.mark.skipif(bool(why_not()), reason=why_not() or "counting works")

CODES = [  # planes, lanes, levels: parallel edges or none, pairs of lanes or single ones
    (((12, 6),), 2, PAIRS),
    (((12, 6),), 4, SINGLES),
    (((13, 7),), 3, PAIRS),
    (((14, 7),), 2, PAIRS),
]


def gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@playing
@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("rings", [3, 70])
def test_walks_are_those_of_torchs_operations(code, rings):
    _, _, found = some_code(*code)
    for steps in (0, 3):
        _compare(found, gaussian(rings, steps, code[1]))


@playing
@pytest.mark.parametrize("name", ["m2-e2m1", "m2-e4m3"])
def test_walks_of_the_catalogs_codes_are_those_of_torchs_operations(name):
    """256 nodes: each warp has two groups of them."""
    code, found = parse(name).code, of_format(name)
    assert len(found.state) == 2 * MOST_WARPS * ABREAST
    _compare(found, gaussian(3, 2, code.lanes) * np.float32(code.sigma))


def _compare(found: Dense, targets: np.ndarray) -> None:
    ones = OnesProduct.of(found, torch.device("cpu"), torch.float32)
    kernel = DenseKernel(found, SimulatedProcessor("sm90"))
    told = DenseSteps.of(found, torch.device("cpu"), kernel).inputs(torch.from_numpy(targets))
    rings = len(targets)
    for boundary in (None, torch.arange(rings) % len(found.state)):
        ours, theirs = kernel(told, boundary), ones(told.float(), boundary)
        assert ours.dtype == torch.int16
        assert torch.equal(ours.float(), theirs)


@playing
def test_states_found_by_the_kernel_are_the_cpus(monkeypatch):
    monkeypatch.setattr(device_search, "COMPARED_STEPS", 2)
    values, _, _ = some_code(*CODES[0])
    search = DeviceSearch("cpu", processor=SimulatedProcessor("sm90"))
    assert search.way(values, CODES[0][0]) == device_search.KERNEL
    targets = gaussian(66, 4, 2)
    targets[5] *= np.float32(1e8)
    found = search(values, CODES[0][0], targets)
    np.testing.assert_array_equal(found, viterbi(values, CODES[0][0], targets, threads=1))


@playing
def test_a_device_that_finds_other_states_is_not_trusted(monkeypatch):
    monkeypatch.setattr(device_search, "COMPARED_STEPS", 2)
    right = DenseKernel.__call__
    monkeypatch.setattr(DenseKernel, "__call__", lambda *given: torch.zeros_like(right(*given)))
    values, _, _ = some_code(*CODES[0])
    search = DeviceSearch("cpu", processor=SimulatedProcessor("sm90"))
    with pytest.raises(UnspoolError, match="the device finds other states than the CPU"):
        search(values, CODES[0][0], gaussian(3, 4, 2))


@playing
def test_without_room_for_the_kernel_torchs_operations_run_and_say_so(monkeypatch):
    monkeypatch.setattr(device_search, "COMPARED_STEPS", 2)
    values, _, _ = some_code(*CODES[0])
    small = SimulatedProcessor("sm120")
    small.per_block = 16384
    search, targets = DeviceSearch("cpu", processor=small), gaussian(3, 4, 2)
    with pytest.warns(SlowPathWarning, match="without its kernel: a block has less shared memory"):
        found = search(values, CODES[0][0], targets)
    np.testing.assert_array_equal(found, viterbi(values, CODES[0][0], targets, threads=1))


def of_format(name: str) -> Dense:
    code = parse(name).code
    table = trellis(state_values(code), tuple((p.window, p.stride) for p in code.planes))
    found = dense(state_values(code), table.source, table.state)
    assert found is not None
    return found


@counting
@pytest.mark.parametrize("name", ["m2-e2m1", "m2-e4m3"])
@pytest.mark.parametrize("architecture", ["sm_90a", "sm_100a"])
def test_an_edge_of_two_rings_is_one_look_up_a_table_and_one_add_with_minimum(name, architecture):
    """VIADDMNMX: a walk and an edge added, and the lower of that and the best, in one."""
    found = of_format(name)
    tools, made = toolchain(), walk_kernel(found, architecture)
    cubin = tools.cubin(made.source, architecture, jit.OPTIONS)
    (kernel,) = kernels(tools.disassemble(cubin), cubin).values()
    opcodes = Counter(opcode.split(".")[0] for opcode in kernel.opcodes)
    groups = len(found.state) // (MOST_WARPS * ABREAST)
    unrolled = 2  # from-nodes
    assert opcodes["VIADDMNMX"] == unrolled * groups * ABREAST
    tables = len(found.levels) // (2 if found.paired else 1)
    walks, lowest = groups, MOST_WARPS
    assert opcodes["LDS"] <= unrolled * (groups * ABREAST * tables + walks) + lowest
    assert kernel.traps == ()
    assert kernel.registers <= 128  # a block of 512 threads


@counting
@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_120a"])
def test_it_compiles_elsewhere_too(architecture):
    tools, made = toolchain(), walk_kernel(of_format("m2-e2m1"), architecture)
    assert tools.cubin(made.source, architecture, jit.OPTIONS)
