"""A whole model: tokens per second, time to the first token, memory; llama.cpp beside.

`python bench/model.py [--json [FILE]] [--llama-python FILE] ...`. A Llama of Llama-3.2-1B's sizes
with random weights, its linear layers at few bits, the output head at 4.25 to 4.5. Every subject
runs in a process of its own (model_process.py, peers/llama_process.py); processes take turns. The
models are made once, in the folder `--work`. peers/README.md says how to get llama.cpp.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timing import HERE, facts, parser, write

from unspool.cli.terminal import say

SIZES: Mapping[str, Any] = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256,
    "max_position_embeddings": 131072, "rope_theta": 500000.0,
}  # fmt: skip
"""Llama-3.2-1B."""

LLAMA_HEAD = "Q4_K"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model file and the processes that make and measure it."""

    name: str
    head: str
    path: Path
    make: Sequence[str]
    measure: Sequence[str]
    environment: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights' files."""
        return sum(file.stat().st_size for file in weights(self.path))


def weights(path: Path) -> list[Path]:
    """The files that hold weights."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def ours(given: Any) -> list[Subject]:
    """A checkpoint for each format."""
    script = [sys.executable, str(HERE / "model_process.py")]
    found = []
    for name in given.formats:
        path = given.work / f"unspool-{name}-{given.head}-{digest()}"
        kind = ["--format", name, "--head", given.head, "--threads", str(given.threads)]
        found.append(
            Subject(
                name=f"unspool {name}",
                head=given.head,
                path=path,
                make=[*script, str(path), "--make", json.dumps(SIZES), *kind],
                measure=[*script, str(path), *amounts(given)],
                environment=dict(os.environ),
            )
        )
    return found


def peers(given: Any) -> list[Subject]:
    """A GGUF for each of llama.cpp's types, where its Python is given."""
    if given.llama_python is None:
        return []
    python = str(given.llama_python)
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    found = []
    for name in given.llama_types:
        path = given.work / f"llama-{name}-{LLAMA_HEAD}-{digest()}.gguf"
        kind = ["--sizes", json.dumps(SIZES), "--type", name, "--head", LLAMA_HEAD]
        found.append(
            Subject(
                name=f"llama.cpp {name}",
                head=LLAMA_HEAD,
                path=path,
                make=[python, "-m", "peers.gguf_model", *kind, "--out", str(path)],
                measure=[python, "-m", "peers.llama_process", str(path), *amounts(given)],
                environment={**alone, "PYTHONPATH": str(HERE)},
            )
        )
    return found


def digest() -> str:
    """A short name of the sizes, so that files of other sizes are not taken for these."""
    return f"{SIZES['num_hidden_layers']}x{SIZES['hidden_size']}"


def amounts(given: Any) -> list[str]:
    """What a process measures."""
    prompts = map(str, given.prompts)
    counts = {"--threads": given.threads, "--tokens": given.tokens, "--repeats": given.repeats}
    return ["--prompts", *prompts, *(str(word) for pair in counts.items() for word in pair)]


def output(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a process prints; its own messages are shown where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(command[:4])} ... failed ({done.returncode})")
    return done.stdout


