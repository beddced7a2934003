"""The CUDA compiler and disassembler, found where pip puts them; neither is needed at import.

pip install 'unspool[cuda]'     NVRTC (a library) and nvdisasm (a program), 60 MB, no GPU needed
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unspool.errors import UnspoolError

INSTALL = "pip install 'unspool[cuda]'"
_LIBRARY_PATTERN = "libnvrtc.so.1*"


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """NVRTC and nvdisasm of one machine."""

    library: Path
    disassembler: Path

    @functools.cached_property
    def nvrtc(self) -> ctypes.CDLL:
        """The loaded library, behind its built-ins, which it opens by bare name."""
        for builtins in self.library.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))
        return ctypes.CDLL(str(self.library))

    @functools.cached_property
    def version(self) -> str:
        """The compiler's version, as 13.0; the counts of another may differ."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def cubin(self, source: str, architecture: str) -> bytes:
        """Machine code of a source for `sm_90a` and the like; UnspoolError with the log."""
        program = ctypes.c_void_p()
        self._call(
            "CreateProgram", ctypes.byref(program), source.encode(), b"unspool.cu", 0, None, None
        )
        try:
            options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
            array = (ctypes.c_char_p * len(options))(*options)
            if self.nvrtc.nvrtcCompileProgram(program, len(options), array):
                log = self._text(program, "ProgramLog").decode(errors="replace")
                first = "; ".join(log.splitlines()[:3])
                raise UnspoolError("the CUDA compiler refused it", where=architecture, found=first)
            return self._text(program, "CUBIN")
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def disassemble(self, cubin: bytes) -> str:
        """The machine code as text."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "code.cubin"
            path.write_bytes(cubin)
            command = [str(self.disassembler), "-c", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnspoolError("nvdisasm failed", found=done.stderr.strip())
        return done.stdout

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, text)
        return text.raw

    def _call(self, function: str, *arguments: object) -> None:
        code = getattr(self.nvrtc, f"nvrtc{function}")(*arguments)
        if code:
            raise UnspoolError("NVRTC failed", where=function, found=code)


def why_not() -> str:
    """What is missing to count instructions here; empty where nothing is."""
    missing = [name for name, path in (("NVRTC", _library()), ("nvdisasm", _program())) if not path]
    return f"{' and '.join(missing)} not found ({INSTALL})" if missing else ""


def toolchain() -> Toolchain:
    """The tools of this machine; UnspoolError where one is missing."""
    library, program = _library(), _program()
    if library is None or program is None:
        raise UnspoolError(f"cannot count machine instructions: {why_not()}")
    return Toolchain(library=library, disassembler=program)


def _library() -> Path | None:
    found = [path for root in _roots() for path in sorted(root.glob(f"**/{_LIBRARY_PATTERN}"))]
    return found[0] if found else None


def _program() -> Path | None:
    found = [path for root in _roots() for path in sorted(root.glob("**/bin/nvdisasm"))]
    if found:
        return found[0]
    on_path = shutil.which("nvdisasm")
    return Path(on_path) if on_path else None


@functools.cache
def _roots() -> Sequence[Path]:
    """Where the wheels of NVIDIA put their files: the namespace package `nvidia`."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return tuple(Path(place) for place in places or ())
