"""The CUDA compiler and disassembler, found where pip puts them; neither is needed at import.

pip install 'unspool[cuda]'     NVRTC (a library) and nvdisasm (a program), 60 MB, no GPU needed
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unspool.decode import nvrtc
from unspool.decode.nvrtc import INSTALL, STANDARD, Nvrtc
from unspool.errors import UnspoolError


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """NVRTC and nvdisasm of one machine."""

    compiler: Nvrtc
    disassembler: Path

    @property
    def version(self) -> str:
        """The compiler's version, as 13.0; the counts of another may differ."""
        return self.compiler.version

    def cubin(self, source: str, architecture: str, options: Sequence[str] = (STANDARD,)) -> bytes:
        """Machine code of a source for `sm_90a` and the like; UnspoolError with the log."""
        return self.compiler.cubin(source, architecture, options)

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


def why_not() -> str:
    """What is missing to count instructions here; empty where nothing is."""
    missing = [name for name, found in (("NVRTC", _nvrtc()), ("nvdisasm", program())) if not found]
    return f"{' and '.join(missing)} not found ({INSTALL})" if missing else ""


def toolchain() -> Toolchain:
    """The tools of this machine; UnspoolError where one is missing."""
    compiler, disassembler = _nvrtc(), program()
    if compiler is None or disassembler is None:
        raise UnspoolError(f"cannot count machine instructions: {why_not()}")
    return Toolchain(compiler=compiler, disassembler=disassembler)


@functools.cache
def _nvrtc() -> Nvrtc | None:
    return nvrtc.find()


def program(name: str = "nvdisasm") -> Path | None:
    """A program of NVIDIA's wheels, else of the PATH."""
    wheels = nvrtc.wheel_folders()
    found = [path for root in wheels for path in sorted(root.glob(f"**/bin/{name}"))]
    on_path = shutil.which(name)
    return found[0] if found else Path(on_path) if on_path else None
