"""The model card of a checkpoint: what it is, how to load it, what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unspool.checkpoint.manifest import Manifest
from unspool.checkpoint.write import Payload

_CARD = """\
---
library_name: transformers
tags: [unspool, quantized]
---

# {title}

Weights of {count} linear layers quantized with unspool {version}, {bits:.3f} bits per weight with
all overheads; {total:,} bytes in all.{made}

```python
import unspool

model, tokenizer = unspool.load("PATH"), unspool.load_tokenizer("PATH")
```

or, with transformers alone (the import comes first: it registers the format, without it
transformers would warn and fill the layers with random weights):

```python
import unspool.integrations.transformers
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH")
```

| format | layers | operand | bits per weight of the code |
|---|---|---|---|
{rows}

The full declaration of every format is in `config.json` under `quantization_config`.
"""


def model_card(
    manifest: Manifest,
    tensors: Mapping[str, Payload],
    source: str | Path | None = None,
    made: str = "",
) -> str:
    """README.md of a checkpoint; `source` names the original, its last part only; `made` is a
    sentence on how it was quantized."""
    layers = manifest.layers
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers.values())
    stored = sum(layer.format.stored_bits(*layer.shape) for layer in layers.values())
    return _CARD.format(
        title=f"{Path(source).resolve().name}, quantized" if source else "A quantized model",
        count=len(layers),
        version=manifest.version,
        bits=stored / weights,
        made=f"\n\n{made}" if made else "",
        total=sum(tensor.nbytes for tensor in tensors.values()),
        rows="\n".join(_row(manifest, name) for name in manifest.formats),
    )


def _row(manifest: Manifest, name: str) -> str:
    fmt = manifest.formats[name]
    count = sum(layer.format.name == name for layer in manifest.layers.values())
    return f"| {name} | {count} | {fmt.code.operand.name} | {fmt.code.bits_per_weight:g} |"
