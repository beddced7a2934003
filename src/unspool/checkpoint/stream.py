"""Quantize a model from its folder to a checkpoint, one transformer block in memory at a time.

Weights outside the blocks and layers that stay as they are go from file to file. With a journal a
run that was killed goes on where it stopped: blocks that are finished are read back, the hidden
states of the calibration text walk through them again, and the bytes are those of a whole run.
Several processes divide the work of each block; the first reads and writes what is kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unspool.checkpoint.card import model_card
from unspool.checkpoint.journal import IMPORTANCE, Journal
from unspool.checkpoint.manifest import Layer, Manifest
from unspool.checkpoint.save import copied_files
from unspool.checkpoint.write import Payload, check_output, write_checkpoint
from unspool.encode.encode import encode, strip_count
from unspool.encode.viterbi import Search, viterbi
from unspool.errors import CheckpointError, ModelError
from unspool.matmul.reference import decode
from unspool.model.coverage import Reach, coverage
from unspool.model.expert_names import fused_name
from unspool.model.layout import BUFFERS, STORED_DTYPE, as_arrays, as_buffers
from unspool.model.processes import ALONE, Processes
from unspool.model.progress import Progress
from unspool.model.shards import CONFIG, StoredTensor, read_folder, read_json
from unspool.pack.matrix import CodedMatrix, coded_matrix
from unspool.spec.format import Format

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unspool.model.blocks import Blocks
    from unspool.model.calibrate import Plan
    from unspool.model.importance import Kept, Norms
    from unspool.model.sums import Streams


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one layer."""

    name: str
    format: str
    #: (n, k)
    shape: tuple[int, int]
    bytes: int
    #: squared error over squared weights
    relative_error: float
    #: that it was calibrated on; None without calibration, and in a block that was finished before
    tokens: int | None


