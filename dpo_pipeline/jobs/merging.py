"""`merge`: the results of all shards become what the call itself would have given."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache
from typing import Any, ClassVar, Final

from dpo_pipeline.contract import Offences
from dpo_pipeline.engine import Function
from dpo_pipeline.errors import StorageError
from dpo_pipeline.evaluation import FoundOffences, ShardTask
from dpo_pipeline.jobs.input_files import check_inputs
from dpo_pipeline.jobs.job_plan import JobPlan
from dpo_pipeline.jobs.shard_results import ShardResult, read_result
from dpo_pipeline.jobs.shard_running import missing_parts
from dpo_pipeline.scoring import PartTask
from dpo_pipeline.storage import Out

_AT_A_TIME: Final = 2**22  # bytes
_SHOWN: Final = 10


class Replayed:
    """Gives the results that other processes left in the folder of a job."""

    elsewhere: ClassVar[bool] = True

    def __init__(self, job: JobPlan) -> None:
        self._job = job
        # Tasks come in the order of the shards: one result is held at a time.
        self._result = lru_cache(maxsize=1)(self._read)

    def __call__(
        self, function: Function, tasks: Iterable[Any], check: Callable[[], None]
    ) -> Generator[tuple[int, Iterable[Any]]]:
        """Yield the index of each task with its results."""
        for task in tasks:
            check()
            if isinstance(task, PartTask):
                yield task.index, [self._moved(task, function.__name__)]
            else:
                yield task.index, self._of_shard(function, task)

    def _read(self, number: int) -> ShardResult:
        result = read_result(self._job, self._job.shards[number])
        if result is None:
            raise StorageError(self._job.folder, f"the result of shard {number} was removed")
        return result

    def _of_shard(self, function: Function, task: ShardTask) -> list[Any]:
        result = self._result(self._job.shard_of_row(task.first_row).number)
        if isinstance(function, FoundOffences):
            n_invalid, broken = result.offences[task.first_row]
            return [Offences.of(function.rules, n_invalid, broken)]
        return result.sums[task.first_row][1]

    def _moved(self, task: PartTask, output: str) -> int:
        """Copy a part from the job into an output; return its rows."""
        path = self._job.part_path(output, task.part.relative)

        def sink(out: Out) -> None:
            with open(path, "rb") as part:
                if out.filesystem is None and not isinstance(out.target, str):
                    shutil.copyfileobj(part, out.target, _AT_A_TIME)
                else:
                    with out.filesystem.open_output_stream(out.path) as target:
                        shutil.copyfileobj(part, target, _AT_A_TIME)

        return task.target.write(sink, path)


def merge(job: str | os.PathLike[str], *, execution: Any = None) -> Any:
    """Return what the call of a job gives, from the results of all its shards.

    The documents and outputs of the call appear as it would make them: whole, and to the last byte.
    The folder of the job stays as it is; nothing needs it any more.

    Args:
        job: The folder that `split` wrote.
        execution: As in `run`.

    Returns:
        What `evaluate`, `sweep` or `score_parquet` returns.

    Raises:
        StorageError: A shard has no result, or one of another plan; an input changed since the
            split; or as the call.
        DpoPipelineError: As the call.
    """
    plan = JobPlan.read(job)
    _check_results(plan)
    call = plan.call(plan.groups(Replayed(plan), execution))
    check_inputs(plan, call.measurement.dataset, call.measurement.groups.access)
    return call.run()


def _check_results(plan: JobPlan) -> None:
    """Raise a StorageError if not every shard has a result, with the parts of the outputs."""
    missing = []
    for shard in plan.shards:
        result = read_result(plan, shard)
        lost = [plan.result_path(shard)] if result is None else list(missing_parts(plan, result))
        if result is not None and lost:
            raise StorageError(lost[0], f"is not as shard {shard.number} wrote it: run that again")
        missing += [str(shard.number)] * len(lost)
    if missing:
        some = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        problem = f"{len(missing):,} of {len(plan.shards):,} shards have no result: {some}"
        raise StorageError(
            plan.folder, f"{problem} (dpo-pipeline job run {plan.folder} {missing[0]})"
        )
