"""Save a quantized Hugging Face model as a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unspool.checkpoint.card import model_card
from unspool.checkpoint.manifest import Manifest, of_model
from unspool.checkpoint.write import MAX_SHARD_BYTES, Payload, check_output, write_checkpoint
from unspool.errors import CheckpointError
from unspool.model.load import locate, original_state

if TYPE_CHECKING:
    import torch

#: what is copied from the original model's folder: tokenizer, chat template, generation settings,
#: licences. No Python, no weights.
COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "chat_template.jinja", "chat_template.json", "generation_config.json",
    "preprocessor_config.json", "processor_config.json",
    "LICENSE*", "NOTICE*", "COPYING*",
)  # fmt: skip


def save(
    model: Any,
    folder: str | Path,
    *,
    source: str | Path | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    made: str = "",
) -> Path:
    """Writes a quantized model; `source` is the original (folder or hub id), for tokenizer and
    licences; `made`, a sentence on how it was quantized, for the model card.

    Raises CheckpointError where no layer is quantized, the output exists or space runs out; then
    nothing is left behind.
    """
    folder = check_output(folder, overwrite=overwrite)
    if not hasattr(model, "save_pretrained"):
        raise CheckpointError(
            "only Hugging Face models are saved as checkpoints",
            found=type(model).__name__,
            allowed="a PreTrainedModel; of others keep the state_dict",
        )
    manifest = of_model(model)
    tensors = payloads(model)
    files = copied_files(locate(source)) if source is not None else {}
    if "generation_config.json" not in files and getattr(model, "generation_config", None):
        files["generation_config.json"] = _generation(model)
    files["README.md"] = model_card(manifest, tensors, source, made).encode()
    return write_checkpoint(
        folder,
        configuration(model, manifest),
        tensors,
        files,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
    )


def configuration(model: Any, manifest: Manifest) -> dict[str, Any]:
    """The model's configuration with the manifest in it."""
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    config["quantization_config"] = manifest.to_json()
    return config


def payloads(model: Any) -> dict[str, Payload]:
    """The model's tensors under the names of the original checkpoint, tied ones once."""
    state = original_state(model)
    return {name: _payload(name, state[name]) for name in sorted(state)}


def copied_files(source: Path) -> dict[str, bytes]:
    """The small files of the original model's folder that a checkpoint keeps.

    Raises CheckpointError where one cannot be read.
    """
    found = {path for pattern in COPIED for path in source.glob(pattern) if path.is_file()}
    try:
        return {path.name: path.read_bytes() for path in sorted(found)}
    except OSError as error:
        raise CheckpointError(
            "cannot be read", where=str(error.filename), found=error.strerror
        ) from error


def _payload(name: str, tensor: torch.Tensor) -> Payload:
    if tensor.device.type == "meta":
        raise CheckpointError("a tensor is not loaded", where=name, found="device meta")
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in _DTYPES:
        raise CheckpointError("a tensor has an unknown type", where=name, found=kind)

    def read() -> np.ndarray:
        import torch

        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy()

    return Payload(dtype=_DTYPES[kind], shape=tuple(tensor.shape), read=read)


def _generation(model: Any) -> bytes:
    text: str = model.generation_config.to_json_string()
    return text.encode()


_DTYPES: Mapping[str, str] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
