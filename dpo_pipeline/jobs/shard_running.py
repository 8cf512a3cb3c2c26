"""`run`: one shard of a job, in any process, at any time, as often as wanted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import polars as pl

from dpo_pipeline.columns import N_PAIRS, N_VALID
from dpo_pipeline.evaluation import FoundOffences, ShardTask, work_of
from dpo_pipeline.invalid_report import BrokenRule
from dpo_pipeline.jobs.input_files import check_inputs
from dpo_pipeline.jobs.job_plan import JobPlan, JobShard
from dpo_pipeline.jobs.shard_results import ShardResult, read_result, write_result
from dpo_pipeline.jobs.splitting import ElsewhereLater
from dpo_pipeline.options import Outputs
from dpo_pipeline.scoring import ScorePlan, part_tasks
from dpo_pipeline.storage import StagedFile
from dpo_pipeline.sums import Partial
from dpo_pipeline.tables import Part, Printable, Sentence, whole


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShardRun(Printable):
    """What running a shard came to.

    Attributes:
        job: The folder of the job.
        shard: The number of the shard.
        shards: How many the job has.
        n_pairs: Pairs of the shard.
        n_invalid: Those that break a rule. Whether that is an error, `merge` says.
        n_written: Pairs that were written as parts of outputs.
        was_done: Whether the result was there before, so that nothing was done.
    """

    job: str
    shard: int
    shards: int
    n_pairs: int
    n_invalid: int
    n_written: int
    was_done: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    def to_frame(self) -> pl.DataFrame:
        """Return it as one row."""
        return pl.DataFrame([asdict(self)])

    def to_parts(self) -> Iterator[Part]:
        """Yield it as a sentence."""
        words = [f"{self.n_pairs:,} pairs, {self.n_invalid:,} invalid"]
        words += [f"{self.n_written:,} written"] if self.n_written else []
        words += ["was done before"] if self.was_done else []
        text = f"{whole(self.job)}: shard {self.shard} of {self.shards}: {', '.join(words)}"
        yield Sentence(text=text)


def run(job: str | os.PathLike[str], shard: int, *, execution: Any = None) -> ShardRun:
    """Do one shard of a job, and keep its result in the folder of the job.

    The result appears whole or not at all. Where it is there already, nothing is done.

    Args:
        job: The folder that `split` wrote.
        shard: The number of the shard, from 0.
        execution: `Execution`: how object stores are reached, progress, a stop.

    Raises:
        UsageError: There is no such shard.
        ContractError: As `evaluate`, but for invalid pairs: `merge` says whether they may pass.
        StorageError: An input changed since the split, or a file cannot be read or written.
        EngineError: The job was split by other versions of the libraries.
        Cancelled: The run was stopped.
    """
    plan = JobPlan.read(job)
    part = plan.shard(shard)
    result = read_result(plan, part)
    was_done = result is not None and not any(missing_parts(plan, result))
    if result is None or not was_done:
        result = _done(plan, part, execution)
        write_result(plan, part, result)
    return ShardRun(
        job=plan.folder,
        shard=shard,
        shards=len(plan.shards),
        n_pairs=result.rows,
        n_invalid=result.n_invalid,
        n_written=sum(rows for parts in result.parts.values() for rows, _ in parts.values()),
        was_done=was_done,
    )


def missing_parts(plan: JobPlan, result: ShardResult) -> Iterator[str]:
    """Yield the parts of outputs that are not there as they were written."""
    for output, parts in result.parts.items():
        for relative, (_, size) in parts.items():
            path = plan.part_path(output, relative)
            if not (os.path.isfile(path) and os.path.getsize(path) == size):
                yield path


def _done(plan: JobPlan, shard: JobShard, execution: Any) -> ShardResult:
    asked = plan.groups(ElsewhereLater(), execution)
    call = plan.call({**asked, **_no_outputs(plan, shard, asked)})
    made = call.measurement
    groups, watch = made.groups, made.groups.watch
    check_inputs(plan, made.dataset, groups.access, {file.path for file in shard.files})
    work = work_of(made.dataset, made.scorer, made.objectives, made.wanted)
    listing = FoundOffences(dataset=made.dataset, scorer=made.scorer, rules=work.rules)
    sums: dict[int, tuple[int, list[Any]]] = {}
    offences: dict[int, tuple[int, tuple[BrokenRule, ...]]] = {}
    suspects = []
    for task in (each for each in work.tasks() if shard.holds(each.first_row)):
        watch.check()
        results = list(work(task))
        sums[task.first_row] = task.rows or 0, results
        watch.step("evaluating", task.rows or 0, shard.rows)
        if _has_invalid(results):
            suspects.append(task)
            (found,) = listing(task)
            offences[task.first_row] = found.n_invalid, found.broken()
    n_invalid = sum(n for n, _ in offences.values())
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    is_refused = groups.on_invalid.action == "raise" and n_invalid  # so nothing is published
    if isinstance(call, ScorePlan) and not is_refused:
        parts = _written(plan, shard, call, suspects)
    return ShardResult(
        rows=shard.rows, n_invalid=n_invalid, sums=sums, offences=offences, parts=parts
    )


def _no_outputs(plan: JobPlan, shard: JobShard, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return groups with outputs that are never written; this process need not see those asked for.

    Whether those can be written, `split` checked, and `merge` checks.
    """
    nothing = os.path.join(plan.folder, f"output-of-{shard.number}")
    groups: dict[str, Any] = {"outputs": Outputs()}
    groups["on_invalid"] = replace(asked["on_invalid"], file=None)
    if asked["batches"].file is not None:
        groups["batches"] = replace(asked["batches"], file=f"{nothing}.parquet")
    return groups if plan.out is None else {**groups, "sink": nothing}


def _has_invalid(results: list[tuple[Partial, Any]]) -> bool:
    return any((each.sums[N_PAIRS] != each.sums[N_VALID]).any() for each, _ in results)


def _written(
    plan: JobPlan, shard: JobShard, call: ScorePlan, suspects: list[ShardTask]
) -> dict[str, dict[str, tuple[int, int]]]:
    """Write the parts of the outputs that come with a shard; return their rows and bytes."""
    made, watch = call.measurement, call.measurement.groups.watch
    rules = work_of(made.dataset, made.scorer, made.objectives, made.wanted).rules
    first, end = shard.parts
    parts = call.parts.parts[first:end]
    if made.scorer.is_coupled:  # a part may have rows of other shards
        suspects = [ShardTask(index=0, first_row=0, rows=made.dataset.rows)]
    writers = {"scored": call.writer(rules, shard.rows, watch).scored}
    if call.invalid is not None:
        writers["invalid"] = call.writer(rules, shard.rows, watch, whole=True).invalid
    written: dict[str, dict[str, tuple[int, int]]] = {}
    for output, function in writers.items():
        paths = [plan.part_path(output, part.relative) for part in parts]
        for path in paths:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        targets = [StagedFile(hidden=path, apart=True) for path in paths]
        written[output] = {
            task.part.relative: (sum(function(task)), os.path.getsize(path))
            for task, path in zip(
                part_tasks(parts, targets, suspects, is_folder=True), paths, strict=True
            )
        }
    return written
