"""NVRTC, NVIDIA's compiler as a library: found here, called by ctypes. No GPU is needed.

the wheels of NVIDIA (nvidia/*/lib: what PyTorch's CUDA builds bring, too)
CUDA_HOME, CUDA_PATH, the usual place of an installed CUDA
whatever the dynamic loader knows
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unspool.errors import UnspoolError

INSTALL = "pip install 'unspool[cuda]'"

STANDARD = "--std=c++17"

_PATTERN = "libnvrtc.so.1*"
_BARE_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12")
_HOMES = ("CUDA_HOME", "CUDA_PATH")
_USUAL = Path("/usr/local/cuda")
_FOLDERS = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
_LOG_LINES = 3


@dataclass(frozen=True, kw_only=True)
class Nvrtc:
    """The compiler of one machine."""

    #: a file, or a bare name that the dynamic loader finds
    path: Path

    @functools.cached_property
    def library(self) -> ctypes.CDLL:
        """The loaded library, behind its built-ins, which it opens by bare name."""
        for builtins in sorted(self.path.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
        return ctypes.CDLL(str(self.path))

    @functools.cached_property
    def version(self) -> str:
        """The compiler's version, as 13.0."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    @property
    def identity(self) -> str:
        """Version and size: builds of one version differ, and NVRTC does not tell its build."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        return f"nvrtc {self.version} {size}"

    def cubin(self, source: str, architecture: str, options: Sequence[str] = (STANDARD,)) -> bytes:
        """Machine code of a source for `sm_90a` and the like; UnspoolError with the log."""
        program = ctypes.c_void_p()
        self._call(
            "CreateProgram", ctypes.byref(program), source.encode(), b"unspool.cu", 0, None, None
        )
        try:
            every = [f"--gpu-architecture={architecture}".encode(), *(o.encode() for o in options)]
            array = (ctypes.c_char_p * len(every))(*every)
            if self.library.nvrtcCompileProgram(program, len(every), array):
                raise refused(
                    architecture, self._text(program, "ProgramLog").decode("utf-8", "replace")
                )
            return self._text(program, "CUBIN")
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, text)
        return text.raw

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self.library, f"nvrtc{function}")(*arguments)
        if code:
            raise UnspoolError("NVRTC failed", where=function, found=code)


def refused(architecture: str, log: str) -> UnspoolError:
    """The error of a source that does not compile: what the compiler said first."""
    lines = [line for line in log.rstrip("\0").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line] or lines
    first = "; ".join(errors[:_LOG_LINES])
    return UnspoolError("the CUDA compiler refused it", where=architecture, found=first)


def find() -> Nvrtc | None:
    """The compiler of this machine, or None."""
    for path in _candidates():
        return Nvrtc(path=path)
    return None


def wheel_folders() -> Sequence[Path]:
    """Where the wheels of NVIDIA put their files: the namespace package `nvidia`."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return tuple(Path(place) for place in places or ())


def _candidates() -> Iterator[Path]:
    for root in wheel_folders():
        yield from sorted(root.glob(f"**/{_PATTERN}"))
    homes = [Path(os.environ[name]) for name in _HOMES if os.environ.get(name)]
    for home in (*homes, _USUAL):
        for folder in _FOLDERS:
            yield from sorted((home / folder).glob(_PATTERN))
    for name in _BARE_NAMES:
        if _loads(name):
            yield Path(name)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
