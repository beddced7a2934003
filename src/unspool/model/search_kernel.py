"""The walks of a dense trellis by one kernel (`search.cuh`), in the place of torch's operations.

A block takes 64 rings around a whole pass; their costs, the walks and what edges look up stay in
its shared memory, so that a step of a ring moves some hundred bytes where torch's operations move
512 KiB (m2-e2m1). Compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

import ctypes
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from unspool.encode import dense
from unspool.errors import UnspoolError
from unspool.matmul.cuda.source import Kernel, assembled
from unspool.model.device_dense import never_of
from unspool.model.gpu import Processor

RINGS = 64
"""Of a block: 32 lanes with two each."""

ABREAST = 8
"""Nodes of a warp that are advanced together, so that a walk's cost is read once for them."""

MOST_WARPS = 16

_ROW_BYTES = 128
_MOST_WHOLE = 1 << 15


class WalkArguments(ctypes.Structure):
    """As `search.cuh` has them."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("costs", "places", "starts", "walks")),
        *((name, ctypes.c_int) for name in ("steps", "blocks")),
    ]


class DenseKernel:
    """The `device_dense.Forwards` of a trellis on a GPU, or on the CPU that plays one."""

    def __init__(self, found: dense.Dense, processor: Processor) -> None:
        """Compiles the kernel and uploads the trellis; UnspoolError where one is not possible."""
        self._processor = processor
        self._levels = found.levels.size
        self.nodes = len(found.state)
        self.kernel = walk_kernel(found, processor.machine.architecture)
        if self.kernel.shared_bytes > processor.per_block:
            raise UnspoolError(
                "a block has less shared memory on this GPU",
                found=f"{self.kernel.shared_bytes} bytes",
                allowed=f"{processor.per_block} at most",
            )
        self.dtype, self.edge_bytes = torch.int16, 0
        self._places = torch.from_numpy(byte_places(found)).to(processor.device)
        processor.ready([self.kernel])

    def __call__(self, told: Tensor, boundary: Tensor | None) -> Tensor:
        """See `Forwards`."""
        steps, rings = told.shape[:2]
        blocks = -(-rings // RINGS)
        spare = blocks * RINGS - rings
        filled = torch.nn.functional.pad(told, (0, 0, 0, spare))
        costs = filled.view(steps, blocks, RINGS, self._levels).transpose(2, 3).contiguous()
        walks = torch.empty(
            (steps + 1, blocks, self.nodes, RINGS), dtype=self.dtype, device=told.device
        )
        memory = {"costs": costs, "places": self._places, "walks": walks}
        if boundary is not None:
            memory["starts"] = torch.nn.functional.pad(boundary.to(torch.int32), (0, spare))
        arguments = WalkArguments(
            **{name: tensor.data_ptr() for name, tensor in memory.items()},
            steps=steps, blocks=blocks,
        )  # fmt: skip
        self._processor.run(self.kernel, (blocks, 1), arguments, memory)
        return walks.transpose(2, 3).reshape(steps + 1, blocks * RINGS, self.nodes)[:, :rings]


def walk_kernel(found: dense.Dense, architecture: str) -> Kernel:
    """The kernel of a trellis; UnspoolError where its sums do not fit 16 bits."""
    nodes, (lanes, count), never = len(found.state), found.levels.shape, never_of(found)
    entries, places = found.looked_up()
    tables = places.shape[-1]
    warps = min(MOST_WARPS, nodes // ABREAST)
    if never + dense.MOST * lanes >= _MOST_WHOLE:
        raise UnspoolError("too many lanes for sums of 16 bits", found=lanes)
    constants = {
        "nodes": nodes, "parallel": found.parallel, "lanes": lanes, "count": count,
        "tables": tables, "entries": entries, "warps": warps, "abreast": ABREAST,
        "most": dense.MOST, "never": never,
    }  # fmt: skip
    text = resources.files("unspool").joinpath("model", "search.cuh").read_text(encoding="utf-8")
    return Kernel(
        name="unspool_walk",
        source=assembled(
            text, function="walk", arguments="WalkArguments", threads=32 * warps,
            constants=constants,
        ),
        architecture=architecture,
        threads=32 * warps,
        shared_bytes=_ROW_BYTES * (tables * entries + nodes + warps),
    )  # fmt: skip


def byte_places(found: dense.Dense) -> np.ndarray:
    """Where edges look up, in bytes: int32 [nodes / ABREAST, from-nodes * parallel, ABREAST,
    tables], flat, and as many zeros as a warp reads ahead."""
    places = found.looked_up()[1].astype(np.int32) * _ROW_BYTES
    ordered = places.reshape(-1, ABREAST, *places.shape[1:])
    ahead = np.zeros(ABREAST * places.shape[2], np.int32)
    return np.concatenate([ordered.swapaxes(1, 2).ravel(), ahead])
