"""Runs tasks on a Ray cluster, a bounded number at a time; those of a lost worker run again.

Only partial sums and counts travel: each task reads and writes files itself. Every machine needs
the same version of this package, and must see the inputs and outputs under the same names.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from dpo_pipeline.engine.executors import Function, Task, versions
from dpo_pipeline.engine.own_cluster import OWN, is_connected, stay_on_loopback
from dpo_pipeline.errors import EngineError, UsageError

_LOOK_EVERY = 0.2  # seconds
_DYING = 10.0  # seconds that cancelled tasks are given to end


@dataclass(frozen=True, slots=True, kw_only=True)
class RayExecutor:
    """Runs each task as a Ray task.

    Attributes:
        address: The cluster, as `ray.init` takes it; None for the one that is connected already,
            or that RAY_ADDRESS says, or one that is started on this machine.
        cpus_per_task: CPUs that a task reserves, and threads that it computes with.
        memory_per_task: Bytes that a task reserves; None reserves none.
        max_in_flight: Tasks that are submitted at a time; by default four for each that the CPUs
            of the cluster can run.
        max_retries: How often a task is run again after its worker or node was lost. What the
            task itself raises, such as a broken contract, is not tried again.
    """

    elsewhere: ClassVar[bool] = True

    address: str | None = None
    cpus_per_task: int = 1
    memory_per_task: int | None = None
    max_in_flight: int | None = None
    max_retries: int = 5

    def __call__(
        self, function: Function, tasks: Iterable[Task], check: Callable[[], None]
    ) -> Generator[tuple[int, Iterable[Any]]]:
        """Yield the index of each task with its results, in order; closing it cancels the rest."""
        ray = self._connected()
        cpus = ray.cluster_resources().get("CPU", 1.0)
        most = self.max_in_flight or max(4, int(4 * cpus / self.cpus_per_task))
        run = ray.remote(_run).options(
            num_cpus=self.cpus_per_task,
            memory=self.memory_per_task,
            max_retries=self.max_retries,
            retry_exceptions=False,
            scheduling_strategy="SPREAD",
            # Polars counts its threads when it is imported.
            runtime_env={"env_vars": {"POLARS_MAX_THREADS": str(self.cpus_per_task)}},
        )
        shipped = ray.put(function)
        waiting = iter(tasks)
        live: deque[tuple[int, Any]] = deque()
        try:
            while True:
                for task in islice(waiting, most - len(live)):
                    live.append((task.index, run.remote(shipped, task, os.getcwd(), versions())))
                if not live:
                    return
                index, result = live[0]
                while not ray.wait([result], timeout=_LOOK_EVERY)[0]:
                    check()
                yield index, _result(ray, result)
                live.popleft()
        finally:
            for _, result in live:
                ray.cancel(result, force=True)
            if live:
                ray.wait([result for _, result in live], num_returns=len(live), timeout=_DYING)

    def _connected(self) -> Any:
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        starts = address == "local" and not is_connected()
        if starts:
            stay_on_loopback()
        try:
            import ray
        except ImportError as error:
            raise UsageError('engine "ray" needs the library: pip install ray') from error
        if not ray.is_initialized():
            try:
                _check_reachable(self.address)
                own = OWN if starts else {}
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
            except (OSError, RuntimeError, ValueError) as error:
                where = self.address or os.environ.get("RAY_ADDRESS") or "this machine"
                raise EngineError(f"Ray on {where}: {error}") from error
        return ray


def _check_reachable(address: str | None) -> None:
    # Ray's own attempt takes minutes and cannot be stopped.
    host, _, port = (address or os.environ.get("RAY_ADDRESS") or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_DYING).close()


def _run(function: Function, task: Task, folder: str, theirs: dict[str, str]) -> list[Any]:
    if theirs != versions():  # the results would mix the bits of two versions
        raise EngineError(f"a Ray worker has {versions()}, and this process has {theirs}")
    # Paths are those of the process that asked; addresses do not need its folder.
    with suppress(FileNotFoundError):
        os.chdir(folder)
    return list(function(task))


def _result(ray: Any, result: Any) -> list[Any]:
    try:
        found: list[Any] = ray.get(result)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ray.exceptions.RayError):
            raise EngineError(
                f"a Ray worker could not run a task: {error.cause}; every machine needs this "
                "package, in the same version"
            ) from error
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise EngineError(f"Ray lost a task too often: {error}") from error
    return found
