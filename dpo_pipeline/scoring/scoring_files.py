"""`score_parquet`: Parquet in, Parquet out, with the summary as its result.

One reading checks and sums, a second one writes; invalid pairs are written by a third, only if
there are some. All outputs appear together at the end, the scored pairs last.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Literal

from dpo_pipeline.arguments import checked_choice, checked_names
from dpo_pipeline.columns import INVALID, PAIR_ID, SCORED, did_you_mean
from dpo_pipeline.contract import Binding, Schema, bind
from dpo_pipeline.defaults import LOSS_NAME, MAX_LOGP, ON_INVALID_JOB, OnInvalidJob
from dpo_pipeline.engine import Engine, ProgressCallback, Watch, executor_of
from dpo_pipeline.errors import StorageError, UsageError
from dpo_pipeline.evaluation import (
    Evaluation,
    ShardScorer,
    Wanted,
    judge,
    measure,
    refuse_elsewhere,
    refuse_join,
    run_facts,
    staged_batches,
    warn_of,
    write_document,
)
from dpo_pipeline.losses import LossArguments, LossLike, CheckedObjective
from dpo_pipeline.scoring.pair_writer import PairWriter
from dpo_pipeline.scoring.part_outputs import PartOutputs
from dpo_pipeline.sources import (
    Dataset,
    FrameLike,
    SourcePath,
    checked_parquet_name,
    open_dataset,
    with_reference,
)
from dpo_pipeline.storage import Access, CredentialProvider, Outputs, is_address, reading
from dpo_pipeline.sums import Batching


def checked_paths(source: object, sink: object) -> None:
    """Check that both are paths.

    Raises:
        UsageError: One is not.
    """
    several = source if isinstance(source, (list, tuple)) else [source]
    if not all(isinstance(path, (str, os.PathLike)) for path in several):
        raise UsageError(
            "source must be the path of Parquet files, found "
            f"{type(source).__name__}; for a dataframe there are score and evaluate"
        )
    if not isinstance(sink, (str, os.PathLike)):
        raise UsageError(f"sink must be a path, found {type(sink).__name__}")
    checked_parquet_name(sink)


def check_outside(source: object, targets: Sequence[object]) -> None:
    """Check that no output lies in an input folder.

    Raises:
        StorageError: One does.
    """
    if isinstance(source, str) and is_address(source):
        for target in targets:
            if is_address(target) and str(target).startswith(source.rstrip("/") + "/"):
                raise StorageError(
                    str(target), "lies in the input folder, and a next run would read it"
                )
    if not isinstance(source, (str, os.PathLike)) or not os.path.isdir(source):
        return
    folder = os.path.realpath(source)
    for target in targets:
        if isinstance(target, (str, os.PathLike)):
            path = os.fspath(target)
            if os.path.realpath(path).startswith(folder + os.sep):
                raise StorageError(path, "lies in the input folder, and a next run would read it")


def beside(sink: str | os.PathLike[str]) -> str | Path:
    """Return where quarantined pairs go if nothing is said."""
    if is_address(sink):
        stem, ending = posixpath.splitext(os.fspath(sink).rstrip("/"))
        return f"{stem}.invalid{ending}"
    path = Path(sink)
    return path.with_name(f"{path.stem}.invalid{path.suffix}")


def in_files(binding: Binding, dataset: Dataset) -> list[str]:
    """Return the columns that stand in the files of an output like the input."""
    # A hive column lives in the folder names, of the output as of the input.
    return [name for name in binding.columns if dataset.hive is None or name not in dataset.hive]


def carried_columns(
    keep: str | Sequence[str] | None, binding: Binding, dataset: Dataset
) -> list[str]:
    """Return the input columns that scored pairs have; all of them, if nothing is said.

    Raises:
        UsageError: There is no such column.
    """
    names = in_files(binding, dataset)
    if keep is None:
        return names
    wanted = checked_names("keep", keep)
    for name in wanted:
        if name not in binding.columns:
            raise UsageError(
                f"keep: {name!r} is not a column{did_you_mean(name, names)}; "
                f"the columns are {', '.join(names)}"
            )
    return [name for name in names if name in wanted]


def score_parquet(
    source: SourcePath,
    sink: str | os.PathLike[str],
    *,
    beta: float | None = None,
    loss: LossLike = LOSS_NAME,
    loss_args: LossArguments | None = None,
    dialect: str | None = None,
    on_invalid: OnInvalidJob = "raise",
    max_invalid: float | None = None,
    invalid: str | os.PathLike[str] | None = None,
    batch_size: int | None = None,
    batch_by: str | None = None,
    batches: str | os.PathLike[str] | None = None,
    by: str | Sequence[str] | None = None,
    histogram: bool = False,
    keep: str | Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    reference: FrameLike | SourcePath | None = None,
    on: str = PAIR_ID.name,
    reference_columns: Mapping[str, str] | None = None,
    contract: Schema | None = None,
    max_logp: float = MAX_LOGP,
    replace: bool = False,
    summary: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    part_rows: int | None = None,
    engine: Engine = "local",
    storage_options: Mapping[str, Any] | None = None,
    credential_provider: CredentialProvider | Literal["auto"] | None = "auto",
    progress: ProgressCallback | None = None,
    cancel: Event | None = None,
) -> Evaluation:
    """Score a Parquet dataset into another one, and return its figures.

    A file gives a file. A folder, a glob or a list gives a folder, file by file under the same
    relative paths, with a `_SUCCESS` marker once all are there. An error leaves no output.

    Args:
        source: Pairs: a path, a list of paths, a glob, or a folder (also hive-partitioned).
        sink: The scored file or folder.
        beta: KL strength, at least 0 (arXiv 2305.18290, Eq. 7); 0.1, or the dialect's.
        loss: Name of a loss, or names with weights; `dpo-pipeline losses` lists them.
        loss_args: Arguments of the losses, by name.
        dialect: "trl", "dpo-paper" or "rewardbench": the conventions of that system.
        on_invalid: "raise" (nothing is written), "exclude" (invalid pairs are left out), or
            "quarantine" (they go to `invalid`, each with the rules it breaks).
        max_invalid: Raise if more pairs than this are invalid: a count (int), or a share of
            all pairs (float up to 1).
        invalid: File or folder for quarantined pairs; beside `sink`, with `.invalid` before the
            ending, if not given.
        batch_size: Also give means of consecutive batches of so many input rows.
        batch_by: Also give means by the value of this column.
        batches: Parquet file for the batch means, instead of holding them in the result.
        by: Also give the figures of each subset by these columns.
        histogram: Also give the histogram of margins (by subset, with `by`).
        keep: Input columns to carry along, by canonical name; all if not given.
        columns: Role to column, where names and aliases do not say it.
        reference: Where the reference's log-probs are, if not in `source`: a dataframe or Parquet.
        on: The key that joins the two: a column of both, each value once.
        reference_columns: As `columns`, for `reference`.
        contract: A pandera schema or model whose checks are added to the contract's.
        max_logp: Largest log-probability accepted, in nats.
        replace: Overwrite input columns that have the name of an added one.
        summary: Keep the summary document in this JSON file.
        overwrite: Replace outputs that exist.
        part_rows: Cut each input file, between row groups, into parts of at most so many rows
            (or one row group): the output is then a folder, with `name-00000.parquet` and so on.
        engine: Where the work is done: "local", "ray" (on the Ray cluster that is connected, or
            that RAY_ADDRESS says, or on one that is started here), or an executor made with
            arguments, such as `ray_engine.RayExecutor`. The output does not depend on it.
        storage_options: What Polars is to know of an object store: `aws_region` and so on.
        credential_provider: A function that gives credentials of the store, as in Polars; "auto"
            for those of the environment.
        progress: Called with a `Progress` now and then, maybe from another thread.
        cancel: Set it to stop the run.

    Raises:
        UsageError: An argument is not one that can be used.
        ContractError: Columns, types or rows break the contract, or no pair is valid.
        StorageError: A file cannot be read or written, or an output exists already.
        Cancelled: `cancel` was set.
    """
    checked_choice(on_invalid, ON_INVALID_JOB, max_invalid)
    quarantine = on_invalid == "quarantine"
    if invalid is not None and not quarantine:
        raise UsageError("invalid is the place of quarantined pairs: use on_invalid='quarantine'")
    objective = CheckedObjective.of(loss, beta, loss_args=loss_args, dialect=dialect)
    checked_paths(source, sink)
    refuse_join(objective, reference)
    executor = executor_of(engine)
    refuse_elsewhere(executor, reference)
    batching = Batching.of(batch_size=batch_size, batch_by=batch_by, to_file=batches is not None)
    access = Access(storage_options=storage_options, credential_provider=credential_provider)
    dataset = with_reference(
        open_dataset(source, columns, access),
        reference,
        on=on,
        columns=columns,
        reference_columns=reference_columns,
    )
    for read in (source, reference):
        check_outside(read, (sink, invalid, batches))
    with reading(dataset.name):
        binding = bind(
            dataset.frame,
            source=dataset.name,
            max_logp=max_logp,
            columns=columns,
            contract=contract,
            adds=[added.name for added in (*SCORED, *(INVALID if quarantine else ()))],
            replace=replace,
            needs=objective.needs,
        )
    parts = PartOutputs.of(dataset, part_rows, executor)
    carried = carried_columns(keep, binding, dataset)
    watch = Watch(callback=progress, cancel=cancel)
    with Outputs(overwrite=overwrite, inputs=dataset.inputs, access=access) as publication:
        place = invalid or beside(sink)
        apart = parts.staged(publication, place) if quarantine else ()
        summary_file = None if summary is None else publication.stage(summary)
        batch_file = staged_batches(publication, batches, run_facts(binding, objective))
        scored = parts.staged(publication, sink)
        wanted = Wanted.of(by=by, batching=batching, batch_file=batch_file, histogram=histogram)
        scorer = ShardScorer(
            binding=binding,
            objective=objective,
            batching=batching,
            row_bytes=dataset.row_bytes,
        )
        measured = measure(dataset, scorer, wanted=wanted, watch=watch, executor=executor)
        judge(measured, on_invalid=on_invalid, max_invalid=max_invalid, watch=watch)
        writer = partial(
            PairWriter,
            dataset=dataset,
            binding=binding,
            rules=measured.rules,
            objective=objective,
            scorer=scorer,
            watch=watch,
            n_valid=measured.n_valid,
        )
        publication.begin()
        written = partial(parts.write, measured=measured, watch=watch)
        manifest = written(
            writer(names=carried).scored, scored, total=measured.n_valid, is_told=True
        )
        publication.describe(sink, manifest)
        if quarantine:
            whole = writer(names=in_files(binding, dataset))
            manifest = written(whole.invalid, apart, total=measured.n_invalid, is_told=False)
            publication.describe(place, manifest)
        if quarantine and not objective.is_of_batches:
            report = measured.report_of_quarantine(parts.parts, apart, watch)
        else:
            report = measured.report(watch)
        result = measured.result(report)
        if summary_file is not None:
            write_document(result, summary_file)
        dataset.check_objects()
        publication.commit(watch.check)
    warn_of(report)
    return result
