"""The simulation catches what no GPU forgives: small kernels, each wrong in one deliberate way."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from unspool.decode.emit_cuda import header
from unspool.errors import UnspoolError
from unspool.matmul import cuda
from unspool.matmul.cuda import simulate
from unspool.matmul.cuda.source import HARDWARE
from unspool.spec.operand import E2M1, E4M3

HERE = Path(__file__).parent
RIGHT, SEEDS = 0, (0, 1, 2)


class Given(ctypes.Structure):
    _fields_ = (("in", ctypes.c_void_p), ("out", ctypes.c_void_p), ("mode", ctypes.c_int))


@pytest.fixture(scope="session")
def kernels() -> simulate.Simulation:
    if simulate.why_not():
        pytest.skip(simulate.why_not())
    hardware = Path(cuda.__file__).parent / "hardware"
    texts = [(hardware / f"{name}.cuh").read_text() for name in HARDWARE]
    texts += [(HERE / name).read_text() for name in ("faults.cuh", "faults_products.cuh")]
    return simulate.build(header() + "\n".join(texts))


def run(kernels: simulate.Simulation, name: str, mode: int, seed: int = 0) -> np.ndarray:
    """Words 0, 1, 2, ... as input; the output of 128 threads."""
    words, out = np.arange(16384, dtype=np.uint32), np.zeros(1792, np.uint32)
    given = Given(simulate.address(words), simulate.address(out), mode)
    threads = 160 if name == "brought" else 128
    bytes_of = {
        "exchange": 1024, "together": 0, "copied": 4096, "brought": 4096 + 64, "counted": 16
    }  # fmt: skip
    grid = (3 if name == "counted" else 1, 1)
    arrays = {"words": words, "out": out}
    simulate.run(
        kernels, name, given, arrays, grid=grid, threads=threads, shared_bytes=bytes_of[name],
        seed=seed,
    )  # fmt: skip
    return out[:128]


THREADS = np.arange(128)
OTHERS = 127 - THREADS

EXPECTED = {
    "exchange": THREADS + 1,
    "together": THREADS ^ 1,
    "copied": sum(512 * stage + 4 * OTHERS for stage in range(4)),
    "brought": sum(512 * stage + 4 * OTHERS + 1 for stage in range(4)),
    "counted": np.full(128, 3),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", EXPECTED)
def test_right_kernels_run(kernels, name, seed):
    assert np.array_equal(run(kernels, name, RIGHT, seed), EXPECTED[name])


FAULTS = [
    ("exchange", 1, "never written"),
    ("exchange", 2, "out of bounds"),
    ("exchange", 3, "unaligned"),
    ("exchange", 4, "out of bounds"),
    ("exchange", 5, "'words' is accessed unaligned"),
    ("exchange", 6, "'out' is accessed unaligned"),
    ("exchange", 7, "without a barrier|never written"),
    ("exchange", 8, "overwritten without a barrier|read without a barrier"),
    ("exchange", 9, "read without a barrier|overwritten without a barrier"),
    ("together", 1, "sync_warp.*shuffle_xor|shuffle_xor.*sync_warp"),
    ("together", 2, "different masks"),
    ("together", 3, "deadlock|sync_block"),
    ("together", 4, "sync_named"),
    ("together", 5, "no named barrier"),
    ("together", 6, "deadlock"),
    ("copied", 1, "copy to it is under way"),
    ("copied", 2, "without a barrier|copy to it is under way|never written"),
    ("copied", 3, "overwritten without a barrier|copy to it is under way"),
    ("copied", 4, "copy to it is under way"),
    ("copied", 5, "copies to shared memory are under way"),
    ("copied", 6, "unaligned"),
    ("copied", 7, "never committed"),
    ("brought", 1, "never initialised|never written"),
    ("brought", 2, "more arrive|overwritten|written while|copy to it is under way"),
    ("brought", 3, "barrier_init_fence"),
    ("brought", 4, "never written|without a barrier"),
    ("brought", 5, "overwritten without a barrier|more arrive|under way"),
    ("brought", 6, "deadlock.*-1024 bytes"),
    ("brought", 7, "deadlock.*2048 bytes"),
    ("brought", 8, "bulk copy of 2040 bytes"),
    ("brought", 9, "never written|under way|without a barrier"),
    ("brought", 10, "never written|under way|without a barrier"),
    ("brought", 11, "under way|without a barrier"),
    ("brought", 12, "overwritten without a barrier|more arrive|under way"),
    ("brought", 13, "deadlock"),
    ("counted", 1, "without a fence and a counter"),
    ("counted", 2, "without a fence and a counter"),
    ("counted", 3, "without a fence and a counter"),
    ("counted", 4, "through this multiprocessor's cache"),
    ("counted", 5, "written again without anything between"),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("name", "mode", "message"), FAULTS)
def test_faults_are_caught_and_named(kernels, name, mode, message, seed):
    with pytest.raises(UnspoolError, match=message):
        run(kernels, name, mode, seed)


def multiply(kernels: simulate.Simulation, name: str, mode: int) -> tuple[np.ndarray, np.ndarray]:
    """What a kernel of faults_products.cuh found, and what it should have."""
    rows = 128 if name == "by_tensor_memory" else 64
    rng = np.random.default_rng(0)
    a = rng.standard_normal((128, 16)).astype(np.float16)
    b = rng.standard_normal((16, 16)).astype(np.float16)  # column, k
    cores = b.reshape(2, 8, 2, 8).transpose(2, 0, 1, 3)
    given = np.concatenate((a.reshape(-1), cores.reshape(-1))).view(np.uint32)
    words = np.zeros(16384, np.uint32)
    words[: given.size] = given
    out = np.full((128, 16), np.nan, np.float32)
    simulate.run(
        kernels, name, Given(simulate.address(words), simulate.address(out), mode),
        {"words": words, "out": out}, grid=(1, 1), threads=128, shared_bytes=1104,
    )  # fmt: skip
    return out[:rows], (a.astype(np.float64) @ b.T.astype(np.float64))[:rows].astype(np.float32)


@pytest.mark.parametrize("name", ["by_warp", "by_group", "by_tensor_memory"])
def test_products_are_rounded_once(kernels, name):
    found, expected = multiply(kernels, name, RIGHT)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("by_warp", 1),  # second and third register of operand A exchanged
        ("by_warp", 2),  # column blocks and halves exchanged
        ("by_warp", 3),  # rows of ldmatrix from the wrong lanes
        ("by_group", 4),  # leading and stride distance alike
        ("by_group", 6),  # operand A changed while it is read
        ("by_group", 10),  # sums used before wgmma_wait
        ("by_tensor_memory", 14),  # registers used before tmem_load_wait
    ],
)
def test_wrong_products_are_seen(kernels, name, mode):
    found, expected = multiply(kernels, name, mode)
    assert not np.allclose(found, expected, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("by_group", 1, "never written|under way"),
        ("by_group", 2, "without wgmma_fence"),
        ("by_group", 3, "never written"),  # reads beyond what was brought
        ("by_group", 5, "products of a warpgroup are under way"),
        ("by_group", 7, "without a barrier|not copied by the hardware"),
        ("by_group", 11, "not copied by the hardware"),
        ("by_group", 8, "deadlock"),
        ("by_group", 9, "products of a warpgroup are under way"),
        ("by_tensor_memory", 1, "without tmem_fence_before"),
        ("by_tensor_memory", 2, "without tmem_fence_after"),
        ("by_tensor_memory", 3, "never written"),
        ("by_tensor_memory", 4, "lanes of another"),
        ("by_tensor_memory", 5, "outside of what was allocated"),
        ("by_tensor_memory", 6, "under way|tmem_store_wait"),
        ("by_tensor_memory", 7, "without a barrier|never written|under way"),
        ("by_tensor_memory", 8, "without tmem_fence_after"),
        ("by_tensor_memory", 9, "without the version"),
        ("by_tensor_memory", 10, "never written"),
        ("by_tensor_memory", 11, "deadlock"),
        ("by_tensor_memory", 12, "without a barrier|never written"),
        ("by_tensor_memory", 13, "without tmem_fence_after"),
        ("by_tensor_memory", 15, "without releasing"),
    ],
)
def test_faults_of_products_are_caught_and_named(kernels, name, mode, message):
    with pytest.raises(UnspoolError, match=message):
        multiply(kernels, name, mode)


def multiply_scaled(kernels: simulate.Simulation, mode: int) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel of packed E2M1 found, and what it should have: D[128, 16]."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (rows, 32), np.uint8) for rows in (128, 16))
    of_a, of_b = (rng.integers(1, 0x7F, (rows, 4), np.uint8) for rows in (128, 16))
    cores = b.reshape(2, 8, 2, 16).transpose(2, 0, 1, 3)
    lanes = of_a.reshape(4, 32, 4).swapaxes(0, 1)  # row m: lane m % 32, column m // 32
    tokens = np.zeros((32, 4, 4), np.uint8)
    tokens[:16, 0] = of_b
    parts = (a, cores, lanes, tokens)
    words = np.zeros(16384, np.uint32)
    given = np.concatenate([part.reshape(-1) for part in parts]).view(np.uint32)
    words[: given.size] = given
    out = np.full((128, 16), np.nan, np.float32)
    simulate.run(
        kernels, "by_scales", Given(simulate.address(words), simulate.address(out), mode),
        {"words": words, "out": out}, grid=(1, 1), threads=128, shared_bytes=1584,
    )  # fmt: skip
    left, right = (
        E2M1.values()[np.stack((codes & 15, codes >> 4), -1)].reshape(len(codes), 4, 16)
        * E4M3.values()[scales][:, :, None]
        for codes, scales in ((a, of_a), (b, of_b))
    )
    return out, (left.reshape(128, 64) @ right.reshape(16, 64).T).astype(np.float32)


@pytest.mark.parametrize("mode", [RIGHT, 7])  # scales copied, or stored by every warp
def test_scaled_products_are_rounded_once(kernels, mode):
    found, expected = multiply_scaled(kernels, mode)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (1, "never written|under way|without a barrier"),
        (2, "tcgen05.cp after a barrier, without tmem_fence_after"),
        (3, "never written"),
        (4, "outside of what was allocated"),
        (5, "an odd one"),
        (6, "under way|overwritten without a barrier"),
        (8, "not the same in every warp's lanes"),
        (9, "a scale with a sign"),
        (10, "begins among a warp's lanes"),
    ],
)
def test_faults_of_scales_are_caught_and_named(kernels, mode, message):
    with pytest.raises(UnspoolError, match=message):
        multiply_scaled(kernels, mode)
