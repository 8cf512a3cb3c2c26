"""`evaluate`: preference pairs in, figures out, reading the data once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from threading import Event
from typing import Any, Literal

from dpo_pipeline.arguments import check_extra, check_page_path, checked_choice, checked_limit
from dpo_pipeline.columns import PAIR_ID, SCORED
from dpo_pipeline.contract import Schema, bind
from dpo_pipeline.defaults import LOSS_NAME, MAX_LOGP, ON_INVALID, OnInvalid
from dpo_pipeline.engine import Engine, ProgressCallback, Watch, executor_of
from dpo_pipeline.errors import DataWarning, UsageError
from dpo_pipeline.evaluation.evaluation_result import Evaluation
from dpo_pipeline.evaluation.measuring import Wanted, judge, measure
from dpo_pipeline.evaluation.metadata import run_facts
from dpo_pipeline.evaluation.shards import ShardScorer, refuse_elsewhere, refuse_join
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import LossArguments, LossLike, CheckedObjective
from dpo_pipeline.options import StatisticsOptions
from dpo_pipeline.sources import FrameLike, SourcePath, as_dataset, with_reference
from dpo_pipeline.storage import (
    Access,
    CredentialProvider,
    GrowingFile,
    Outputs,
    Publication,
    final_name,
    reading,
)
from dpo_pipeline.sums import BATCHES_PER_GROUP, Batching


def evaluate(
    pairs: FrameLike | SourcePath,
    beta: float | None = None,
    *,
    loss: LossLike = LOSS_NAME,
    loss_args: LossArguments | None = None,
    dialect: str | None = None,
    batch_size: int | None = None,
    batch_by: str | None = None,
    batches: str | os.PathLike[str] | None = None,
    by: str | Sequence[str] | None = None,
    histogram: bool = False,
    statistics: bool | StatisticsOptions = False,
    on_invalid: OnInvalid = "raise",
    max_invalid: float | None = None,
    columns: Mapping[str, str] | None = None,
    reference: FrameLike | SourcePath | None = None,
    on: str = PAIR_ID.name,
    reference_columns: Mapping[str, str] | None = None,
    contract: Schema | None = None,
    max_logp: float = MAX_LOGP,
    summary: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    engine: Engine = "local",
    storage_options: Mapping[str, Any] | None = None,
    credential_provider: CredentialProvider | Literal["auto"] | None = "auto",
    progress: ProgressCallback | None = None,
    cancel: Event | None = None,
) -> Evaluation:
    """Return the mean loss, reward accuracy and the other figures of preference pairs.

    The data is read once, in shards of bounded size. Rows that break the contract are read
    once more, to be listed, and only if there are some. Every figure comes from exact sums
    (`Summary` states the error), weighs each valid pair alike, and does not depend on
    batches, threads or files.

    Args:
        pairs: A dataframe of any kind, or Parquet: a path, a list, a glob or a folder.
        beta: KL strength, at least 0 (arXiv 2305.18290, Eq. 7); 0.1, or the dialect's.
        loss: Name of a loss, or names with weights; `dpo-pipeline losses` lists them.
        loss_args: Arguments of the losses, by name.
        dialect: "trl", "dpo-paper" or "rewardbench": the conventions of that system.
        batch_size: Also give means of consecutive batches of so many input rows; the last
            one may be short.
        batch_by: Also give means by the value of this column, in order of first appearance.
        batches: Write the batch means to this Parquet file instead of holding them; needed
            beyond a million batches.
        by: Also give the figures of each subset by these columns; null is a subset.
        histogram: Also give the histogram of margins (by subset, with `by`).
        statistics: Also give the statistics: intervals, baselines, calibration, findings. Pairs
            with one `prompt_id` are one sample; pairs without it are taken as independent, so
            that intervals are too narrow where prompts repeat and are not named.
        on_invalid: "raise" for an error that reports every broken rule, "exclude" to leave
            invalid pairs out of the means.
        max_invalid: Raise if more pairs than this are invalid: a count (int), or a share of
            all pairs (float up to 1).
        columns: Role to column, where names and aliases do not say it.
        reference: Where the reference's log-probs are, if not in `pairs`: a dataframe or Parquet.
        on: The key that joins the two: a column of both, each value once.
        reference_columns: As `columns`, for `reference`.
        contract: A pandera schema or model whose checks are added to the contract's.
        max_logp: Largest log-probability accepted, in nats; bf16 exports can reach 0.125.
        summary: Keep the summary document in this JSON file.
        report: Write the report, an HTML page, to this file; asks for statistics, and needs the
            extra `report`.
        overwrite: Replace `batches`, `summary` and `report` if they exist.
        engine: Where the work is done, as in `score_parquet`; the figures do not depend on it.
        storage_options: What Polars is to know of an object store: `aws_region` and so on.
        credential_provider: A function that gives credentials of the store, as in Polars; "auto"
            for those of the environment.
        progress: Called with a `Progress` now and then, maybe from another thread.
        cancel: Set it to stop the run.

    Raises:
        UsageError: An argument is not one that can be used, or asks for too many groups.
        ContractError: Columns, types or rows break the contract, or no pair is valid.
        StorageError: A file cannot be read or written.
        Cancelled: `cancel` was set.
    """
    checked_choice(on_invalid, ON_INVALID, max_invalid)
    asked = statistics_asked(statistics, report=report)
    objective = CheckedObjective.of(loss, beta, loss_args=loss_args, dialect=dialect)
    refuse_join(objective, reference)
    executor = executor_of(engine)
    refuse_elsewhere(executor, reference)
    access = Access(storage_options=storage_options, credential_provider=credential_provider)
    dataset = with_reference(
        as_dataset(pairs, columns, keys=(on,), access=access),
        reference,
        on=on,
        columns=columns,
        reference_columns=reference_columns,
    )
    if executor.elsewhere and not dataset.files:
        raise UsageError("a dataframe is evaluated here: give an engine the path of Parquet files")
    batching = Batching.of(batch_size=batch_size, batch_by=batch_by, to_file=batches is not None)
    with reading(dataset.name):
        binding = bind(
            dataset.frame,
            source=dataset.name,
            max_logp=max_logp,
            columns=columns,
            contract=contract,
            # Scores that are in the data already are made anew, whatever beta they had.
            adds=[added.name for added in SCORED],
            replace=True,
            needs=objective.needs,
        )
    watch = Watch(callback=progress, cancel=cancel)
    with Outputs(overwrite=overwrite, inputs=dataset.inputs, access=access) as publication:
        summary_file = None if summary is None else publication.stage(summary)
        report_file = None if report is None else publication.stage(report)
        batch_file = staged_batches(publication, batches, run_facts(binding, objective))
        wanted = Wanted.of(
            by=by,
            batching=batching,
            batch_file=batch_file,
            histogram=histogram,
            statistics=asked,
        )
        scorer = ShardScorer(
            binding=binding,
            objective=objective,
            batching=batching,
            row_bytes=dataset.row_bytes,
        )
        measured = measure(dataset, scorer, wanted=wanted, watch=watch, executor=executor)
        judge(measured, on_invalid=on_invalid, max_invalid=max_invalid, watch=watch)
        result = measured.result(measured.report(watch))
        if summary_file is not None:
            write_document(result, summary_file)
        if report_file is not None:
            write_report(result, report_file)
        dataset.check_objects()
        publication.commit(watch.check)
    warn_of(result.invalid)
    return result


def check(
    pairs: FrameLike | SourcePath,
    *,
    max_invalid: float | None = None,
    columns: Mapping[str, str] | None = None,
    reference: FrameLike | SourcePath | None = None,
    on: str = PAIR_ID.name,
    reference_columns: Mapping[str, str] | None = None,
    contract: Schema | None = None,
    max_logp: float = MAX_LOGP,
    storage_options: Mapping[str, Any] | None = None,
    credential_provider: CredentialProvider | Literal["auto"] | None = "auto",
    progress: ProgressCallback | None = None,
    cancel: Event | None = None,
) -> InvalidReport:
    """Check pairs against the contract, computing nothing else; arguments as in `evaluate`.

    Returns:
        The report. Invalid pairs are in it, and are no error unless there are more than
        `max_invalid`.

    Raises:
        ContractError: Columns or types break the contract, or no pair is valid.
        UsageError, StorageError, Cancelled: As `evaluate`.
    """
    checked_limit(max_invalid)
    access = Access(storage_options=storage_options, credential_provider=credential_provider)
    dataset = with_reference(
        as_dataset(pairs, columns, keys=(on,), access=access),
        reference,
        on=on,
        columns=columns,
        reference_columns=reference_columns,
    )
    with reading(dataset.name):
        binding = bind(
            dataset.frame,
            source=dataset.name,
            max_logp=max_logp,
            columns=columns,
            contract=contract,
        )
    watch = Watch(callback=progress, cancel=cancel)
    scorer = ShardScorer(binding=binding, objective=None, batching=None)
    measured = measure(dataset, scorer, wanted=Wanted(), watch=watch)
    judge(measured, on_invalid="exclude", max_invalid=max_invalid, watch=watch)
    report = measured.report(watch)
    warn_of(report)
    return report


def staged_batches(
    publication: Publication, batches: str | os.PathLike[str] | None, facts: Mapping[str, str]
) -> GrowingFile | None:
    """Stage the file of batch means, if there is to be one."""
    if batches is None:
        return None
    return GrowingFile(
        publication.stage(batches),
        os.fspath(batches),
        facts,
        rows_per_group=BATCHES_PER_GROUP,
    )


def write_document(result: Evaluation, hidden: str) -> None:
    """Write the summary document to where it was staged."""
    with reading(final_name(hidden)), open(hidden, "w", encoding="utf-8") as file:
        file.write(result.to_json() + "\n")


def statistics_asked(
    statistics: bool | StatisticsOptions,
    *,
    report: str | os.PathLike[str] | None,
) -> StatisticsOptions | None:
    """Return what statistics are asked for, by themselves or for the report.

    Raises:
        UsageError: There is to be a report, and the extra that it needs is not installed, or its
            path is `-`.
    """
    if report is not None:
        check_extra()
        check_page_path(report)
    if statistics is True or (report is not None and not statistics):
        return StatisticsOptions()
    return statistics or None


def write_report(result: Evaluation, hidden: str) -> None:
    """Write the report to where it was staged."""
    from dpo_pipeline.report import page_of, write_page

    write_page(page_of(result), hidden)


def warn_of(report: InvalidReport) -> None:
    """Issue a report's warnings, at the line that called the library."""
    for text in report.warnings:
        warnings.warn(f"{report.source}: {text}", DataWarning, stacklevel=3)
