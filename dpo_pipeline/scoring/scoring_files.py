"""`score_parquet`: pairs in, Parquet with rewards and losses out, with the figures as its result.

One pass checks and sums, a second one writes; invalid pairs are written by a third, only if there
are some. All outputs appear together at the end, the scored pairs last.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dpo_pipeline.arguments import checked_names, given, split_names
from dpo_pipeline.columns import INVALID, OF_INPUT
from dpo_pipeline.contract import Binding, RuleSet
from dpo_pipeline.defaults import LOSS_NAME, ON_INVALID_JOB
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import ColumnError, StorageError, UsageError
from dpo_pipeline.evaluation import (
    Documents,
    Evaluation,
    Groups,
    Measurement,
    run_facts,
    staged_batches,
    warn_of,
)
from dpo_pipeline.options import Batches, Scored, Subsets
from dpo_pipeline.plan import Facts, Output, Plan, planned
from dpo_pipeline.scoring.pair_writer import PairWriter
from dpo_pipeline.scoring.part_outputs import PartOutputs
from dpo_pipeline.sources import Dataset, checked_parquet_name, publication_of
from dpo_pipeline.storage import is_address
from dpo_pipeline.unpaired import CompletionEvaluation


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ScorePlan(Plan[Any]):
    """The plan of `score_parquet`.

    Scored pairs go to `sink` in `compression` and keep the columns `carried`. Invalid pairs go to
    `invalid`, if they are quarantined. `options` are the groups of options, under the parameters
    of the call.
    """

    measurement: Measurement
    parts: PartOutputs
    sink: str | os.PathLike[str]
    invalid: str | os.PathLike[str] | None
    carried: tuple[str, ...]
    compression: str
    options: Mapping[str, Any]
    outputs: tuple[Output, ...]

    @property
    def facts(self) -> Facts:
        """What a dry run shows."""
        return self.measurement.facts(
            "score_parquet", self.options, self.outputs, carried=self.carried
        )

    def writer(
        self, rules: RuleSet, n_valid: int, watch: Watch, *, whole: bool = False
    ) -> PairWriter:
        """Return what writes the parts; it keeps all columns if `whole`, as invalid pairs do.

        `n_valid` are the valid pairs that progress is told of.
        """
        made = self.measurement
        (objective,) = made.losses
        return PairWriter(
            dataset=made.dataset,
            rules=rules,
            objective=objective,
            scorer=made.scorer,
            names=in_files(made.binding, made.dataset) if whole else self.carried,
            watch=watch,
            n_valid=n_valid,
            facts=run_facts(made.binding, objective),
            compression=self.compression,
        )

    def run(self) -> Evaluation | CompletionEvaluation:
        """Read and score the pairs, publish all outputs together, and return the figures."""
        made, groups, parts = self.measurement, self.measurement.groups, self.parts
        watch, dataset = groups.watch, made.dataset
        with publication_of(groups.outputs, groups.access, dataset) as publication:
            apart = () if self.invalid is None else parts.staged(publication, self.invalid)
            documents = Documents(groups.outputs, publication)
            batch_file = staged_batches(
                publication, made.batches.file, made.binding, made.objectives
            )
            scored = parts.staged(publication, self.sink)
            measured = made.measured(watch, batch_file)
            writer = partial(self.writer, measured.rules, measured.n_valid, watch)
            publication.begin()
            write = partial(parts.write, measured=measured, watch=watch)
            manifest = write(writer().scored, scored, total=measured.n_valid, is_told=True)
            publication.describe(self.sink, manifest)
            if self.invalid is not None:
                invalid = writer(whole=True).invalid
                manifest = write(invalid, apart, total=measured.n_invalid, is_told=False)
                publication.describe(self.invalid, manifest)
            if self.invalid is not None and not made.scorer.is_coupled:
                report = measured.report_of_quarantine(parts.parts, apart, watch)
            else:
                report = measured.report(watch)
            result = made.evaluation(measured, report)
            documents.write(result)
            publication.commit(watch.check)
        warn_of(report)
        return result


@planned
def score_parquet(
    pairs: Any,
    sink: str | os.PathLike[str],
    beta: float | None = None,
    *,
    reference: Any = None,
    loss: Any = LOSS_NAME,
    by: Any = (),
    batches: Any = None,
    scored: Any = None,
    contract: Any = None,
    on_invalid: Any = "raise",
    outputs: Any = None,
    execution: Any = None,
) -> Plan[Any]:
    """Score pairs into a Parquet dataset, and return their figures.

    A file or a dataframe gives a file. A folder, a glob or a list of Parquet files gives a folder,
    file by file under the same relative paths, with a `_SUCCESS` marker once all are there. An
    error leaves no output. Added columns are those of `score`: Float64, in nats. With a loss of
    completions, rows are completions, and figures a `CompletionEvaluation`; those of a listwise
    loss come prompt by prompt.

    Args:
        pairs: As in `evaluate`.
        sink: The scored file or folder.
        beta: As in `evaluate`.
        reference: As in `evaluate`.
        loss: As in `evaluate`.
        by: As in `evaluate`.
        batches: As in `evaluate`.
        scored: `Scored`, or the input columns to carry along; all if not given.
        contract: As in `evaluate`.
        on_invalid: `OnInvalid`, or "raise" (nothing is written), "exclude" (invalid pairs are
            left out), or "quarantine" (they go to a file of their own, each with the rules that
            it breaks).
        outputs: As in `evaluate`, without a report.
        execution: As in `evaluate`.

    Raises:
        UsageError: An argument cannot be used.
        ContractError: Columns, types or rows break the contract, or no pair is valid.
        JoinError: The keys of the pairs and of the reference do not fit.
        StorageError: A file cannot be read or written, or an output exists already.
        EngineError: The engine cannot be reached, or lost its workers.
        Cancelled: The run was stopped.

    Examples:
        >>> import dpo_pipeline, os, polars as pl, tempfile
        >>> pairs = pl.DataFrame({"policy_chosen_logps": [-10.0], "policy_rejected_logps": [-14.0],
        ...                       "ref_chosen_logps": [-11.0], "ref_rejected_logps": [-12.0]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "scored.parquet")
        ...     figures = dpo_pipeline.score_parquet(pairs, path, beta=0.1)
        ...     round(pl.read_parquet(path)["loss"].item(), 4)
        0.5544
    """
    groups = Groups.of(locals(), actions=ON_INVALID_JOB)
    if groups.outputs.report is not None:
        raise UsageError("score_parquet writes no report: evaluate the pairs for it")
    quarantine = groups.on_invalid.action == "quarantine"
    apart = groups.on_invalid.file
    if apart is not None and not quarantine:
        raise UsageError(
            "OnInvalid(file=...) (--invalid) is the place of quarantined pairs: use "
            "OnInvalid('quarantine')"
        )
    if not isinstance(sink, (str, os.PathLike)):
        raise UsageError(f"sink must be a path, found {type(sink).__name__}")
    checked_parquet_name(sink)
    if quarantine and apart is None:
        apart = beside(sink)
    subsets, sizes, kept = given(Subsets, by), given(Batches, batches), given(Scored, scored)
    objective = groups.objective
    dataset = groups.opened(again=True, row=objective.needs.row)
    subsets = subsets.within(dataset.columns)
    reference_source = None if groups.reference is None else groups.reference.source
    for source in (groups.pairs.source, reference_source):
        check_outside(source, (sink, apart, sizes.file))
    measurement = Measurement.of_loss(
        groups,
        dataset,
        subsets,
        sizes,
        adds=[added.name for added in INVALID] if quarantine else (),
        replace_added=kept.replace,
        intervals=True,
    )
    binding = measurement.binding
    if quarantine:
        dataset.refuse_unread("quarantined pairs keep all columns: exclude invalid pairs instead")
    carried = carried_columns(kept.keep, binding, dataset)
    check_written(carried if apart is None else in_files(binding, dataset), binding, dataset)
    parts = PartOutputs.of(dataset, kept.part_rows, measurement.executor)
    if objective.is_listwise and parts.is_folder:
        raise UsageError(
            f"{objective} is of all completions of a prompt, and a prompt may lie in several "
            "files: write one first (`dpo-pipeline convert IN OUT.parquet`), and score it without "
            "part_rows"
        )
    publication = publication_of(groups.outputs, groups.access, dataset)
    checked: tuple[Output, ...] = ()
    checked += () if apart is None else (publication.check(apart, parts.relatives),)
    checked += Documents.checked(groups.outputs, publication)
    if sizes.file is not None:
        checked += (publication.check(sizes.file),)
    return ScorePlan(
        measurement=measurement,
        parts=parts,
        sink=sink,
        invalid=apart,
        carried=tuple(carried),
        compression=kept.compression,
        options=groups.as_given(by=subsets, batches=sizes, scored=kept),
        outputs=(*checked, publication.check(sink, parts.relatives)),
    )


def check_outside(source: object, targets: Sequence[str | os.PathLike[str] | None]) -> None:
    """Check that no output lies in an input folder."""
    if not isinstance(source, (str, os.PathLike)):
        return

    def whole(path: str | os.PathLike[str]) -> str:
        return os.fspath(path) if is_address(path) else os.path.realpath(path)

    folder = whole(source).rstrip("/") + "/"
    for target in targets if is_address(source) or os.path.isdir(source) else ():
        if target is not None and whole(target).startswith(folder):
            problem = "lies in the input folder, and a next run would read it"
            raise StorageError(os.fspath(target), problem)


def check_written(names: Sequence[str], binding: Binding, dataset: Dataset) -> None:
    """Raise a ColumnError if Polars would write what other readers of Parquet refuse."""
    wide = [
        f"{n}: it is {binding.columns[n]}" for n in names if "Int128" in f"{binding.columns[n]}"
    ]
    if wide:
        advice = "no other reader of Parquet knows this: name the columns to keep (--keep), or cast"
        raise ColumnError(dataset.name, (*wide, advice))


def beside(sink: str | os.PathLike[str]) -> str | Path:
    """Return where quarantined pairs go by default."""
    if is_address(sink):
        stem, ending = posixpath.splitext(os.fspath(sink).rstrip("/"))
        return f"{stem}.invalid{ending}"
    path = Path(sink)
    return path.with_name(f"{path.stem}.invalid{path.suffix}")


def in_files(binding: Binding, dataset: Dataset) -> list[str]:
    """Return the columns that the output files hold: all but hive columns."""
    # A hive column lives in the folder names, of the output as of the input.
    return [
        name
        for name in binding.columns
        if name not in dataset.hive and not name.startswith(OF_INPUT)
    ]


def carried_columns(
    keep: str | Sequence[str] | None, binding: Binding, dataset: Dataset
) -> list[str]:
    """Return the input columns that scored pairs keep; all of them by default."""
    names = in_files(binding, dataset)
    if keep is None:
        dataset.refuse_unread(
            "scored pairs carry all columns: name those to keep, in Scored(keep=[...]) or --keep"
        )
        return names
    wanted = split_names(checked_names("keep", keep), binding.columns)
    for name in wanted:
        if name not in binding.columns:
            raise UsageError(
                f"keep: {dataset.no_column(name, names)}; the columns are {', '.join(names)}"
            )
    return [name for name in names if name in wanted]