def measure(subjects: Sequence[Subject], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What every subject's processes printed; subjects take turns."""
    found: dict[str, list[dict[str, Any]]] = {subject.name: [] for subject in subjects}
    for turn in range(rounds):
        for subject in subjects:
            say(f"round {turn + 1} of {rounds}: {subject.name}")
            found[subject.name].append(json.loads(output(subject.measure, subject.environment)))
    return found


def row(subject: Subject, threads: int, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of one subject: medians, extremes and quartiles over all its processes."""
    steps = [seconds for run in runs for seconds in run["token_seconds"]]
    slow, _, quick = statistics.quantiles(sorted(steps, reverse=True), n=4)
    found: dict[str, Any] = {
        "model": subject.name,
        "head": subject.head,
        "threads": threads,
        "file_bytes": subject.nbytes,
        "tokens_per_second": round(1 / statistics.median(steps), 3),
        "tokens_per_second_low": round(1 / max(steps), 3),
        "tokens_per_second_high": round(1 / min(steps), 3),
        "tokens_per_second_quarter": round(1 / max(slow, quick), 3),
        "tokens_per_second_three_quarters": round(1 / min(slow, quick), 3),
    }
    for length in runs[0]["first_token_seconds"]:
        first = [seconds for run in runs for seconds in run["first_token_seconds"][length]]
        found[f"first_token_seconds_{length}"] = round(statistics.median(first), 4)
        found[f"first_token_seconds_{length}_low"] = round(min(first), 4)
        found[f"first_token_seconds_{length}_high"] = round(max(first), 4)
    return found | growth(runs) | inside(runs)


def growth(runs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Bytes that a process grew by since its imports: loaded, at the end, and at most."""
    grown = {
        "memory_loaded_bytes": ("loaded", "resident"),
        "memory_bytes": ("after", "resident"),
        "memory_share_bytes": ("after", "share"),
        "memory_peak_bytes": ("after", "peak"),
    }
    found = {}
    for name, (when, what) in grown.items():
        start = "share" if what == "share" else "resident"
        sizes = [run["memory"][when][what] - run["memory"]["before"][start] for run in runs]
        found[name] = int(statistics.median(sizes))
    return found


def inside(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The share of a token's time that is spent outside our products; nothing for a peer."""
    shares = [
        1 - run["kernels"]["kernel_seconds"] / run["kernels"]["token_seconds"]
        for run in runs
        if "kernels" in run
    ]
    return {"outside_kernels": round(statistics.median(shares), 4)} if shares else {}


def show(row: Mapping[str, Any]) -> str:
    """A row as one line."""
    first = ", ".join(
        f"{key.rpartition('_')[2]}: {value:.2f} s"
        for key, value in row.items()
        if key.startswith("first_token_seconds_") and key.rpartition("_")[2].isdecimal()
    )
    outside = f"  outside kernels {row['outside_kernels']:.1%}" if "outside_kernels" in row else ""
    return (
        f"{row['model']:18} head {row['head']:6} {row['threads']} threads"
        f" {row['tokens_per_second']:7.2f} tokens/s ({row['tokens_per_second_low']:.2f},"
        f" {row['tokens_per_second_quarter']:.2f} to {row['tokens_per_second_three_quarters']:.2f},"
        f" {row['tokens_per_second_high']:.2f})  first token after {first}"
        f"  memory +{row['memory_bytes'] / 1e6:.0f} MB (peak +{row['memory_peak_bytes'] / 1e6:.0f},"
        f" file {row['file_bytes'] / 1e6:.0f}){outside}"
    )


def options() -> Any:
    found = parser(__doc__, "model.json")
    found.set_defaults(rounds=5)
    found.add_argument("--formats", nargs="*", default=["t2-e2m1"])
    found.add_argument("--head", default="mxfp4", help="format of our output head")
    found.add_argument("--threads", type=int, default=2)
    found.add_argument("--prompts", nargs="+", type=int, default=[128, 512])
    found.add_argument("--tokens", type=int, default=32, help="generated after the prompt")
    found.add_argument("--repeats", type=int, default=2, help="in every process")
    found.add_argument("--work", type=Path, default=HERE.parent / "build" / "bench-model")
    found.add_argument("--llama-python", type=Path, metavar="FILE", help="llama.cpp's environment")
    found.add_argument("--llama-types", nargs="*", default=["Q2_K", "IQ2_XS"])
    return found.parse_args()


def main() -> None:
    """Prints the rows; with --json writes them too."""
    given = options()
    found = {**facts(), "rounds": given.rounds, "tokens": given.tokens, "sizes": dict(SIZES)}
    given.work.mkdir(parents=True, exist_ok=True)
    subjects = [*ours(given), *peers(given)]
    for subject in subjects:
        if not subject.path.exists():
            say(f"making {subject.path.name}")
            output(subject.make, subject.environment)
    runs = measure(subjects, given.rounds)
    rows = [row(subject, given.threads, runs[subject.name]) for subject in subjects]
    for entry in rows:
        print(show(entry))
    write(given.json, found, rows)


if __name__ == "__main__":
    main()
