"""Runs a function on numbered tasks: in this process, one after the other, or on an engine.

An engine only has to be an `Executor`. What a run computes does not depend on it: tasks are pure,
and their results are taken in the order of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import cache
from importlib.metadata import version
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

from dpo_pipeline.defaults import ENGINES
from dpo_pipeline.errors import UsageError


class Task(Protocol):
    """What a function is run on; it must pickle."""

    @property
    def index(self) -> int:
        """Its number, from 0 and without gaps."""
        ...


T = TypeVar("T", bound=Task)
Function: TypeAlias = Callable[[Any], Iterable[Any]]
"""From a task to its results, of which there may be several; it must pickle."""


class Executor(Protocol):
    """Runs a function on tasks, in any order, and yields the results of each."""

    elsewhere: ClassVar[bool]
    """Whether tasks run in other processes. Such a task reports no progress, must be able to read
    the source from there, and may run twice, even at the same time."""

    def __call__(
        self, function: Function, tasks: Iterable[Task], check: Callable[[], None]
    ) -> Generator[tuple[int, Iterable[Any]]]:
        """Yield the index of each task with its results.

        It takes tasks as it can run them, a bounded number ahead of the results. Closing it early
        stops the tasks that run. `check` raises if the run is to stop; it is called now and then
        while nothing arrives.
        """
        ...


@cache
def versions() -> dict[str, str]:
    """Return the versions that the bits of a result can depend on."""
    return {name: version(name) for name in ("dpo_pipeline", "polars", "pyarrow")}


class Local:
    """Runs each task when its result is asked for, in this process."""

    elsewhere: ClassVar[bool] = False

    def __call__(
        self, function: Function, tasks: Iterable[Task], check: Callable[[], None]
    ) -> Generator[tuple[int, Iterable[Any]]]:
        """Yield the index of each task with its results, which may be made as they are read."""
        for task in tasks:
            check()
            yield task.index, function(task)


Engine: TypeAlias = str | Executor
"""The name of an engine, or one that was made with arguments."""


def executor_of(engine: Engine) -> Executor:
    """Return the executor that `engine` stands for."""
    local, ray = ENGINES
    if engine == local:
        return Local()
    if engine == ray:
        from dpo_pipeline.engine.ray_executor import RayExecutor

        return RayExecutor()
    if isinstance(engine, str) or not callable(engine):
        raise UsageError(f"engine must be {local!r}, {ray!r} or an executor, found {engine!r}")
    return engine


def in_order(
    executor: Executor, function: Function, tasks: Iterable[T], check: Callable[[], None]
) -> Iterator[tuple[T, Iterable[Any]]]:
    """Yield each task with its results in the order of the tasks, whatever order they arrive in.

    A second result of a task is dropped.
    """
    given: dict[int, T] = {}  # in the order of the tasks
    arrived: dict[int, Iterable[Any]] = {}

    def noted() -> Iterator[T]:
        for task in tasks:
            given[task.index] = task
            yield task

    with closing(executor(function, noted(), check)) as results:
        for index, result in results:
            if index in given:
                arrived[index] = result
            while given and (following := next(iter(given))) in arrived:
                yield given.pop(following), arrived.pop(following)
    if given:
        raise RuntimeError(f"the engine gave no result for tasks {sorted(given)}")
