"""Hugging Face transformers: importing this module registers the format; then

    AutoModelForCausalLM.from_pretrained(path)

loads a checkpoint. transformers has no plugin discovery: without this import it warns of an unknown
quantization type and returns a model of random weights. `unspool.load` needs no import beside its
own, and verifies the whole checkpoint first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from unspool.checkpoint import manifest as manifests
from unspool.checkpoint.manifest import Layer, Manifest
from unspool.checkpoint.read import open_checkpoint
from unspool.errors import CheckpointError
from unspool.matmul.choose import check_activations
from unspool.matmul.cuda.recipe import check_activations as check_gpu_activations
from unspool.model import swap
from unspool.model.experts import Experts, settle_experts, split_experts
from unspool.model.linear import QuantizedLinear
from unspool.model.load import (
    MISSING,
    QUANT_METHOD,
    check_folder,
    is_checkpoint,
    load_model,
    locate,
    whole_model,
)
from unspool.model.mixed import Mixed
from unspool.model.siblings import join_siblings
from unspool.model.swap import Report
from unspool.pack.matrix import check_arrays
from unspool.spec.format import Format


class UnspoolConfig(QuantizationConfigMixin):
    """`quantization_config` of a checkpoint. Passed to `from_pretrained`,
    `UnspoolConfig(dequantize=True)` turns every quantized layer into a dense `nn.Linear` after
    loading, and `UnspoolConfig(activations="float32")` keeps products from rounding theirs, on a
    CPU; `gpu_activations` says what they are on a GPU (`load`)."""

    def __init__(
        self,
        *,
        dequantize: bool = False,
        activations: str = "auto",
        gpu_activations: str = "auto",
        **declared: Any,
    ) -> None:
        self.quant_method = QUANT_METHOD
        check_activations(activations)
        check_gpu_activations(gpu_activations)
        self.dequantize, self.activations = dequantize, activations
        self.gpu_activations = gpu_activations
        declared.setdefault("quant_method", QUANT_METHOD)
        self.manifest = manifests.parse(declared) if len(declared) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        if self.manifest is None:
            return {"quant_method": QUANT_METHOD, **self.get_loading_attributes()}
        return self.manifest.to_json()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def get_loading_attributes(self) -> dict[str, Any]:
        """What `from_pretrained(quantization_config=...)` may change about a checkpoint."""
        return {
            "dequantize": self.dequantize,
            "activations": self.activations,
            "gpu_activations": self.gpu_activations,
        }


class UnspoolQuantizer(HfQuantizer):
    """Swaps in quantized layers on the meta device before the weights are loaded."""

    #: quantize first (`unspool.quantize`): from_pretrained refuses to do so while loading
    requires_calibration = True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        layers = {
            inside: layer
            for name, layer in _manifest_of(self).layers.items()
            if (inside := _name_inside(model, name)) is not None
        }
        fused = split_experts(model)
        for inside, layer in layers.items():
            model.set_submodule(inside, _empty(model, inside, layer))
        settle_experts(model, fused, layers)

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        _check_numbers(model)
        if self.quantization_config.dequantize:
            self._dequantize(model, dtype=model.dtype)
        config = self.quantization_config
        set_activations(model, config.activations, config.gpu_activations)
        join_siblings(model)
        return model

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """Dense layers in place of the quantized ones, one at a time."""
        names = [n for n, module in model.named_modules() if isinstance(module, QuantizedLinear)]
        for name in names:
            model.set_submodule(name, _dense(model.get_submodule(name), dtype or model.dtype))
        for name in [n for n, module in model.named_modules() if isinstance(module, Experts)]:
            model.set_submodule(name, model.get_submodule(name).fused())
        return model

    def is_serializable(self) -> bool:
        """`save_pretrained` writes the same checkpoint again, for transformers; where it renames a
        layer's module (Mixtral's), only `unspool.save` writes what `unspool.load` reads."""
        return True

    @property
    def is_trainable(self) -> bool:
        """No gradient flows through the quantized layers."""
        return False


def load(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    activations: str = "auto",
    gpu_activations: str = "auto",
) -> PreTrainedModel:
    """A causal language model on the CPU, in evaluation mode: a checkpoint of ours, verified in
    full, or any other Hugging Face model as it is.

    `activations` is what quantized layers round theirs to: "float32", "bf16", "int8", or "auto" for
    int8 where the weights are exact in it (`matmul.choose`); `gpu_activations` once they are moved
    to a GPU: "fp8x2", "fp8x3" (sums of FP8 terms), "fp8", "fp4", "int8", "float16", or "auto".

    Raises CheckpointError and ModelError; never returns a model with weights missing.
    """
    check_activations(activations)
    check_gpu_activations(gpu_activations)
    folder = locate(path)
    if not is_checkpoint(check_folder(folder)):
        return load_model(folder, dtype=dtype)
    open_checkpoint(folder)  # headers against the manifest; the numbers are checked once loaded
    model = whole_model(folder, dtype, CheckpointError, (*MISSING, "unexpected_keys"))
    set_activations(model, activations, gpu_activations)
    return model


def set_activations(model: nn.Module, activations: str, gpu_activations: str = "auto") -> None:
    """Makes all quantized layers round their activations so; raises UnspoolError where one has no
    such product on this CPU."""
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            if layer.activations != activations:
                layer.activations = activations
            layer.gpu_activations = gpu_activations


def quantize(model: nn.Module, fmt: Format | str | Mixed, **options: Any) -> Report:
    """Quantizes the linear layers of a PyTorch model in place; returns the table of layers.

    Options are those of `model.swap.quantize`: include, exclude, head, strict, threads, progress,
    calibration, device and others.
    A Hugging Face model's configuration learns of it, so that `save_pretrained` works as well.
    """
    report = swap.quantize(model, fmt, **options)
    if hasattr(model, "config"):
        model.config.quantization_config = manifests.of_model(model).to_json()
    return report


def register() -> None:
    """Makes the format known to transformers; called by the import, harmless when repeated."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = UnspoolConfig
    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = UnspoolQuantizer
    # Only classes in this tuple may change loading attributes (`dequantize`) of a checkpoint.
    if UnspoolConfig not in auto.LOADING_ATTRIBUTES_CONFIG_TYPES:
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES += (UnspoolConfig,)


