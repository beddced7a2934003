"""`encode.viterbi` on any torch device: the same states, bit for bit, for many rings at a time.

Targets go to the device once and states come back once; between the two there is no loop over
rings, only over steps, and over groups of rings where the memory asked for is less than all take.
The steps are torch's operations (`device_steps`, `device_dense`); dense trellises, which are those
that take long, have a kernel on NVIDIA's GPUs (`search_kernel`). A ring that the search in whole
numbers cannot hold is searched in float32, as on the CPU. Before a code is trusted to another
device some rings are searched on both.

Run and tested on CPU tensors; kernels compiled, counted, simulated; not run on a GPU. What an H200
should reach is in docs/gpu.md, by arithmetic.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unspool.encode import binned, dense
from unspool.encode.passes import Floats, States, go_round
from unspool.encode.viterbi import Plane, Search, checked, no_walk, trellis, viterbi
from unspool.errors import ModelError, SlowPathWarning, UnspoolError
from unspool.model.device_dense import DenseSteps, Forwards, OnesProduct
from unspool.model.device_steps import BinnedSteps, FloatSteps, Steps, one_pass, put
from unspool.model.gpu import Processor

GPU_BYTES, CPU_BYTES = 2 << 30, 1 << 28
"""What rings that are searched together may take beside the tables of their code."""

COMPARED_RINGS, COMPARED_STEPS = 2, 24
"""Of every code that a device meets, before it is trusted with more: no window is longer."""

WAYS = KERNEL, BYTES, WORDS, FLOATS = ("kernel", "bytes", "words", "floats")
"""The kernel of dense trellises; they and binned ones by torch's operations; all others."""

KEPT = 4
"""Codes whose tables stay on the device: up to 0.7 GB each (m3-e4m3), 50 MB for most."""


def search_on(device: str | None) -> Search:
    """The trellis search of a device by torch's name for it; of the CPU, `viterbi` itself.

    Raises ModelError for a device that is not there.
    """
    if device is None or device == "cpu":
        return viterbi
    return DeviceSearch(available(device))


def available(device: str) -> torch.device:
    """A device that holds numbers here; raises ModelError where it does not."""
    allowed = "cpu, or cuda with an NVIDIA GPU and a torch built for it"
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ModelError("no such device here", where=device, found=kind, allowed=allowed)
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, AssertionError) as error:
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise ModelError(
            "no such device here", where=device, found=first, allowed=allowed
        ) from error
    return found


@dataclass(frozen=True, kw_only=True)
class _Code:
    """A code on a device: its integer search, if it has one, and that in float32."""

    whole: Steps | None
    bins: binned.Binned | None
    real: FloatSteps


