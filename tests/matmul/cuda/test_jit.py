"""Kernels are compiled once per machine, whatever happens to the folder that keeps them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
import warnings

import pytest

from unspool.decode import nvrtc
from unspool.errors import SlowPathWarning, UnspoolError
from unspool.matmul.cuda import cubin_cache, jit
from unspool.matmul.cuda.cubin_cache import CubinCache, cache, key

SOURCE = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }'
ARCHITECTURES = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")

compiling = pytest.mark.skipif(bool(jit.why_not()), reason=jit.why_not() or "compiling works")


class Counting:
    """A compiler that notes what it was asked for."""

    def __init__(self, cubin: bytes = b"\x7fELF machine code") -> None:
        self.asked: list[tuple[str, str]] = []
        self.cubin = cubin

    def compiler(self, identity: str = "one 1.0") -> jit.Compiler:
        return jit.Compiler(identity=identity, cubin=self._compile)

    def _compile(self, source: str, architecture: str) -> bytes:
        self.asked.append((source, architecture))
        return self.cubin


@pytest.fixture
def kept(tmp_path) -> CubinCache:
    return CubinCache(folder=tmp_path / "cache")


def entry(kept: CubinCache):
    (path,) = kept.folder.glob("*.cubin")
    return path


def test_a_kernel_is_compiled_once(kept):
    made = Counting()
    for _ in range(3):
        assert jit.compile("k", "sm_90a", compiler=made.compiler(), kept=kept) == made.cubin
    assert made.asked == [("k", "sm_90a")]
    assert [path.suffix for path in kept.folder.iterdir()] == [".cubin"]


def test_source_architecture_and_compiler_each_make_another_kernel(kept):
    made = Counting()
    for source, architecture, identity in (
        ("a", "sm_80", "1"), ("b", "sm_80", "1"), ("a", "sm_89", "1"), ("a", "sm_80", "2"),
    ):  # fmt: skip
        jit.compile(source, architecture, compiler=made.compiler(identity), kept=kept)
    assert len(made.asked) == len(list(kept.folder.iterdir())) == 4


def test_options_are_part_of_the_key(kept, monkeypatch):
    made = Counting()
    jit.compile("k", "sm_90a", compiler=made.compiler(), kept=kept)
    monkeypatch.setattr(jit, "OPTIONS", (*jit.OPTIONS, "-lineinfo"))
    jit.compile("k", "sm_90a", compiler=made.compiler(), kept=kept)
    assert len(made.asked) == 2


def test_parts_of_a_key_do_not_run_into_each_other():
    assert len({key("ab", "c"), key("a", "bc"), key("abc"), key("abc", "")}) == 4


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


DAMAGE = [
    cut,
    flipped,
    lambda _: b"",
    lambda data: b"unspool2" + data[8:],
    lambda data: data + b"x",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_compiled_again_and_mended(kept, damage):
    made = Counting()
    jit.compile("k", "sm_90a", compiler=made.compiler(), kept=kept)
    path = entry(kept)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert jit.compile("k", "sm_90a", compiler=made.compiler(), kept=kept) == made.cubin
    assert len(made.asked) == 2
    assert path.read_bytes() == whole


def test_an_entry_that_is_a_folder_is_no_entry(kept):
    made = Counting()
    jit.compile("k", "sm_90a", compiler=made.compiler(), kept=kept)
    path = entry(kept)
    path.unlink()
    path.mkdir()
    cubin_cache.native._warn_once.cache_clear()
    with pytest.warns(SlowPathWarning, match="cannot be written"):
        assert jit.compile("k", "sm_90a", compiler=made.compiler(), kept=kept) == made.cubin


def test_a_folder_that_cannot_be_written_costs_time_and_is_told_once(tmp_path):
    (tmp_path / "file").write_text("no folder")
    kept, made = CubinCache(folder=tmp_path / "file" / "cache"), Counting()
    cubins = []
    with pytest.warns(SlowPathWarning, match=r"cannot be written .*UNSPOOL_CACHE") as said:
        cubins += [jit.compile("k", "a", compiler=made.compiler(), kept=kept) for _ in range(3)]
    assert (cubins, len(said), len(made.asked)) == ([made.cubin] * 3, 1, 3)


def test_a_full_disk_leaves_no_rest(kept, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cubin_cache.native._warn_once.cache_clear()
    with pytest.warns(SlowPathWarning, match="No space left"):
        jit.compile("k", "sm_90a", compiler=Counting().compiler(), kept=kept)
    assert list(kept.folder.iterdir()) == []


def test_the_longest_unused_entries_go_first(tmp_path):
    kept = CubinCache(folder=tmp_path, limit=3 * 1040)
    for name in ("old", "used", "new"):
        kept.put(name, bytes(1000))
    for age, name in enumerate(("new", "used", "old")):
        os.utime(tmp_path / f"{name}.cubin", ns=(0, 10**18 - age * 10**9))
    assert kept.get("old") is not None  # now the youngest
    kept.put("more", bytes(1000))
    assert {path.stem for path in tmp_path.iterdir()} == {"old", "new", "more"}


def test_an_entry_over_the_limit_is_kept_alone(tmp_path):
    kept = CubinCache(folder=tmp_path, limit=10)
    kept.put("a", bytes(100))
    kept.put("b", bytes(100))
    assert kept.get("b") == bytes(100)
    assert kept.get("a") is None


def test_where_the_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("UNSPOOL_CACHE", raising=False)
    assert cache().folder == tmp_path / ".cache" / "unspool"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache().folder == tmp_path / "x" / "unspool"
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "y"))
    assert cache().folder == tmp_path / "y"


RACER = """
import sys
from unspool.matmul.cuda import jit
print("ready", flush=True)
sys.stdin.readline()
cubin = jit.compile(sys.argv[1], "sm_90a")
print(len(cubin), cubin[:4].hex())
"""


@compiling
def test_two_processes_that_compile_at_once_both_succeed(tmp_path):
    environment = {**os.environ, "UNSPOOL_CACHE": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", RACER, SOURCE]
    racers = [
        subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    found = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert found[0] == found[1] != ""
    assert found[0].endswith("7f454c46\n")
    assert [path.suffix for path in tmp_path.iterdir()] == [".cubin"]


def test_readers_see_all_of_an_entry_or_nothing(kept):
    cubins = [bytes([value]) * 300_000 for value in range(4)]
    wrong: list[bytes] = []

    def write(cubin: bytes) -> None:
        for _ in range(20):
            kept.put("k", cubin)
            found = kept.get("k")
            if found not in cubins:
                wrong.append(found or b"")

    threads = [threading.Thread(target=write, args=(cubin,)) for cubin in cubins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@compiling
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_machine_code_comes_of_source(architecture, kept):
    cubin = jit.compile(SOURCE, architecture, kept=kept)
    assert cubin.startswith(b"\x7fELF")
    assert b"twice" in cubin


@compiling
def test_what_the_compiler_says_is_told(kept):
    with pytest.raises(UnspoolError, match=r"sm_90a: the CUDA compiler refused it.*undefined"):
        jit.compile("__device__ int x = undefined_name;", "sm_90a", kept=kept)
    assert not kept.folder.exists()


@compiling
def test_products_and_sums_are_not_contracted(kept):
    source = 'extern "C" __global__ void f(float* x) { x[0] = x[1] * x[2] + x[3]; }'
    fused = jit.from_nvrtc()
    if fused is None:
        pytest.skip("cuda.core alone")
    assert jit.compile(source, "sm_90a", kept=kept) != nvrtc.find().cubin(source, "sm_90a")


def test_no_compiler_is_told_in_one_line(monkeypatch):
    jit.default_compiler.cache_clear()
    monkeypatch.setattr(jit, "from_cuda_core", lambda: None)
    monkeypatch.setattr(nvrtc, "find", lambda: None)
    assert "no CUDA compiler" in jit.why_not()
    assert "\n" not in jit.why_not()
    jit.default_compiler.cache_clear()


def test_nvrtc_is_found_in_an_installed_cuda(monkeypatch, tmp_path):
    library = tmp_path / "lib64" / "libnvrtc.so.13"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr(nvrtc, "wheel_folders", lambda: ())
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert nvrtc.find() == nvrtc.Nvrtc(path=library)


def test_nvrtc_is_found_by_the_loader_last(monkeypatch):
    monkeypatch.setattr(nvrtc, "wheel_folders", lambda: ())
    monkeypatch.setattr(nvrtc, "_HOMES", ())
    monkeypatch.setattr(nvrtc, "_USUAL", nvrtc.Path("/nowhere"))
    monkeypatch.setattr(nvrtc, "_loads", lambda name: name.endswith("12"))
    assert str(nvrtc.find().path) == "libnvrtc.so.12"
    monkeypatch.setattr(nvrtc, "_loads", lambda _: False)
    assert nvrtc.find() is None


def stand_in(monkeypatch, compiled) -> None:
    """cuda.core as its documentation has it, version 1."""

    class Options:
        def __init__(self, **given) -> None:
            self.given = given

    class Program:
        def __init__(self, source: str, *, code_type: str, options: Options) -> None:
            self.asked = source, code_type, options.given

        def compile(self, kind: str):
            return types.SimpleNamespace(code=compiled(*self.asked, kind))

    core = types.SimpleNamespace(__version__="1.2", Program=Program, ProgramOptions=Options)
    bindings = types.SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0))
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.ModuleType("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", bindings)


def test_cuda_core_compiles_where_it_is_installed(monkeypatch):
    stand_in(monkeypatch, lambda *asked: repr(asked).encode())
    made = jit.from_cuda_core()
    assert made.identity == "cuda.core 1.2 nvrtc 13.0"
    asked = ("k", "c++", {"arch": "sm_90a", "std": "c++17", "fma": False}, "cubin")
    assert made.cubin("k", "sm_90a") == repr(asked).encode()


def test_its_errors_are_ours(monkeypatch):
    def refuse(*_: object) -> bytes:
        raise RuntimeError("log\nk.cu(1): error: no such thing\n")

    stand_in(monkeypatch, refuse)
    with pytest.raises(UnspoolError, match=r"refused it; found k.cu\(1\): error: no such thing"):
        jit.from_cuda_core().cubin("k", "sm_90a")


def test_no_warning_where_all_is_well(kept):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jit.compile("k", "sm_90a", compiler=Counting().compiler(), kept=kept)