def quantize_folder(
    source: Path,
    out: str | Path,
    plan: Plan,
    *,
    windows: torch.Tensor | None = None,
    journal: Journal | None = None,
    progress: Progress = lambda done, total, what: None,
    processes: Processes = ALONE,
    made: str = "",
    search: Search = viterbi,
    **saving: Any,
) -> tuple[Outcome, ...]:
    """Quantizes the planned layers of a folder's model into a new checkpoint.

    `windows`: calibration token ids `[count, tokens]`; `made`: how, for the model card; `search`:
    how trellises are searched that are not calibrated.
    Of several `processes` the first alone has a journal; all end with the error of one.
    Raises ModelError for a model whose tensors are not all stored, and for a layer outside the
    blocks; CheckpointError where something cannot be written. What a journal
    holds by then is kept.
    """
    from unspool.model.blocks import Stored
    from unspool.model.load import unfilled_model

    processes.told(lambda: check_output(out, overwrite=bool(saving.get("overwrite", False))))
    model = unfilled_model(source)
    stored = Stored(model, source)
    blocks = stored.blocks()
    _check_inside(plan.formats, blocks)
    streams = _streams(stored, model, blocks, windows, plan, journal, processes)
    tensors: dict[str, Payload] = {}
    outcomes: list[Outcome] = []
    for place, prefix in enumerate(blocks.names):
        progress(place, len(blocks.names), prefix)
        with _named(prefix):
            run = _Run(
                plan=plan, streams=streams, journal=journal, processes=processes, search=search
            )
            found = run.block(blocks.read(place), prefix, place, outcomes)
        tensors |= found
    progress(len(blocks.names), len(blocks.names), "")
    shapes = {outcome.name: outcome.shape for outcome in outcomes}
    gone = stored.names_of({fused_name(name) for name in plan.formats})
    processes.told(lambda: _write(source, out, plan.formats, tensors, shapes, gone, made, saving))
    return tuple(outcomes)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What stays the same from block to block."""

    plan: Plan
    streams: Streams | None
    journal: Journal | None
    processes: Processes
    search: Search

    def block(
        self, block: nn.Module, prefix: str, place: int, outcomes: list[Outcome]
    ) -> dict[str, Payload]:
        """The tensors of a block, made now or before; adds to the outcomes.

        With a journal they are read from its files when the checkpoint is written; else they are
        kept.
        """
        begun, journal = time.perf_counter(), self.journal
        names = [name for name in self.plan.formats if name.startswith(f"{prefix}.")]
        weights = {name: _weight(block, prefix, name) for name in names}
        arrays = self.processes.told(lambda: _arrays(journal, place))
        tokens: dict[str, int] = {}
        if arrays is None:
            matrices, tokens = self._encoded(block, prefix, weights)
            arrays = {
                f"{name}.{buffer}": array
                for name in names
                for buffer, array in as_buffers(matrices[name].arrays).items()
            }
            made, facts = arrays, {"name": prefix, "seconds": time.perf_counter() - begun}
            facts |= _reach(weights, tokens)
            self.processes.told(lambda: journal.put(place, made, facts) if journal else None)
        else:
            matrices = {
                n: _matrix(n, self.plan.formats[n], weights[n].shape, arrays) for n in names
            }
            self._replay(block, prefix, matrices)
        outcomes += self.processes.share(
            lambda i: _outcome(
                names[i], matrices[names[i]], weights[names[i]], tokens.get(names[i])
            ),
            len(names),
        )
        stored = journal.get(place) if journal else None
        if stored is not None:
            return {name: _untouched(tensor) for name, tensor in stored.items()}
        return {name: _payload(a) for name, a in arrays.items()} if self.processes.first else {}

    def _encoded(
        self, block: nn.Module, prefix: str, weights: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, CodedMatrix], dict[str, int]]:
        """Matrices, and the tokens that they were calibrated on, by name."""
        from unspool.model.calibrate import calibrate_block

        plan = self.plan
        if self.streams is not None:
            found = list(calibrate_block(block, prefix, self.streams, plan))
            return {each.name: each.matrix for each in found}, {e.name: e.tokens for e in found}
        passes, threads = plan.how.passes, plan.threads
        matrices = self.processes.encoded(
            {n: strip_count((len(w), w.shape[1]), plan.formats[n]) for n, w in weights.items()},
            lambda name, share: encode(
                weights[name],
                plan.formats[name],
                passes=passes,
                threads=threads,
                where=name,
                share=share,
                search=self.search,
            ),
        )
        return matrices, {}

    def _replay(self, block: nn.Module, prefix: str, matrices: Mapping[str, CodedMatrix]) -> None:
        from unspool.model.calibrate import replay_block

        if self.streams is not None:
            replay_block(block, prefix, self.streams, matrices, self.plan.threads)


def _arrays(journal: Journal | None, place: int) -> dict[str, np.ndarray] | None:
    """The finished tensors of a block, read."""
    stored = journal.get(place) if journal else None
    if stored is None:
        return None
    return {name: np.array(tensor.array()) for name, tensor in stored.items()}


def _weight(block: nn.Module, prefix: str, name: str) -> np.ndarray:
    weight: np.ndarray = (
        block.get_submodule(name.removeprefix(f"{prefix}.")).weight.detach().numpy()
    )
    return np.ascontiguousarray(weight)


def _reach(weights: Mapping[str, np.ndarray], tokens: Mapping[str, int]) -> dict[str, Any]:
    """What the log tells of a block's experts."""
    found = coverage(
        Reach(name=name, columns=weights[name].shape[1], tokens=count)
        for name, count in tokens.items()
    )
    return {} if found is None else {"experts": vars(found)}


def _matrix(
    name: str, fmt: Format, shape: tuple[int, ...], stored: Mapping[str, np.ndarray]
) -> CodedMatrix:
    n, k = shape
    buffers = {b: stored[f"{name}.{b}"] for b in BUFFERS.values() if f"{name}.{b}" in stored}
    return coded_matrix(fmt, (n, k), as_arrays(fmt, n, k, buffers), name)


