"""Mixtures of experts whose weights are fused, as linear layers like any other.

transformers keeps the experts of a block in one module with a 3-D parameter per projection:

    gate_up_proj  [experts, 2 inter, hidden]        or transposed, [experts, hidden, 2 inter]
    down_proj     [experts, hidden, inter]          or transposed, [experts, inter, hidden]

and declares the layout for kernels that take the place of its loop (`use_experts_implementation`).
Here another module takes its place that does the same with a linear layer per expert and
projection, `experts.7.down_proj`, whose weight is a view of the parameter. All that knows linear
layers then knows experts: selection, calibration, checkpoints. Biases stay fused.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.model import ops
from unspool.model.expert_names import projection_of
from unspool.model.linear import QuantizedLinear
from unspool.model.product import products

if TYPE_CHECKING:
    from unspool.model.gpu import Processor
    from unspool.model.gpu_experts import GpuExperts

DOWN = "down_proj"

DECLARED = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_apply_gate")
"""What a module of transformers says of its layout."""


def is_expert(model: nn.Module, layer: str) -> bool:
    """Whether a layer of that name is one of a module that was split."""
    return isinstance(model.get_submodule(layer.rpartition(".")[0]), Expert)


class Expert(nn.Module):
    """The linear layers of one expert."""

    def forward(self, projection: str, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Rows times the weight of a projection. `tokens`: whose rows they are, ascending, for
        those who compare two runs."""
        y: torch.Tensor = getattr(self, projection)(rows)
        return y


