"""Crashes: `python bench/crash.py [--quick] [--json [FILE]] [--random N]`.

A small calibrated run with a work folder is made to fail at every write, flush and rename in turn
(a full disk, an I/O error, SIGKILL before, after, and with half of a write done), and is killed at
random moments. Then it is resumed: the checkpoint has to have the bytes of a run without faults,
and nothing else may be left behind. So has a checkpoint that replaces an older one, and one that
several processes make, of which one is killed at a random moment.

`--quick` takes one layer of every block, half the text, no gradients, one fault per point (of the
replacing run only around its renames), and five random kills. Runs that are to be killed are forked
from this process, which has done it all once: imports and tables are made, and torch has one
thread.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from timing import facts, parser, write
from transformers import LlamaConfig, LlamaForCausalLM

from unspool.checkpoint import durable
from unspool.checkpoint.journal import Journal
from unspool.checkpoint.stream import quantize_folder
from unspool.encode import encode as encode_room
from unspool.encode.ldlq import Calibration
from unspool.errors import CheckpointError
from unspool.model.calibrate import Plan
from unspool.model.load import empty_model
from unspool.model.processes import ALONE, Processes, joined
from unspool.model.selection import plan

FORMAT, BLOCKS = "t2-e2m1:h32", 3
FAULTS = ("full", "error", "before", "after", "torn")
ERRORS = {"full": errno.ENOSPC, "error": errno.EIO}
FEW = ("*.o_proj",)
BROKEN = 3
SEED = 0


class Faulty(durable.Disk):
    """Counts operations; does the fault at the one chosen."""

    def __init__(self, at: int = -1, fault: str = "") -> None:
        self.at, self.fault, self.seen = at, fault, []

    def _step(self, kind: str, name: str, act: Callable[[], object]) -> None:
        self.seen.append(f"{kind} {name}")
        if len(self.seen) - 1 != self.at:
            return
        if self.fault in ERRORS:
            raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]))
        if self.fault == "after":
            act()
        os.kill(os.getpid(), signal.SIGKILL)

    def write(self, handle: int, content: memoryview) -> int:
        """Half of it where it is to be torn."""
        part = content[: len(content) // 2] if self.fault == "torn" else content
        torn_or_after = {"torn", "after"}
        if len(self.seen) == self.at and self.fault in torn_or_after:
            super().write(handle, part)
        self._step("write", _name_of(handle), lambda: None)
        return super().write(handle, content)

    def flush(self, handle: int) -> None:
        """Before or after."""
        self._step("flush", _name_of(handle), lambda: os.fsync(handle))
        super().flush(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Before or after."""
        self._step("rename", new.name, lambda: old.rename(new))
        super().rename(old, new)


def _name_of(handle: int) -> str:
    return Path(f"/proc/self/fd/{handle}").readlink().name


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is run again and again; `whole` is what it gives without faults."""

    source: Path
    plan: Plan
    windows: torch.Tensor | None
    whole: dict[str, bytes] = field(default_factory=dict)

    def run(
        self,
        place: Path,
        *,
        resume: bool,
        overwrite: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        """Into `place/out`, by way of `place/work`."""
        journal = None
        if processes.first:
            journal = Journal(place / "work", {"format": FORMAT}, resume=resume)
        quantize_folder(
            self.source, place / "out", self.plan, windows=self.windows, journal=journal,
            overwrite=overwrite, processes=processes,
        )  # fmt: skip

    def with_whole(self, place: Path) -> Case:
        """The same, with what it gives without faults."""
        self.run(place, resume=False)
        return replace(self, whole=content(place / "out"))


def case_of(source: Path, *, quick: bool) -> Case:
    """The run of a model: all of its layers, or few."""
    formats = plan(empty_model(source), FORMAT, include=FEW if quick else ())
    ids = torch.randint(0, 128, (4, 48), generator=torch.Generator().manual_seed(1))
    return Case(
        source=source,
        plan=Plan(formats=formats, how=Calibration(), threads=1, importance=not quick),
        windows=ids[:2] if quick else ids,
    )


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def child(work: Callable[[], None]) -> int:
    """Starts it in a process of its own."""
    process = os.fork()
    if process:
        return process
    code = BROKEN
    try:
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001 - a child never returns into its parent's frames
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def ended(process: int) -> int:
    """The exit code of a child, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def on(disk: durable.Disk, work: Callable[[], None]) -> None:
    """Runs it on that disk."""
    before, durable.DISK = durable.DISK, disk
    try:
        work()
    finally:
        durable.DISK = before


