"""Hugging Face models from a folder or a hub id: safetensors only, and never code from files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspool.errors import CheckpointError, ModelError, UnspoolError
from unspool.model.shards import CONFIG, read_folder, read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUANT_METHOD = "unspool"
"""What `quantization_config` in a checkpoint's configuration calls us."""

MISSING = ("missing_keys", "mismatched_keys")
"""Problems that leave weights random, as transformers reports them; tied tensors are not missing.
Tensors that the model does not read are common in models of others."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
#: what a hub download takes: no pickles, no Python
_DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")


def load_model(source: str | Path, *, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
    """A causal language model on the CPU, in evaluation mode; `dtype="auto"` is the stored one.

    Raises ModelError for a missing path, a folder that is no model, weights that are truncated,
    missing, of another shape or no safetensors, and a model that needs code of its own.
    """
    return whole_model(_dense_folder(source), dtype, ModelError, MISSING)


def whole_model(
    folder: Path, dtype: str | torch.dtype, error: type[UnspoolError], problems: Sequence[str]
) -> PreTrainedModel:
    """The causal model of a checked folder; raises `error` where transformers reports a problem."""
    from transformers import AutoModelForCausalLM

    with explained(folder, error):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    for problem in problems:
        # A mismatched key comes with its two shapes.
        keys = sorted(key if isinstance(key, str) else key[0] for key in info.get(problem) or ())
        if keys:
            raise error(
                f"the tensors are not those of the model: {problem.replace('_', ' ')}",
                where=str(folder),
                found=keys[:4],
            )
    return model.eval()


@contextmanager
def explained(source: str | Path, error: type[UnspoolError]) -> Iterator[None]:
    """Raises `error` for all that transformers raises where a configuration makes no sense."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (
        *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
        *(OSError, RuntimeError, StrictDataclassError, SafetensorError),
    ) as found:
        raise error(
            "not a model that can be loaded",
            where=str(source),
            found=str(found).strip() or type(found).__name__,
        ) from found


def empty_model(source: str | Path) -> PreTrainedModel:
    """The same model without its weights and with its experts split: shapes and types on the meta
    device, for planning."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from unspool.model.experts import split_experts

    folder = _dense_folder(source)
    with explained(folder, ModelError):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    split_experts(model)
    return model


def unfilled_model(source: str | Path) -> PreTrainedModel:
    """The same with its buffers (rotary frequencies and the like) computed, parameters on meta."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = _dense_folder(source)
    with explained(folder, ModelError), _parameters_on_meta():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, dtype=config.dtype).eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside keep no memory for parameters, only for buffers."""
    from torch import nn

    register = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            empty = nn.Parameter(parameter.to("meta"), requires_grad=False)
            module._parameters[name] = empty

    nn.Module.register_parameter = without_memory
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer stored beside a model or a checkpoint; raises ModelError."""
    from transformers import AutoTokenizer

    folder = locate(source)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError("no tokenizer", where=str(source), found=str(error)) from error


def original_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's tensors under the names of its original checkpoint, tied ones once.

    Fused experts go back to one tensor per expert, renamed modules to their old names; quantized
    layers keep the names they have in the model, by which the manifest knows them.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    from unspool.model.linear import QuantizedLinear

    state = remove_tied_weights_from_state_dict(dict(model.state_dict()), model)
    layers = {n for n, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    ours = {name: t for name, t in state.items() if name.rpartition(".")[0] in layers}
    others = {name: t for name, t in state.items() if name not in ours}
    return {**revert_weight_conversion(model, others), **ours}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The stored tensors that some parameters of a model are made of.

    names       in their order
    parameters  all that are made of them
    make        the parameters by name, from a function that reads a stored tensor
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    make: Callable[[Callable[[str], torch.Tensor]], dict[str, torch.Tensor]]


def sources(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Source]:
    """Where every parameter of a model comes from among stored tensors of those names, as
    transformers renames and converts them: experts stored one by one become one parameter."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms, known = get_model_conversion_mapping(model), model.state_dict()
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    of_target: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, known
        )
        if target not in known and name in known:
            target, pattern = name, None
        of_target.setdefault(target, []).append((name, pattern))
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    found: dict[str, Source] = {}
    for target, parts in of_target.items():
        made = _source(model, target, parts, by_pattern)
        found |= dict.fromkeys(made.parameters, made)
    return found


def _source(
    model: PreTrainedModel,
    target: str,
    parts: Sequence[tuple[str, str | None]],
    by_pattern: Mapping[str | None, Any],
) -> Source:
    """Of the first parameter that a converter makes of stored tensors, each matched by a pattern;
    without a pattern of the one that has another name."""
    names = tuple(name for name, _ in parts)
    converter = by_pattern.get(parts[0][1])
    if converter is None:
        return Source(names=names, parameters=(target,), make=lambda read: {target: read(names[0])})
    first, *others = converter.target_patterns

    def make(read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        own = deepcopy(converter)
        for name, pattern in parts:
            own.add_tensor(target, name, pattern, partial(read, name))
        made = own.convert(target, model=model, config=model.config)
        return {n: t[0] if isinstance(t, list) else t for n, t in made.items()}

    every = (target, *(target.replace(first, other) for other in others))
    return Source(names=names, parameters=every, make=make)


def locate(source: str | Path) -> Path:
    """The folder of a model: the path itself, or where a hub id was downloaded to."""
    path = Path(source)
    try:
        if path.is_dir():
            return path
        exists = path.exists()
    except OSError as error:  # a path too long, or of a folder that may not be entered
        raise ModelError("cannot be read", where=str(source), found=error.strerror) from error
    if exists:
        raise ModelError("not a folder", where=str(source), allowed="a model's folder or a hub id")
    if not _HUB_ID.fullmatch(str(source)) or str(source).count("/") != 1:
        raise ModelError("no such folder", where=str(source))
    return _download(str(source))


def check_folder(folder: Path) -> dict[str, Any]:
    """The configuration of a model's folder; raises ModelError unless it can be loaded safely, and
    CheckpointError for tensors of a checkpoint of ours that are not whole."""
    if not (folder / CONFIG).is_file():
        raise ModelError("not a model", where=str(folder), found=f"no {CONFIG}")
    config = read_json(folder / CONFIG, ModelError)
    if "auto_map" in config:
        raise ModelError(
            "the model needs Python code from its own folder, which is never run",
            where=str(folder / CONFIG),
            found="auto_map",
        )
    if "model_type" not in config:
        raise ModelError("not a model", where=str(folder / CONFIG), found="no model_type")
    if not any(folder.glob("*.safetensors*")) and any(folder.glob("*.bin")):
        raise ModelError(
            "the weights are pickles, which can run code", where=str(folder), allowed="safetensors"
        )
    read_folder(folder, CheckpointError if is_checkpoint(config) else ModelError)
    return config


def is_checkpoint(config: dict[str, Any]) -> bool:
    """Whether a configuration is that of a checkpoint of ours."""
    declared = config.get("quantization_config")
    return isinstance(declared, dict) and declared.get("quant_method") == QUANT_METHOD


def _dense_folder(source: str | Path) -> Path:
    """The checked folder of a model that is not quantized by us; raises ModelError."""
    folder = locate(source)
    if is_checkpoint(check_folder(folder)):
        raise ModelError("quantized already", where=str(source), allowed="unspool.load reads it")
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*_DOWNLOADED], ignore_patterns="*/*"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            "neither a folder nor a model on the hub", where=name, found=first
        ) from error