def _outcome(name: str, matrix: CodedMatrix, weight: np.ndarray, tokens: int | None) -> Outcome:
    missed = weight.astype(np.float64) - decode(matrix)
    power = float(np.square(weight, dtype=np.float64).sum())
    return Outcome(
        name=name,
        format=matrix.format.name,
        shape=matrix.shape,
        bytes=matrix.nbytes,
        relative_error=float(np.square(missed).sum()) / power if power else 0.0,
        tokens=tokens,
    )


def _streams(
    stored: Any,
    model: nn.Module,
    blocks: Blocks,
    windows: torch.Tensor | None,
    plan: Plan,
    journal: Journal | None,
    processes: Processes,
) -> Streams | None:
    from unspool.model.calibrate import both_streams, weigh
    from unspool.model.importance import NOTHING

    if windows is None:
        return None
    with stored.without_blocks():
        first = model.get_submodule(blocks.names[0])
        streams = both_streams(model, first, windows, processes, plan.dtype)
        if plan.importance:
            kept = NOTHING if journal is None else _kept(journal)
            weigh(streams, model, blocks, windows, plan.threads, kept)
    return streams


def _kept(journal: Journal) -> Kept:
    """Gradients in a journal: a tensor for every window and layer, `PLACE.LAYER`."""
    from unspool.model.importance import Kept

    def get(chunk: int) -> list[Norms] | None:
        stored = journal.get(chunk, IMPORTANCE)
        if stored is None:
            return None
        found: dict[int, dict[str, np.ndarray]] = {}
        for name, tensor in stored.items():
            place, _, layer = name.partition(".")
            found.setdefault(int(place), {})[layer] = np.array(tensor.array())
        return [found[place] for place in sorted(found)]

    def put(chunk: int, part: range, found: Sequence[Norms]) -> None:
        tensors = {
            f"{place}.{layer}": norms
            for place, window in zip(part, found, strict=True)
            for layer, norms in window.items()
        }
        name = f"windows {part.start} to {part.stop - 1}"
        journal.put(chunk, tensors, {"name": name}, IMPORTANCE)

    return Kept(get=get, put=put)


def _check_inside(formats: Mapping[str, Format], blocks: Blocks) -> None:
    inside = tuple(f"{name}." for name in blocks.names)
    outside = [name for name in formats if not name.startswith(inside)]
    if outside:
        raise ModelError("a layer outside the blocks is not streamed", found=outside)


@contextmanager
def _named(prefix: str) -> Iterator[None]:
    """A lack of memory inside the context becomes an error that names the block."""
    try:
        yield
    except MemoryError as error:
        raise CheckpointError(
            "out of memory; what was finished before is kept with --work, --resume goes on",
            where=prefix,
            found=str(error) or None,
        ) from error


def _write(
    source: Path,
    out: str | Path,
    formats: Mapping[str, Format],
    coded: Mapping[str, Payload],
    shapes: Mapping[str, tuple[int, int]],
    gone: Collection[str],
    made: str,
    saving: Mapping[str, Any],
) -> None:
    manifest = Manifest(
        layers={name: Layer(format=formats[name], shape=shapes[name]) for name in formats}
    )
    kept = {n: t for n, t in read_folder(source, ModelError).items() if n not in gone}
    tensors = {n: _untouched(t) for n, t in kept.items()}
    tensors = dict(sorted({**tensors, **coded}.items()))
    config = read_json(source / CONFIG, ModelError)
    config["quantization_config"] = manifest.to_json()
    files = copied_files(source)
    files["README.md"] = model_card(manifest, tensors, source, made).encode()
    write_checkpoint(out, json.loads(json.dumps(config)), tensors, files, **saving)


def _untouched(tensor: StoredTensor) -> Payload:
    def read() -> np.ndarray:
        return np.fromfile(tensor.file, np.uint8, tensor.nbytes, offset=tensor.begin)

    return Payload(dtype=tensor.dtype, shape=tensor.shape, read=read)


def _payload(array: np.ndarray) -> Payload:
    read: Callable[[], np.ndarray] = lambda: array  # noqa: E731
    return Payload(dtype=STORED_DTYPE[str(array.dtype)], shape=array.shape, read=read)
