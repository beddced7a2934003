"""Trains the bundled model again from PSF-licensed text: documentation and standard library.

    python examples/train_demo_model.py --docs DOCS --stdlib LIB --out FOLDER

DOCS holds Python 3.11's reStructuredText (`Doc/` of its source, or `_sources/` of its built pages),
LIB the `.py` files of its standard library. 3,200 steps, 13 M tokens, reach about 3.1 nats per
held-out token: minutes on a GPU, hours on two cores. The split never changes with the steps.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
VOCABULARY = 4096
HELD_OUT_PERIOD, HELD_OUT_PHASE = 20, 7
DOCS_SHARE = 0.72
"""Of the batches; the standard library has the rest."""
PEAK_RATE = 2.5e-3
CALIBRATION_CHARACTERS, CALIBRATION_PER_FILE = 500_000, 24_000
NOT_THE_LIBRARY = {"site-packages", "test", "tests", "__pycache__"}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """One string per file."""

    docs: list[str]
    heldout: list[str]
    stdlib: list[str]


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line, trains, and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, required=True, help="folder of .rst or .rst.txt files")
    parser.add_argument("--stdlib", type=Path, required=True, help="folder of .py files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=8, help="windows per step")
    parser.add_argument("--window", type=int, default=512, help="tokens per window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True)
    random.seed(options.seed)
    torch.manual_seed(options.seed)

    texts = read_texts(options.docs, options.stdlib)
    tokenizer = train_tokenizer(texts)
    batches = draw_batches(texts, tokenizer, options.batch, options.window)
    model = LlamaForCausalLM(model_config()).to(pick_device(options.device))
    train(model, batches, options.steps)
    loss = heldout_loss(model, tokenize(tokenizer, texts.heldout), options.window)
    print(f"held out: {loss:.4f} nats per token, windows of {options.window}")
    write(options.out, model, tokenizer, texts)


def read_texts(docs: Path, stdlib: Path) -> Texts:
    """Every 20th documentation file, from the eighth in sorted order, is held out."""
    pages = sorted(p for p in docs.rglob("*") if p.name.endswith((".rst", ".rst.txt")))
    pages = [page for page in pages if not page.name.startswith("changelog.")]
    sources = [
        source
        for source in sorted(stdlib.rglob("*.py"))
        if not NOT_THE_LIBRARY & set(source.relative_to(stdlib).parts)
    ]
    held = set(pages[HELD_OUT_PHASE::HELD_OUT_PERIOD])
    if not held or not sources:
        raise SystemExit(f"too little text: {len(pages)} .rst files, {len(sources)} .py files")
    return Texts(
        docs=[_text(page) for page in pages if page not in held],
        heldout=[_text(page) for page in pages if page in held],
        stdlib=[_text(source) for source in sources],
    )


def train_tokenizer(texts: Texts) -> Tokenizer:
    """A byte-level BPE of the training part: any text is encodable, the held-out part unseen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts.docs + texts.stdlib, trainer)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """All texts in one row of tokens, int64 [tokens], END after each."""
    end = tokenizer.token_to_id(END)
    encoded = tokenizer.encode_batch(texts)
    return torch.tensor([token for text in encoded for token in (*text.ids, end)])


def draw_batches(
    texts: Texts, tokenizer: Tokenizer, batch: int, window: int
) -> Iterator[torch.Tensor]:
    """Endless batches [batch, window], each of one source, windows at random places."""
    docs, stdlib = tokenize(tokenizer, texts.docs), tokenize(tokenizer, texts.stdlib)
    while True:
        tokens = docs if random.random() < DOCS_SHARE else stdlib
        starts = torch.randint(len(tokens) - window + 1, (batch, 1))
        yield tokens[starts + torch.arange(window)]


def model_config() -> LlamaConfig:
    """The bundled model's: every quantized layer has sizes that are multiples of 64."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def train(model: LlamaForCausalLM, batches: Iterator[torch.Tensor], steps: int) -> None:
    """AdamW, the rate falling linearly to zero; float32 weights, bfloat16 products on a GPU."""
    device = model.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        batch = next(batches).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:6d}  loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, tokens: torch.Tensor, window: int) -> float:
    """Nats per predicted token over non-overlapping windows; a shorter rest is left out."""
    model.eval()
    windows = tokens[: len(tokens) // window * window].view(-1, window).to(model.device)
    losses = [model(row[None], labels=row[None]).loss.item() for row in windows]
    return sum(losses) / len(losses) if losses else float("nan")


def write(out: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, texts: Texts) -> None:
    """A folder as Hugging Face reads it, with the two texts beside the model."""
    model.to(torch.bfloat16).save_pretrained(out)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=1024
    )
    wrapped.save_pretrained(out)
    (out / "heldout.txt").write_text("\n\n".join(texts.heldout), encoding="utf-8")
    (out / "calibration.txt").write_text(calibration(texts), encoding="utf-8")


def calibration(texts: Texts) -> str:
    """Half a megabyte of training documentation in random order, no file with a lion's share."""
    parts: list[str] = []
    for text in random.sample(texts.docs, len(texts.docs)):
        if sum(map(len, parts)) >= CALIBRATION_CHARACTERS:
            break
        parts.append(text[:CALIBRATION_PER_FILE])
    return "\n\n".join(parts)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


if __name__ == "__main__":
    main()
