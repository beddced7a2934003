"""Who scores the codes of a generation: this process, processes of this machine, or a Ray cluster.

All give results in the order of the tasks, so that a search does not depend on who scored it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from unspool.errors import UnspoolError

Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]

LOCAL = "local"
"""In place of an address: a cluster of this machine alone, which ends with the search."""

AUTO = "auto"
"""The cluster that this machine is a part of."""

SECONDS = 10
"""How long a head may take to answer."""

INSTALL = "pip install 'unspool[ray]'"


def workers(jobs: int, ray: str | None) -> Any:
    """A context whose value maps a function over tasks: with so many processes, 1 is this one; or
    in tasks of a Ray cluster, of which `jobs` of LOCAL run at a time.

    Raises UnspoolError without Ray, or where no cluster answers.
    """
    if ray is not None:
        return _cluster(ray, jobs)
    return _processes(jobs)


@contextmanager
def _processes(jobs: int) -> Iterator[Each]:
    """They start anew: threads survive no fork."""
    if jobs == 1:
        yield map
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield pool.map


@contextmanager
def _cluster(address: str, jobs: int) -> Iterator[Each]:
    # Else every task without GPUs warns of a change to come in how Ray hides these.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UnspoolError("Ray is not installed", where="--ray", allowed=INSTALL) from error
    begun: dict[str, Any] = {"include_dashboard": False, "num_cpus": jobs}
    if address != LOCAL:
        begun = {"address": address}
    try:
        _check_answers(address)
        ray.init(log_to_driver=False, logging_level="ERROR", **begun)
    except (OSError, RuntimeError, ValueError) as error:
        raise UnspoolError(
            "no Ray cluster answers", where="--ray", found=f"{address}: {error}",
            allowed=f"{LOCAL}, {AUTO}, host:port of its head",
        ) from error  # fmt: skip
    try:
        yield _in_tasks
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises OSError or ValueError where nothing listens: Ray itself waits for minutes."""
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=SECONDS).close()


def _in_tasks(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
    import ray

    remote = ray.remote(lambda task: function(task))  # a bound method is none of Ray's
    yield from ray.get([remote.remote(task) for task in tasks])
