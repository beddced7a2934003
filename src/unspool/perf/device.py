"""GPUs as their makers describe them: what a lower bound divides by.

Published, each with its source at the figure: multiprocessors, clock, memory, tensor rates, lanes
per clock. Assumed, for nobody publishes them: `cvt` of `Pipes`, and `LAUNCH_SECONDS`. Nothing here
was measured by us; `make gpu` measures what is assumed (docs/gpu.md).

    A   NVIDIA's AIConfigurator, system files       D   NVIDIA's data sheets and whitepapers
    G   CUDA programming guide, "throughput of native arithmetic instructions"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unspool.errors import DeclarationError

ISSUE_SLOTS = 4
"""Warp instructions that a multiprocessor issues per clock: one per scheduler, 8.0 to 12.0 (G)."""

WARP = 32
"""Lanes of a warp."""

SHARED_BYTES = 128
"""Bytes per clock of a multiprocessor's shared memory: 32 banks of 4 bytes, 8.0 to 12.0 (G)."""

LAUNCH_SECONDS = 3e-6
"""What a product costs beside its work. Assumed: AIConfigurator adds 3 us to a memory operation;
fits of its BF16 products on H200 give 4 to 5 us."""


@dataclass(frozen=True, kw_only=True)
class Pipes:
    """Lanes per multiprocessor and clock, by the names of `perf.count`.

    Where opcodes of a pipe differ it is the fastest that decoders use: a bound must not be too
    slow. `lds` is not here: a look-up is 4 of SHARED_BYTES. `other` has no rate but the issue's.
    """

    alu: int
    fma: int
    cvt: int


#: G: LOP3, SHF, PRMT 64 lanes throughout (IADD3 alone 128 on 12.0; up to 84 was measured on 10.0);
#: IMAD 64 throughout, HFMA2 128 on 9.0 and 64 elsewhere; FP32 arithmetic, 128, is in no decoder.
#: cvt is assumed: F2FP of FP8 and FP4 is undocumented, other conversions take 16 to 64.
PIPES: Mapping[str, Pipes] = {
    "sm89": Pipes(alu=64, fma=64, cvt=64),
    "sm90": Pipes(alu=64, fma=128, cvt=64),
    "sm100": Pipes(alu=64, fma=64, cvt=64),
    "sm120": Pipes(alu=64, fma=64, cvt=64),
}


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU. Tensor rates are dense, in operations per second, a multiply-add being two."""

    name: str
    title: str
    #: the target its kernels are compiled for
    target: str
    processors: int
    #: boost clock in Hz; what a GPU holds under load is less
    clock: float
    #: bytes per second, and bytes
    bandwidth: float
    memory: float
    #: operand kind -> rate; FP6, and FP4 in bytes, run as FP8
    tensor: Mapping[str, float]

    @property
    def pipes(self) -> Pipes:
        """Lanes of a multiprocessor's pipes."""
        return PIPES[self.target]

    @property
    def clocks(self) -> float:
        """Clocks of all multiprocessors together, per second."""
        return self.processors * self.clock

    def tensor_rate(self, kind: str) -> float:
        """The rate of FP16, FP8, FP4 or INT8; raises DeclarationError where it has none."""
        if kind not in self.tensor:
            raise DeclarationError(
                "no such matrix unit", where=self.title, found=kind, allowed=self.tensor
            )
        return self.tensor[kind]


def _tensor(**tera: float) -> Mapping[str, float]:
    return {name.upper(): rate * 1e12 for name, rate in tera.items()}


#: H100, H200: processors, clock A; bandwidth, memory, tensor D (BF16 as FP16; at 1.83 GHz, A).
#: B200: A, but 8.0 TB/s D (A has 7.7), INT8 D.
#: RTX: D (Ada and Blackwell whitepapers), floats with FP32 sums, as all our kernels have them.
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device(
            name="h100", title="H100 SXM", target="sm90", processors=132, clock=1.98e9,
            bandwidth=3.35e12, memory=80e9, tensor=_tensor(fp16=989, fp8=1979, int8=1979),
        ),
        Device(
            name="h200", title="H200", target="sm90", processors=132, clock=1.98e9,
            bandwidth=4.8e12, memory=141e9, tensor=_tensor(fp16=989, fp8=1979, int8=1979),
        ),
        Device(
            name="b200", title="B200", target="sm100", processors=148, clock=1.97e9,
            bandwidth=8.0e12, memory=180e9,
            tensor=_tensor(fp16=2250, fp8=4500, fp4=9000, int8=4500),
        ),
        Device(
            name="rtx4090", title="RTX 4090", target="sm89", processors=128, clock=2.52e9,
            bandwidth=1.008e12, memory=24e9, tensor=_tensor(fp16=165, fp8=330, int8=661),
        ),
        Device(
            name="rtx5090", title="RTX 5090", target="sm120", processors=170, clock=2.41e9,
            bandwidth=1.792e12, memory=32e9,
            tensor=_tensor(fp16=210, fp8=419, fp4=1676, int8=838),
        ),
    )
}  # fmt: skip

OF_TARGET: Mapping[str, str] = {
    "sm89": "rtx4090", "sm90": "h200", "sm100": "b200", "sm120": "rtx5090"
}  # fmt: skip
"""The device that stands for a target where none is named."""


def device(name: str) -> Device:
    """The device of that name, however it is spelled: `RTX 4090`, `rtx-4090`.

    Raises DeclarationError, with all names.
    """
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if plain not in DEVICES:
        raise DeclarationError("no such GPU", found=name, allowed=DEVICES)
    return DEVICES[plain]