def _manifest_of(quantizer: UnspoolQuantizer) -> Manifest:
    found = quantizer.quantization_config.manifest
    if not isinstance(found, Manifest):
        raise CheckpointError("the quantization_config declares no layers")
    return found


def _name_inside(model: PreTrainedModel, name: str) -> str | None:
    """The layer's name in this model: the base model alone lacks the prefix and the head."""
    prefix = f"{model.base_model_prefix}."
    is_base = model.base_model is model
    if is_base and not name.startswith(prefix):
        return None
    return name.removeprefix(prefix) if is_base else name


def _empty(model: PreTrainedModel, name: str, layer: Layer) -> QuantizedLinear:
    """An empty quantized layer for the linear layer of that name."""
    try:
        linear = model.get_submodule(name)
    except AttributeError:
        linear = None
    if not isinstance(linear, nn.Linear) or tuple(linear.weight.shape) != layer.shape:
        raise CheckpointError(
            "the model has no such linear layer",
            where=name,
            found=linear if linear is None else str(linear),
            allowed=f"[{layer.shape[0]}, {layer.shape[1]}]",
        )
    n, k = layer.shape
    bias, device = linear.bias, linear.weight.device
    dtype = None if bias is None else bias.dtype
    return QuantizedLinear(layer.format, k, n, bias=bias is not None, device=device, dtype=dtype)


def _check_numbers(model: PreTrainedModel) -> None:
    """Raises CheckpointError for a code, scale or table that is no finite number.

    Layers elsewhere than on the CPU, which nothing can run so far, are not looked at.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear) and layer.weight_codes.device.type == "cpu":
            shape = (layer.out_features, layer.in_features)
            check_arrays(layer.format, shape, layer.matrix().arrays, name)


def _dense(layer: nn.Module, dtype: torch.dtype) -> nn.Linear:
    assert isinstance(layer, QuantizedLinear)
    n, k = layer.out_features, layer.in_features
    dense = nn.Linear(k, n, bias=layer.bias is not None, device="meta", dtype=dtype)
    dense.weight = nn.Parameter(layer.decode().to(dtype), requires_grad=False)
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
    return dense


register()
