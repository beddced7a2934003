"""All of the memory is read, and the system's words about caches and memory are understood."""

from __future__ import annotations

import numpy as np
import pytest

from unspool import native
from unspool.errors import NativeError
from unspool.evaluate import memory_speed
from unspool.evaluate.memory_speed import ReadMemory, free_memory, last_cache, load_width

MIB = 1 << 20
needs_library = pytest.mark.skipif(native.library() is None, reason="no compiled library")


@needs_library
@pytest.mark.parametrize("streams", memory_speed.STREAMS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_word_is_read_once(monkeypatch, threads, streams):
    # Words are multiples of an odd constant: what is missing or read twice changes their sum.
    monkeypatch.setattr(memory_speed, "SLICE", MIB)
    memory = ReadMemory(3 * MIB)
    words = np.arange(3 * MIB // 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    slices = np.bitwise_xor.reduce(words.reshape(3, -1), axis=1)
    assert len(set(slices)) == 3
    assert [memory.read(threads, streams) for _ in range(4)] == [*slices, slices[0]]


@needs_library
def test_memory_that_is_not_there_is_an_error():
    with pytest.raises(NativeError, match="no memory to read"):
        ReadMemory(1 << 60)


@needs_library
def test_loads_are_vectors():
    assert load_width() in (16, 32, 64)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [(["32K", "512K", "32768K"], 32 * MIB), (["48K", "4M"], 4 * MIB), (["1G"], 1 << 30)],
)
def test_the_last_cache_is_the_largest(tmp_path, sizes, expected):
    for place, size in enumerate(sizes):
        (tmp_path / f"index{place}").mkdir()
        (tmp_path / f"index{place}" / "size").write_text(size + "\n")
    assert last_cache(tmp_path) == expected


def test_without_a_list_of_caches_one_is_assumed(tmp_path):
    assert last_cache(tmp_path / "none") == memory_speed.FALLBACK_CACHE


def test_free_memory_is_what_the_system_says(tmp_path):
    listing = tmp_path / "meminfo"
    listing.write_text("MemTotal:  100 kB\nMemAvailable:     24 kB\n")
    assert free_memory(listing) == 24 << 10
    assert free_memory(tmp_path / "none") is None
