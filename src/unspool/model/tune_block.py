"""Tuning of one block: its layers' scales, moved to bring its outputs nearer to the original's.

After a block's layers are encoded one by one, gains of all their scales are trained together, by
Adam on the squared error of the block's hidden states against those of the original model, over the
calibration text (AQLM and QuIP# tune blocks so; Egiazarian et al., Tseng et al. 2024). The inputs
are those of the model as quantized so far. Gradients are made a window at a time, each by one
thread, and added in the windows' order, so that no number of threads or processes changes a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from unspool.model.gains import Gains, with_gains
from unspool.model.sums import Streams, own
from unspool.model.taps import Each, block_output
from unspool.pack.matrix import CodedMatrix

RATE, BATCH = 2e-3, 4
"""Of steps of BATCH windows; the rate falls linearly to zero, as in `tune`. Five times the rate
lowers errors on the text further, and raised the KL of the bundled model on another."""


@dataclass(frozen=True, kw_only=True)
class TunedBlock:
    """The matrices with their new scales; the error before and after, over the wanted square."""

    matrices: Mapping[str, CodedMatrix]
    before: float
    after: float


def tune_block(
    changed: nn.Module,
    matrices: Mapping[str, CodedMatrix],
    streams: Streams,
    each: Each,
    steps: int,
) -> TunedBlock:
    """Trains gains of the scales of a block's layers, by their names in it.

    `changed` has the decoded weights and stays as it is. The quantized stream stands before the
    block, the original's, which is what is wanted, behind it.
    """
    student = deepcopy(changed)
    for name, matrix in matrices.items():
        layer = student.get_submodule(name)
        student.set_submodule(name, Gains(layer.weight.detach(), layer.bias, matrix.format))
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    moving = [student.get_submodule(name).gain for name in matrices]
    for gain in moving:
        gain.requires_grad_(True)
    errors = _descend(student, moving, streams, each, steps)
    tuned = {
        name: with_gains(matrix, gain.detach().numpy())
        for (name, matrix), gain in zip(matrices.items(), moving, strict=True)
    }
    part = max(1, len(errors) // 8)
    before, after = (float(np.mean(some)) for some in (errors[:part], errors[-part:]))
    return TunedBlock(matrices=tuned, before=before, after=after)


def _descend(
    student: nn.Module,
    moving: Sequence[torch.Tensor],
    streams: Streams,
    each: Each,
    steps: int,
) -> list[float]:
    """The error of every step; batches go through the windows in order, again and again."""
    optimizer, errors = torch.optim.Adam(moving, lr=RATE, betas=(0.9, 0.95)), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        places = [(step * BATCH + i) % streams.count for i in range(min(BATCH, streams.count))]
        found = _gradients(student, moving, streams, each, places)
        for gain, parts in zip(moving, zip(*(of for _, of in found), strict=True), strict=True):
            gain.grad = torch.stack(parts).sum(0) / len(found)
        optimizer.step()
        errors.append(sum(error for error, _ in found) / len(found))
    return errors


def _gradients(
    student: nn.Module,
    moving: Sequence[torch.Tensor],
    streams: Streams,
    each: Each,
    places: Sequence[int],
) -> list[tuple[float, tuple[torch.Tensor, ...]]]:
    """(error, gradients) of those windows of all processes, each made where the window is."""
    processes = streams.processes
    mine = own(streams.count, processes)

    def window(place: int) -> tuple[float, tuple[torch.Tensor, ...]]:
        here = mine.index(place)
        wanted = streams.original[here]
        with torch.enable_grad():
            found = block_output(student, streams.quantized[here], streams.call)
            error = (found - wanted).square().mean() / wanted.square().mean()
            gradients = torch.autograd.grad(
                error, list(moving), allow_unused=True, materialize_grads=True
            )  # zeros for experts that the window does not reach
        return float(error.detach()), gradients

    asked = [place for place in places if place in mine]
    found = dict(zip(asked, each(lambda i: window(asked[i]), range(len(asked))), strict=True))
    everyone = processes.merged(found)
    return [everyone[place] for place in places]
