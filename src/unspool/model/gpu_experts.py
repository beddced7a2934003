"""A mixture's weights in a GPU's memory: every token times those of its experts, in one launch.

Tiles of the grouped product belong to one expert each. Which tokens stand in which is found on the
device (`model.routing`) and nothing waits for it: grids and memory depend on the number of choices
alone, and tiles that nobody needs end at once. So a CUDA graph can be captured of it.

Compiled, counted, simulated; not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from unspool.errors import ModelError
from unspool.matmul.cuda import launch
from unspool.matmul.cuda.arrange import arrange, recipe_of
from unspool.matmul.cuda.routing import most_tiles
from unspool.model.gpu import GpuWeights, Launches, Processor
from unspool.model.routing import route
from unspool.pack.matrix import CodedMatrix


class GpuExperts(GpuWeights):
    """A coded matrix per expert, all of one format and shape."""

    def __init__(
        self, matrices: Sequence[CodedMatrix], processor: Processor, *, activations: str = "auto"
    ) -> None:
        """Uploads them; ModelError where they differ, DeclarationError as `gpu.upload` says."""
        kinds = {(matrix.format.name, matrix.shape) for matrix in matrices}
        if len(kinds) != 1:
            raise ModelError(
                "experts of one launch have one format and one shape",
                found=sorted(map(str, kinds)) or "no expert",
            )
        made = recipe_of(matrices, processor.machine, activations)
        every = [arrange(matrix, made) for matrix in matrices]
        self.experts = len(every)
        whole = replace(
            every[0],
            units=np.concatenate([one.units for one in every]),
            row_scales=np.concatenate([one.row_scales for one in every]),
            levels=np.concatenate([one.levels for one in every]),
        )
        super().__init__(whole, processor)
        self.row_blocks = every[0].row_blocks

    def warm_up(self, rows: Sequence[int], top: int, dtype: torch.dtype) -> None:
        """Compiles the kernels of so many rows with so many experts each, on the current stream,
        and leaves counters for a CUDA graph with one of each."""
        self._warmed_up([self._launches_of(m * top, dtype) for m in rows])

    def multiply(self, x: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
        """x `[m, k]` times the experts' weights `[m, top, n]` in x's dtype; choices `[m, top]`.

        Zeros for a choice that is no expert. Raises ModelError for what does not fit.
        """
        flat = self._rows(x)
        if choices.ndim != 2 or len(choices) != len(flat) or choices.device != x.device:
            raise ModelError(
                "the choices of experts do not fit the activation",
                found=f"{list(choices.shape)} on {choices.device}",
                allowed=f"[{len(flat)}, experts of a token] on {x.device}",
            )
        m, top = choices.shape
        output = x.new_zeros((m * top, self._output_rows))
        if len(output):
            found = self._launches_of(m * top, x.dtype)
            routed = route(choices, self.experts, found.planned.tokens)
            output = self._fused(flat, output, found, routed)
        return output[:, : self.shape[0]].reshape(m, top, self.shape[0]).contiguous()

    def _launches_of(self, choices: int, dtype: torch.dtype) -> Launches:
        """Tiles for as many tokens as an expert has on average."""
        tokens = launch.tokens_of(self.made, -(-choices // self.experts))
        return self._for(most_tiles(choices, self.experts, tokens) * tokens, dtype, tokens)