def make_model(folder: Path) -> None:
    """The model of tests/checkpoint/test_stream.py."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=BLOCKS, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=128, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def points(case: Case, place: Path, **how: bool) -> list[str]:
    """Every operation of a run, in order."""
    disk = Faulty()
    on(disk, lambda: case.run(place, **how))
    return disk.seen


def fail(case: Case, place: Path, at: int, fault: str, point: str, **how: bool) -> None:
    """One run with a fault, and what has to be true after it."""
    before = content(place / "out") if how.get("overwrite") else None
    run = partial(on, Faulty(at, fault), partial(case.run, place, **how))
    if fault not in ERRORS:
        code = ended(child(run))
        assert code == -signal.SIGKILL, f"{fault} {point}: ended with {code}"
    else:
        try:
            run()
            # A rename that is done is no failure, whatever comes of flushing its folder.
            assert content(place / "out") == case.whole, f"{fault} {point}: done, with other bytes"
        except CheckpointError as error:
            _check_error(str(error), fault, point)
        _check_tidy(place, f"{fault} {point}")
    _check_whole(case, place, before, f"{fault} {point}")


def _check_error(text: str, fault: str, point: str) -> None:
    if "importance-" in point:
        assert "importance " in text, f"{point}: {text}"
    for block in range(BLOCKS):
        if f"block-{block:05}" in point:
            assert f"block {block} (model.layers.{block})" in text, f"{point}: {text}"
    strerror = os.strerror(ERRORS[fault])
    assert strerror in text or (fault == "full" and "no space left" in text), f"{point}: {text}"


def _check_tidy(place: Path, when: str) -> None:
    left = [path.name for path in place.rglob(".*")]
    assert left == [], f"{when}: left behind: {left}"


def _check_whole(case: Case, place: Path, before: dict[str, bytes] | None, when: str) -> None:
    """What stands at the output's place is whole: the old, the new, or nothing yet."""
    allowed = [case.whole, *([before] if before else [])]
    if (place / "out").exists():
        assert content(place / "out") in allowed, f"{when}: half a checkpoint"
    elif before:
        (aside,) = place.glob(".out.replaced-*")
        assert content(aside) == before, f"{when}: the old checkpoint is lost"


def resume(case: Case, place: Path, when: str, *, overwrite: bool = False) -> None:
    """Goes on after a fault; the bytes have to be those of a run without, and nothing else left."""
    if overwrite or not (place / "out").exists():
        case.run(place, resume=True, overwrite=overwrite)
        _check_tidy(place, when)
    assert content(place / "out") == case.whole, f"{when}: other bytes"
    shutil.rmtree(place)


def chosen(count: Sequence[str], *, quick: bool) -> Iterator[tuple[int, str, str]]:
    """The points and faults to try: all, or the faults in turn."""
    for at, point in enumerate(count):
        faults = [f for f in FAULTS if f != "torn" or point.startswith("write")]
        for fault in faults[at % len(faults) :][:1] if quick else faults:
            yield at, fault, point


def walk(case: Case, folder: Path, *, quick: bool) -> Counter[str]:
    """Every point of a run into an empty place."""
    tried: Counter[str] = Counter()
    count = points(case, folder / "counted", resume=False)
    for at, fault, point in chosen(count, quick=quick):
        place = folder / f"{at}-{fault}"
        fail(case, place, at, fault, point, resume=False)
        resume(case, place, f"{fault} {point}")
        tried[fault] += 1
    return tried + Counter(points=len(count))


def replaced(case: Case, folder: Path, *, quick: bool) -> Counter[str]:
    """Every point of a run whose blocks are finished and whose output replaces an older one."""
    tried: Counter[str] = Counter()
    prepared = folder / "prepared"
    case.run(prepared, resume=False)
    (prepared / "out" / "README.md").write_text("older")

    def copied(name: str) -> Path:
        return Path(shutil.copytree(prepared, folder / name))

    how = {"resume": True, "overwrite": True}
    count = points(case, copied("counted-again"), **how)
    for at, fault, point in chosen(count, quick=quick):
        if quick and "rename" not in "".join(count[at - 1 : at + 2]):
            continue
        place = copied(f"again-{at}-{fault}")
        fail(case, place, at, fault, point, **how)
        resume(case, place, f"{fault} {point}, replacing", overwrite=True)
        tried[fault] += 1
    return tried + Counter(points=len(count))


