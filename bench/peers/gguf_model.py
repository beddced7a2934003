"""A GGUF of a Llama of given sizes with random weights, for llama.cpp to be timed on.

Runs in llama.cpp's environment: `python -m peers.gguf_model --sizes JSON --type Q2_K --head Q4_K
--out FILE`. Every matrix has the type asked for; embedding and output head are one tensor, of the
type of `--head`. There is no vocabulary, only its size.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np

from peers.ggml_library import TYPES, Ggml, quantized_rows

SIGMA = 0.02
"""Standard deviation of the weights, as models are initialized."""


def matrices(sizes: Mapping[str, int]) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of the matrices of one layer."""
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    queries = sizes["num_attention_heads"] * sizes["head_dim"]
    keys = sizes["num_key_value_heads"] * sizes["head_dim"]
    yield "attn_q", queries, hidden
    yield "attn_k", keys, hidden
    yield "attn_v", keys, hidden
    yield "attn_output", hidden, queries
    yield "ffn_gate", inner, hidden
    yield "ffn_up", inner, hidden
    yield "ffn_down", hidden, inner


def write(path: Path, sizes: Mapping[str, int], kind: str, head: str, ggml: Ggml) -> None:
    """Writes the file."""
    writer = gguf.GGUFWriter(path, "llama")
    describe(writer, sizes)
    hidden, norm = sizes["hidden_size"], np.ones(sizes["hidden_size"], np.float32)

    def put(name: str, type_name: str, n: int, k: int) -> None:
        rows = quantized_rows(ggml, type_name, n, k, sigma=SIGMA)
        writer.add_tensor(f"{name}.weight", rows, raw_dtype=TYPES[type_name])

    put("token_embd", head, sizes["vocab_size"], hidden)
    writer.add_tensor("output_norm.weight", norm)
    for layer in range(sizes["num_hidden_layers"]):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm)
        for name, n, k in matrices(sizes):
            put(f"blk.{layer}.{name}", kind, n, k)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: gguf.GGUFWriter, sizes: Mapping[str, int]) -> None:
    """Sizes and settings."""
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_rope_dimension_count(sizes["head_dim"])
    writer.add_rope_freq_base(sizes["rope_theta"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(sizes["vocab_size"])
    writer.add_tokenizer_model("none")


def library() -> Ggml:
    """The ggml that llama-cpp-python was built with."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise SystemExit("llama-cpp-python is not installed in this environment")
    return Ggml(Path(found.origin).parent)


def main() -> None:
    """Reads the options and writes the file."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sizes", type=json.loads, required=True)
    options.add_argument("--type", required=True, choices=TYPES)
    options.add_argument("--head", required=True, choices=TYPES)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    partial = given.out.with_suffix(".partial")
    write(partial, given.sizes, given.type, given.head, library())
    partial.rename(given.out)


if __name__ == "__main__":
    main()