class DeviceSearch:
    """A `Search` on a torch device, which holds the tables of the codes it met last.

    Several threads may call it: they take turns, so that the memory asked for is enough.
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        memory: int | None = None,
        dtype: torch.dtype | None = None,
        kernels: bool = True,
        processor: Processor | None = None,
    ) -> None:
        """`memory`: bytes for rings; `dtype`: of whole costs in torch's operations, binary16 on
        GPUs unless told; `kernels`: whether to use them where there are some; `processor`: what
        runs them, on NVIDIA's GPUs that GPU."""
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        on_cpu = self.device.type == "cpu"
        self.memory = memory or (CPU_BYTES if on_cpu else GPU_BYTES)
        self._dtype = dtype or (torch.float32 if on_cpu else torch.float16)
        self._processor, self._kernels = processor, kernels
        self._turn, self._codes = threading.Lock(), functools.lru_cache(KEPT)(self._tabulated)

    def __call__(
        self,
        values: Floats,
        planes: Sequence[Plane],
        targets: Floats,
        *,
        passes: int = 2,
        threads: int | None = None,
    ) -> States:
        """See `viterbi`. Raises MemoryError where the device has too little."""
        values, targets = checked(values, tuple(planes), targets, passes)
        try:
            with self._turn, torch.inference_mode():
                code = self._codes(values.tobytes(), values.shape, tuple(planes))
                states = self._searched(code, put(targets, self.device), passes)
                return states.to(torch.int32).cpu().numpy().view(np.uint32)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"viterbi on {self.device}: {error}".partition("\n")[0]) from error

    def way(self, values: Floats, planes: Sequence[Plane]) -> str:
        """How a code is searched: one of WAYS."""
        values = np.asarray(values, np.float32)
        with self._turn, torch.inference_mode():
            whole = self._codes(values.tobytes(), values.shape, tuple(planes)).whole
        if isinstance(whole, DenseSteps):
            return BYTES if isinstance(whole.forwards, OnesProduct) else KERNEL
        return FLOATS if whole is None else WORDS

    def _tabulated(self, values: bytes, shape: tuple[int, int], planes: tuple[Plane, ...]) -> _Code:
        table = np.frombuffer(values, np.float32).reshape(shape)
        found = trellis(table, planes)
        small = binned.binned(table, found.source, found.state)
        wide = None if small is not None else dense.dense(table, found.source, found.state)
        whole: Steps | None = None
        if small is not None:
            whole = BinnedSteps.of(small, self.device)
        elif wide is not None:
            whole = DenseSteps.of(wide, self.device, self._forwards(wide))
        code = _Code(whole=whole, bins=small, real=FloatSteps.of(found, self.device))
        if self.device.type != "cpu" or self._processor is not None:
            self._compare(code, table, planes)
        return code

    def _forwards(self, found: dense.Dense) -> Forwards:
        """The kernel of a trellis, or torch's operations where there is none."""
        if self._processor is not None or (self._kernels and self.device.type == "cuda"):
            from unspool.model.processors import processor
            from unspool.model.search_kernel import DenseKernel

            try:
                return DenseKernel(found, self._processor or processor(self.device.index))
            except UnspoolError as error:
                slower = f"the trellis search on {self.device} runs without its kernel: {error}"
                warnings.warn(slower, SlowPathWarning, stacklevel=2)
        return OnesProduct.of(found, self.device, self._dtype)

    def _compare(self, code: _Code, values: Floats, planes: tuple[Plane, ...]) -> None:
        """Raises UnspoolError where the device finds other states than the CPU for some rings."""
        lanes = values.shape[1]
        finite = np.where(np.isfinite(values), values, 0)
        dice = np.random.default_rng(0)
        targets = dice.standard_normal((COMPARED_RINGS, COMPARED_STEPS, lanes), np.float32)
        targets *= np.sqrt(np.mean(np.square(finite)))
        ours = self._searched(code, put(targets, self.device), 2).cpu().numpy()
        if not np.array_equal(ours, viterbi(values, planes, targets)):
            raise UnspoolError(
                "the device finds other states than the CPU; please tell us",
                where=str(self.device), allowed="cpu",
            )  # fmt: skip

    def _searched(self, code: _Code, targets: torch.Tensor, passes: int) -> torch.Tensor:
        if code.whole is None:
            return self._in_float(code, targets, passes)
        told, outside = targets, torch.zeros_like(targets[:, 0, 0], dtype=torch.bool)
        if code.bins is not None:
            told, outside = _bins(code.bins, targets[..., 0])
        states, beyond = self._in_groups(code.whole, told, passes)
        lost = (beyond[-1] | outside).nonzero()[:, 0]
        if len(lost):
            states[lost] = self._in_float(code, targets[lost], passes)
        return states

    def _in_float(self, code: _Code, targets: torch.Tensor, passes: int) -> torch.Tensor:
        needed = 1 if code.real.nodes == 1 else passes
        states, beyond = self._in_groups(code.real, targets, needed)
        if any(bool(bad.any()) for bad in beyond):
            raise no_walk()
        return states

    def _in_groups(
        self, steps: Steps, told: torch.Tensor, passes: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """States, and per pass the rings [rings] that were out of reach."""
        group = max(1, self.memory // steps.ring_bytes(told.shape[1]))
        states = torch.empty(told.shape[:2], dtype=torch.int64, device=told.device)
        beyond = torch.zeros((passes, len(told)), dtype=torch.bool, device=told.device)
        for first in range(0, len(told), group):
            part = slice(first, first + group)
            found: list[torch.Tensor] = []
            walk = functools.partial(one_pass, steps, found)
            states[part] = go_round(told[part], passes, walk, roll=torch.roll)
            beyond[:, part] = torch.stack(found)
        return states, list(beyond)


def _bins(table: binned.Binned, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`Binned.bins` on the device: bins [rings, steps], and which rings have targets without."""
    places = targets * float(table.scale) + float(table.middle)
    inside = (places >= 0) & (places < len(table.costs))
    return torch.where(inside, places, 0).to(torch.int64), ~inside.all(1)