def kill_at_random(case: Case, folder: Path, kills: int) -> int:
    """Kills runs, and every second time what goes on after them, at random moments; the kills
    that came before the end."""
    seconds = timed(lambda: ended(child(lambda: case.run(folder / "timed", resume=False))))
    dice, landed = random.Random(SEED), 0
    for number in range(kills):
        place = folder / f"random-{number}"
        process = child(lambda place=place: case.run(place, resume=(place / "work").exists()))
        time.sleep(dice.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        landed += ended(process) == -signal.SIGKILL
        if number % 2 and not (place / "out").exists():
            process = child(lambda place=place: case.run(place, resume=True))
            time.sleep(dice.uniform(0, seconds))
            os.kill(process, signal.SIGKILL)
            landed += ended(process) == -signal.SIGKILL
        _check_whole(case, place, None, f"random kill {number}")
        resume(case, place, f"random kill {number}")
    return landed


def timed(work: Callable[[], object]) -> float:
    """Seconds of it."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def start_together(case: Case, place: Path, count: int, *, resume: bool = False) -> list[int]:
    """Starts a run of several processes, as torchrun does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def run(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with joined() as processes:
            case.run(place, resume=resume, processes=processes)

    return [child(partial(run, rank)) for rank in range(count)]


def together(case: Case, folder: Path, counts: Sequence[int], kills: int) -> int:
    """Runs of several processes, with and without calibration, in whole layers and in strips; and
    some of which one process is killed: the others end, and a run of one goes on. The kills."""
    plain = replace(case, windows=None).with_whole(folder / "plain")
    encode_room.STRIP, before = 1 << 10, encode_room.STRIP
    cut = case.with_whole(folder / "cut")
    for count in counts:
        for kind, each, strip in (("", case, before), ("plain", plain, before), ("cut", cut, 1024)):
            encode_room.STRIP, place = strip, folder / f"{count}-{kind}"
            codes = [ended(process) for process in start_together(each, place, count)]
            assert codes == [0] * count, f"{count} processes, {kind}: ended with {codes}"
            assert content(place / "out") == each.whole, f"{count} processes, {kind}: other bytes"
    encode_room.STRIP, dice, landed = before, random.Random(SEED), 0
    seconds = timed(lambda: case.run(folder / "timed-together", resume=False))
    for number in range(kills):
        place, count = folder / f"killed-{number}", counts[number % len(counts)]
        processes = start_together(case, place, count)
        time.sleep(dice.uniform(0, seconds))
        os.kill(processes[number % count], signal.SIGKILL)
        codes = [ended(process) for process in processes]
        landed += -signal.SIGKILL in codes
        assert not any(codes) or all(codes) or (place / "out").exists(), f"{number}: {codes}"
        if not (place / "out").exists():
            case.run(place, resume=(place / "work").exists())
        resume(case, place, f"one of {count} killed, {number}")
    return landed


def crash(folder: Path, kills: int, *, quick: bool) -> dict[str, object]:
    """All of it; raises AssertionError at the first thing that is not as it should be."""
    torch.set_num_threads(1)
    make_model(folder / "model")
    case = case_of(folder / "model", quick=quick).with_whole(folder / "whole")
    start = time.perf_counter()
    new, again = walk(case, folder, quick=quick), replaced(case, folder, quick=quick)
    landed = kill_at_random(case, folder, kills)
    every = case_of(folder / "model", quick=False).with_whole(folder / "every") if quick else case
    counts, halves = ((2,), 1) if quick else ((2, 4), kills // 10)
    halves = together(every, folder, counts, halves)
    both = new + again
    return {
        "points": new.pop("points"),
        "points_replacing": again.pop("points"),
        "faults": {fault: both[fault] for fault in FAULTS},
        "random_kills": landed,
        "processes": [1, *counts],
        "one_of_several_killed": halves,
        "layers": "one per block" if quick else "all",
        "all_identical": True,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Prints a summary; with --json writes it too."""
    options = parser(__doc__, "crash.json")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--random", type=int, metavar="N", help="random kills: 5 quick, else 100")
    given = options.parse_args()
    kills = given.random if given.random is not None else 5 if given.quick else 100
    found = facts()
    # In memory where it has to be quick: SIGKILL loses nothing that was written, flushed or not.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        dir=memory if given.quick and memory.is_dir() else None
    ) as folder:
        row = crash(Path(folder), kills, quick=given.quick)
    print(json.dumps(row))
    write(given.json, found, [row])


if __name__ == "__main__":
    main()