class Experts(nn.Module):
    """All experts of a block: every token times the weights of those that were chosen for it.

    Children `0`, `1`, ... have the layers of projections that are split; a projection that is not
    stays a parameter, under its own name.
    """

    def __init__(self, fused: nn.Module) -> None:
        """Of a module that `why_not` has nothing against, which stays as it is."""
        super().__init__()
        self.transposed = bool(fused.is_transposed)
        self.projections = _projections(fused)
        self.count = len(fused.get_parameter(DOWN))
        # Gate and activation are the model's own; what it multiplies with is not needed there.
        whole = copy.copy(fused)
        whole._parameters = {}
        self._shape = [whole]  # in a list, so that it is no child
        for place in range(self.count):
            self.add_module(str(place), Expert())
        for name, parameter in fused.named_parameters(recurse=False):
            if name in self.projections:
                self._split(name, parameter)
            else:
                self.register_parameter(name, parameter)
        self._number = ops.number(self)
        self._uploaded: dict[str, tuple[Any, GpuExperts]] = {}
        self.train(fused.training)

    def layers(self, projection: str) -> list[nn.Module]:
        """The layers of a split projection, in the experts' order."""
        found: list[nn.Module] = [getattr(expert, projection) for expert in self._experts()]
        return found

    def is_split(self, projection: str) -> bool:
        """Whether a projection has layers."""
        return projection not in self._parameters

    def fuse(self, projection: str, parameter: nn.Parameter) -> None:
        """Puts a parameter in the place of a projection's layers."""
        for expert in self._experts():
            delattr(expert, projection)
        self.register_parameter(projection, parameter)

    def fused(self) -> nn.Module:
        """The module as the model has it; the weights of its dense layers are copied."""
        found = copy.copy(self._shape[0])
        found._parameters = {n: p for n, p in self._parameters.items() if p is not None}
        for name in filter(self.is_split, self.projections):
            weights = torch.stack([layer.weight.detach() for layer in self.layers(name)])
            weights = weights.transpose(1, 2).contiguous() if self.transposed else weights
            found.register_parameter(name, nn.Parameter(weights, requires_grad=False))
        return found.train(self.training)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """`[tokens, hidden]`, the experts of every token and what each counts, `[tokens, top]`."""
        if ops.is_recorded(hidden_states) and self._coded():
            return ops.experts(hidden_states, top_k_index, top_k_weights, self._number)
        return self.mix(hidden_states, top_k_index, top_k_weights)

    def mix(self, x: torch.Tensor, choices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The same, with a gradient where the layers are dense."""
        on_gpu = x.is_cuda and (len(self._uploaded) == len(self.projections) or self.alike())
        found = self.launched(x, choices) if on_gpu else self._one_by_one(x, choices)
        return (found * weights[..., None]).sum(dim=1).to(x.dtype)

    def _one_by_one(self, x: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
        """What every choice gives `[tokens, top, hidden]`; zeros for one that is no expert."""
        flat = choices.reshape(-1)
        flat = torch.where((flat >= 0) & (flat < self.count), flat, self.count)
        counts = torch.bincount(flat, minlength=self.count + 1)[: self.count].tolist()
        at = torch.sort(flat, stable=True).indices[: sum(counts)]  # expert by expert
        tokens, owners = at // choices.shape[1], flat[at]
        rows = x[tokens]
        for projection in self.projections if len(at) else ():
            rows = rows if projection != DOWN else self._gated(rows)
            found = self._products(projection, rows, counts, tokens, len(x))
            rows = self._biased(torch.cat(found), projection, owners)
        y = rows.new_zeros((len(flat), x.shape[1])).index_copy(0, at, rows)
        return y.reshape(*choices.shape, x.shape[1])

    def _products(
        self,
        projection: str,
        rows: torch.Tensor,
        counts: Sequence[int],
        tokens: torch.Tensor,
        of: int,
    ) -> list[torch.Tensor]:
        """Rows times the weights of their experts, which have so many each; of how many tokens."""
        reached = [expert for expert, count in enumerate(counts) if count]
        if of == 1 and projection != DOWN and rows.is_cpu:
            found = self._of_one_token(projection, reached, rows[:1])
            if found is not None:
                return found
        sizes = [counts[expert] for expert in reached]
        parts = zip(reached, rows.split(sizes), tokens.split(sizes), strict=True)
        return [self._times(projection, *part) for part in parts]

    def _of_one_token(
        self, projection: str, experts: Sequence[int], row: torch.Tensor
    ) -> list[torch.Tensor] | None:
        """Products of a row with the weights of several experts, made together: it is rotated and
        rounded once. None where they are not coded, or have no compiled kernel."""
        layers = [getattr(self.get_submodule(str(e)), projection, None) for e in experts]
        coded = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
        if not coded or len(coded) < len(layers):
            return None
        prepared = [layer.prepared() for layer in coded]
        return products(prepared, row) if all(each.kernel.compiled for each in prepared) else None

    def _times(
        self, projection: str, expert: int, rows: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        if self.is_split(projection):
            y: torch.Tensor = self.get_submodule(str(expert))(projection, rows, tokens)
            return y
        weight = self.get_parameter(projection)[expert]
        return nn.functional.linear(rows, weight.T if self.transposed else weight)

    def _biased(self, y: torch.Tensor, projection: str, experts: Any) -> torch.Tensor:
        bias = self._parameters.get(f"{projection}_bias")
        return y if bias is None else y + bias[experts]

    def _gated(self, y: torch.Tensor) -> torch.Tensor:
        whole: Any = self._shape[0]
        found: torch.Tensor = whole._apply_gate(y) if whole.has_gate else whole.act_fn(y)
        return found

    def alike(self) -> bool:
        """Whether the grouped kernels of a GPU fit: all coded, each projection in one format."""
        return all(
            self.is_split(name)
            and len({getattr(layer, "format", None) for layer in self.layers(name)}) == 1
            and isinstance(self.layers(name)[0], QuantizedLinear)
            for name in self.projections
        )

    def on_gpu(self, projection: str, processor: Processor | None = None) -> GpuExperts:
        """A projection as its GPU's kernels read it, made at first use and after the module was
        moved, loaded into or told other activations; edits of single buffers are not seen."""
        from unspool.model.gpu_experts import GpuExperts
        from unspool.model.processors import processor as opened

        first: Any = getattr(self.get_submodule("0"), projection)
        told, found = first.gpu_activations, self._uploaded.get(projection)
        if found is None or found[0] != told:
            by = processor or opened(first.weight_codes.device.index or 0)
            matrices = [layer.matrix() for layer in self.layers(projection)]
            made = GpuExperts(matrices, by, activations=told)
            found = self._uploaded[projection] = told, made
        return found[1]

    def launched(self, x: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
        """`_one_by_one` in two launches of grouped kernels.

        Compiled, counted, simulated; not run on a GPU.
        """
        rows, of_rows = x, choices
        known = choices.clamp(0, self.count - 1).reshape(-1)
        for projection in self.projections:
            if projection == DOWN:
                rows, of_rows = self._gated(rows), choices.reshape(-1, 1)
            rows = self.on_gpu(projection).multiply(rows, of_rows).flatten(0, 1)
            rows = self._biased(rows, projection, known)
        legal = (choices >= 0) & (choices < self.count)
        return rows.reshape(*choices.shape, rows.shape[1]) * legal[..., None].to(rows.dtype)

    def _experts(self) -> Iterator[nn.Module]:
        return (self.get_submodule(str(place)) for place in range(self.count))

    def _coded(self) -> bool:
        first = self.get_submodule("0")
        return any(isinstance(layer, QuantizedLinear) for layer in first.children())

    def _apply(self, *arguments: Any, **options: Any) -> Experts:
        self._uploaded.clear()
        return super()._apply(*arguments, **options)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._uploaded.clear()
        super()._load_from_state_dict(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Copies upload their own."""
        return {**self.__dict__, "_uploaded": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = ops.number(self)

    def extra_repr(self) -> str:
        """How many there are."""
        return f"experts={self.count}"

    def _split(self, projection: str, parameter: nn.Parameter) -> None:
        for expert, part in zip(self._experts(), parameter.detach(), strict=True):
            weight = part.T if self.transposed else part
            n, k = weight.shape
            layer = nn.Linear(k, n, bias=False, device="meta")
            layer.weight = nn.Parameter(weight, requires_grad=False)
            expert.add_module(projection, layer)


def why_not(module: nn.Module) -> str | None:
    """What keeps a module of fused experts from being split; None if nothing does."""
    if any(not hasattr(module, name) for name in DECLARED):
        return "its layout is not declared"
    if module.has_post_expert_norm:
        return "it normalises what its experts give"
    names = _projections(module)
    known = {*names, *(f"{name}_bias" for name in names if module.has_bias)}
    if {name for name, _ in module.named_parameters()} != known:
        return "it has other parameters"
    if any(True for _ in module.buffers()):
        return "it has buffers"
    return None


def split_experts(model: nn.Module) -> dict[str, nn.Module]:
    """Splits all fused experts that can be, in place; the modules as they were, by name.

    Weights become views: as long as one of a parameter is kept, all of it stays in memory.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if name and fused_parameters(module) and why_not(module) is None
    }
    for name, module in found.items():
        model.set_submodule(name, Experts(module))
    return found


def settle_experts(
    model: nn.Module, originals: Mapping[str, nn.Module], chosen: Collection[str]
) -> None:
    """Fuses again what `split_experts` split, but for projections whose layers are all chosen.

    Raises ModelError where some of a projection are chosen and others not.
    """
    check_whole(chosen, [n for name in originals for n in _layer_names(model, name)])
    for name, original in originals.items():
        experts = model.get_submodule(name)
        assert isinstance(experts, Experts)
        kept = [p for p in experts.projections if f"{name}.0.{p}" not in chosen]
        if len(kept) == len(experts.projections):
            model.set_submodule(name, original)
            continue
        for projection in kept:
            experts.fuse(projection, original.get_parameter(projection))


def check_whole(chosen: Collection[str], layers: Sequence[str]) -> None:
    """Raises ModelError where some experts' layers of a projection are chosen and others not."""
    of_projection: dict[str, list[bool]] = {}
    wanted = set(chosen)
    for layer in layers:
        projection = projection_of(layer)
        if projection is not None:
            of_projection.setdefault(projection, []).append(layer in wanted)
    for projection, found in of_projection.items():
        if any(found) and not all(found):
            raise ModelError(
                "the experts of a projection are quantized together",
                where=projection,
                found=f"{sum(found)} of {len(found)} chosen",
                allowed="all or none",
            )


def fused_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """A module's own parameters that look like weights of all its experts."""
    if isinstance(module, Experts):
        return []
    return [(n, p) for n, p in module.named_parameters(recurse=False) if p.ndim == 3]


def _projections(fused: nn.Module) -> tuple[str, str]:
    return ("gate_up_proj" if fused.has_gate else "up_proj", DOWN)


def _layer_names(model: nn.Module, name: str) -> list[str]:
    experts = model.get_submodule(name)
    assert isinstance(experts, Experts)
    return [f"{name}.{e}.{p}" for p in experts.projections for e in range(experts.count)]
