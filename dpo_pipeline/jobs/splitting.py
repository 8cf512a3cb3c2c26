"""`split`: a call that several processes shall share, cut into shards of its rows."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

from dpo_pipeline.arguments import given
from dpo_pipeline.engine import Function
from dpo_pipeline.errors import StorageError, UsageError
from dpo_pipeline.jobs.input_files import input_files
from dpo_pipeline.jobs.job_plan import FUNCTIONS, Call, FileRows, JobPlan, JobShard
from dpo_pipeline.jobs.option_values import plain_options, plain_paths
from dpo_pipeline.options import Execution
from dpo_pipeline.scoring import ScorePlan
from dpo_pipeline.sources import Dataset, Part
from dpo_pipeline.storage import is_address, reading


class ElsewhereLater:
    """Stands for the processes of a job while its call is planned; it runs nothing."""

    elsewhere: ClassVar[bool] = True

    def __call__(
        self, function: Function, tasks: Iterable[Any], check: Callable[[], None]
    ) -> Generator[tuple[int, Iterable[Any]]]:
        """Raise: the shards of a job are run by `run`."""
        raise NotImplementedError


def split(
    function: Callable[..., Any],
    *places: Any,
    shards: int,
    to: str | os.PathLike[str],
    **arguments: Any,
) -> JobPlan:
    """Write, into a new folder, what independent processes need to share a call.

    Only footers are read. `run` does one shard, in any process that sees the inputs and the folder
    under the same names; `merge` gives what the call itself would give, to the last bit.

    Args:
        function: `evaluate`, `sweep` or `score_parquet`.
        places: Its positional arguments. Pairs are Parquet files.
        shards: How many; those of few rows may have nothing to do.
        to: The folder of the job, which all processes see. It keeps no storage options and no
            tokens: `run` and `merge` are given those.
        arguments: Its keyword arguments.

    Raises:
        UsageError: The call cannot be shared, or as `function`.
        ContractError, StorageError: As `function`, if footers and names show it.
    """
    command = next((name for name, each in FUNCTIONS.items() if each is function), None)
    if command is None:
        raise UsageError(f"a job is of evaluate, sweep or score_parquet, found {function!r}")
    if not (isinstance(shards, int) and not isinstance(shards, bool) and shards >= 1):
        raise UsageError(f"shards (--shards) must be a whole number, at least 1, found {shards!r}")
    folder = os.fspath(to)
    if is_address(folder):
        raise UsageError(f"{folder}: a job is kept in a folder on a file system, not in a store")
    call = _planned(function, places, arguments)
    dataset, sink = call.measurement.dataset, None
    parts: Sequence[Part] = ()
    if isinstance(call, ScorePlan):
        sink, parts = str(plain_paths(call.sink, "sink")), call.parts.parts
    job = JobPlan(
        folder=folder,
        command=command,
        pairs=plain_paths(call.options["pairs"].source, "pairs"),
        out=sink,
        options=plain_options(command, call.options),
        made_in=os.getcwd(),
        inputs=tuple(input_files(dataset, call.measurement.groups.access)),
        shards=tuple(_shards(dataset, parts, _starts(call, parts, shards))),
    )
    _make_new(folder)
    job.write()
    return job


def _planned(function: Any, places: tuple[Any, ...], arguments: dict[str, Any]) -> Call:
    """Return the plan of the call that is shared, as it will be merged."""
    execution = given(Execution, arguments.get("execution"))
    if execution.engine != Execution().engine:
        raise UsageError("a job takes the place of an engine: leave the engine out")
    own = {"execution": replace(execution, engine=ElsewhereLater())}
    made: Call = function.plan(*places, **{**arguments, **own})
    return made


def _starts(call: Call, parts: Sequence[Part], n: int) -> list[int]:
    """Return the first rows of the shards: as even as batches and parts of the output let them."""
    made = call.measurement
    total = made.dataset.rows or 0
    step = made.scorer.rows(1)  # more than 1 if batches must stay whole
    first = min(max(total // n, made.wanted.first_rows), total)
    even = [first + (total - first) * i // max(n - 1, 1) for i in range(n - 1)]
    borders = [each.first_row for each in parts] if step == 1 else []
    starts = [0]
    for row in even:
        start = -(-row // step) * step
        if borders:
            index = bisect_left(borders, row)
            start = borders[index] if index < len(borders) else total
        starts.append(max(min(start, total), starts[-1]))
    return starts


def _shards(dataset: Dataset, parts: Sequence[Part], starts: Sequence[int]) -> Iterator[JobShard]:
    borders = [each.first_row for each in parts]
    begins = [bisect_left(borders, start) for start in starts]
    ends = pairwise([*zip(starts, begins, strict=True), (dataset.rows or 0, len(parts))])
    for number, ((first, begin), (end, end_part)) in enumerate(ends):
        yield JobShard(
            number=number,
            first_row=first,
            rows=end - first,
            parts=(begin, end_part),
            files=tuple(_rows_of_files(dataset, first, end)),
        )


def _rows_of_files(dataset: Dataset, first: int, end: int) -> Iterator[FileRows]:
    for file in dataset.files:
        begin, stop = max(first, file.first_row), min(end, file.first_row + file.rows)
        if begin < stop:
            yield FileRows(path=file.path, first=begin - file.first_row, rows=stop - begin)


def _make_new(folder: str) -> None:
    """Make the folder of a job, which may be there if it is empty."""
    with reading(folder):
        os.makedirs(folder, exist_ok=True)
        if os.listdir(folder):
            raise StorageError(folder, "is not empty: name a new folder for the job")
