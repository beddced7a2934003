"""Tuning: scales and norms of a quantized model, moved to lower its KL from the original.

Codes stay as they are; only continuous parameters move, by Adam on the mean KL divergence of the
outputs over a calibration text (as QuIP# and QTIP end, Tseng et al. 2024). A gain of one number per
stored scale is trained and then folded into the scale, rounded to the scale's own format; norms are
rounded to the model's type.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from unspool.errors import ModelError
from unspool.model.gains import Gains, with_gains
from unspool.model.linear import QuantizedLinear
from unspool.model.progress import Progress

STEPS, RATE, BATCH = 120, 2e-3, 4
"""Steps of BATCH windows; the rate falls linearly to zero. Gains start at 1 and move little."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Mean KL on the calibration text in nats, over the first and the last eighth of the steps."""

    before: float
    after: float
    #: numbers that were trained
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long and how fast."""

    steps: int = STEPS
    rate: float = RATE
    batch: int = BATCH


def tune(
    model: nn.Module,
    original: nn.Module,
    windows: torch.Tensor,
    *,
    effort: Effort = Effort(),
    progress: Progress | None = None,
    device: str = "cpu",
) -> Tuned:
    """Moves scales and norms of a quantized model in place; `windows` are ids `[count, tokens]`.

    Takes the memory of a dense float32 copy and its gradients beside both models, on `device`, to
    which the original moves too. Raises ModelError for a model without quantized layers.
    """
    student = nn.Module.float(deepcopy(model))  # transformers' own refuses loaded checkpoints
    gains = _with_gains(student)
    student.to(device)
    norms = [(n, p) for n, p in student.named_parameters() if p.ndim == 1 and "gain" not in n]
    moving = [each.gain for each in gains.values()] + [p for _, p in norms]
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for parameter in moving:
        parameter.requires_grad_(True)
    losses = _descend(student, original.to(device), moving, windows.to(device), effort, progress)
    for name, each in gains.items():
        _fold(model.get_submodule(name), each.gain.detach().cpu().numpy())
    owned = dict(model.named_parameters())
    for name, parameter in norms:
        owned[name].data.copy_(parameter.detach())
    part = max(1, len(losses) // 8)
    return Tuned(
        before=float(np.mean(losses[:part])),
        after=float(np.mean(losses[-part:])),
        parameters=sum(parameter.numel() for parameter in moving),
    )


def _descend(
    student: nn.Module,
    original: nn.Module,
    moving: list[nn.Parameter],
    windows: torch.Tensor,
    effort: Effort,
    progress: Progress | None,
) -> list[float]:
    """The KL of every step; batches go through the windows in order, again and again."""
    optimizer = torch.optim.Adam(moving, lr=effort.rate, betas=(0.9, 0.95))
    losses = []
    for step in range(effort.steps):
        for group in optimizer.param_groups:
            group["lr"] = effort.rate * (1 - step / effort.steps)
        at = (torch.arange(effort.batch) + step * effort.batch) % len(windows)
        ids = windows[at]
        with torch.no_grad():
            wanted = original(ids, use_cache=False).logits.float().log_softmax(-1)
        found = student(ids, use_cache=False).logits.float().log_softmax(-1)
        loss = (wanted.exp() * (wanted - found)).sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if progress is not None:
            progress(step + 1, effort.steps, f"KL {losses[-1]:.4f}")
    return losses


def _with_gains(student: nn.Module) -> dict[str, Gains]:
    """Puts gains into every quantized layer of the student; those, by the layer's name."""
    layers = {n: m for n, m in student.named_modules() if isinstance(m, QuantizedLinear)}
    if not layers:
        raise ModelError("no quantized layer to tune", found=type(student).__name__)
    found = {n: Gains(layer.decode(), layer.bias, layer.format) for n, layer in layers.items()}
    for name, each in found.items():
        student.set_submodule(name, each)
    return found


def _fold(layer: nn.Module, gain: np.ndarray) -> None:
    """Puts gains into a layer's stored scales."""
    assert isinstance(layer, QuantizedLinear)
    old = layer.matrix()
    found = with_gains(old, gain)
    if found.tensor_scale is not None:
        _buffer(layer, "weight_tensor_scale", np.array([found.tensor_scale], np.float32))
    if found.scale is not None and found.scale is not old.scale:
        _buffer(layer, "weight_scale", found.scale)


def _buffer(layer: QuantizedLinear, name: str, array: np.ndarray) -> None:
    """Replaces a buffer by another of the same bytes' meaning; the kernel is made anew."""
    old: torch.Tensor = getattr(layer, name)
    kind = str(old.dtype).removeprefix("torch.")
    bits = np.ascontiguousarray(array).view(kind).reshape(tuple(old.shape))
    setattr(layer, name, torch.from_numpy(bits.copy()))
