"""What calls share: options made ready, pairs opened and bound, documents staged and written."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, cast

import polars as pl

from dpo_pipeline.arguments import check_extra, check_page_path, checked_choice, given, split_names
from dpo_pipeline.columns import (
    PAIR_ID,
    PREFERENCES,
    SHOWN,
    Needs,
    RowOf,
    did_you_mean,
    needs_of_columns,
    row_of,
)
from dpo_pipeline.contract import Binding, bind
from dpo_pipeline.defaults import LOSS_NAME, MAX_LOGP, ON_INVALID, ROWS_SHOWN
from dpo_pipeline.engine import Executor, Watch, executor_of
from dpo_pipeline.errors import ContractError, DataWarning, UsageError
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.layouts import columns_of, open_rows, refuse_rows_of_completions
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.options import (
    Batches,
    Contract,
    Execution,
    Objective,
    OnInvalid,
    Outputs,
    Pairs,
    Reference,
    StatisticsOptions,
    Subsets,
)
from dpo_pipeline.plan import Input, Output, own_version
from dpo_pipeline.sources import (
    FORMATS,
    Dataset,
    checked_parquet_name,
    format_of,
)
from dpo_pipeline.storage import (
    METADATA_KEY,
    Access,
    GrowingFile,
    Outputs as Publication,
    final_name,
    reading,
    size_of,
)
from dpo_pipeline.sums import BATCHES_PER_GROUP


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The options that every call on pairs takes, as groups."""

    pairs: Pairs
    reference: Reference | None
    loss: Objective
    contract: Contract
    on_invalid: OnInvalid
    outputs: Outputs
    execution: Execution

    def showing(self, columns: Collection[str]) -> Self:
        """Return the same for these columns: what is to be shown is taken apart at commas."""
        names = split_names(self.outputs.shown, columns)
        return replace(self, outputs=replace(self.outputs, show=names))

    @classmethod
    def of(cls, asked: Mapping[str, Any], actions: Iterable[str] = ON_INVALID) -> Self:
        """Make groups from the arguments of a call, by the names of its parameters."""
        pairs, found = asked["pairs"], asked.get
        source = pairs if isinstance(pairs, Pairs) else Pairs(pairs)
        made = given(OnInvalid, found("on_invalid"))
        checked_choice(made.action, tuple(actions), made.at_most)
        batches = given(Batches, found("batches"))
        for file in (made.file, batches.file):
            if isinstance(file, (str, os.PathLike)):
                checked_parquet_name(file)
        return cls(
            pairs=source,
            reference=reference_of(source, found("reference")),
            loss=given(Objective, found("loss"), beta=found("beta")),
            contract=given(Contract, found("contract")),
            on_invalid=made,
            outputs=given(Outputs, found("outputs")),
            execution=given(Execution, found("execution")),
        )

    @property
    def _settings(self) -> Mapping[str, Any]:
        """Settings that reproduce the figures of a format's own tool, unless others are given."""
        return FORMATS[format_of(self.pairs)].settings

    @property
    def asked(self) -> Objective:
        """The objective as asked for, with the settings of the format of the pairs."""
        asked, own = self.loss, self._settings
        arguments = own.get("loss_args", {})
        if arguments and asked.loss in (LOSS_NAME, {LOSS_NAME: 1.0}):
            asked = replace(asked, arguments={**arguments, **asked.arguments})
        return replace(asked, dialect=asked.dialect or own.get("dialect"))

    @property
    def objective(self) -> CheckedObjective:
        """The checked objective."""
        return checked_objective(self.asked)

    @property
    def max_logp(self) -> float:
        """The largest log-probability accepted, in nats."""
        return max_logp_of(self.contract, self._settings.get("max_logp", MAX_LOGP))

    @property
    def access(self) -> Access:
        """How object stores are reached, by every input and output."""
        return Access.of(self.execution)

    @property
    def watch(self) -> Watch:
        """Receives progress, and stops the run."""
        return Watch(callback=self.execution.progress, cancel=self.execution.cancel)

    @property
    def executor(self) -> Executor:
        """Where the work is done."""
        address = self.execution.ray_address
        if address is None:
            return executor_of(self.execution.engine)
        if self.execution.engine != "ray":
            raise UsageError("--ray-address is of --engine ray: give both")
        from dpo_pipeline.engine import RayExecutor

        return RayExecutor(address=address)

    def opened(
        self,
        key: str | None = None,
        name: str = "pairs",
        *,
        again: bool = False,
        row: RowOf | None = "pair",
    ) -> Dataset:
        """Open the pairs, joined to their reference; no key and no value is read.

        `key` is a column for a further join by the caller; `name` is what reports call a dataframe;
        `again` says that the caller reads more columns after a first reading; `row` is what the
        call is of, None if it takes pairs and completions.
        """
        if self.pairs.pairing is not None and self.executor.elsewhere:
            raise UsageError(
                "pairs are made of the completions of a prompt, which an engine or a job may cut "
                f"between its shards: write the pairs first (`dpo-pipeline convert IN OUT.parquet "
                f"--pairing {self.pairs.pairing}`), and give it those"
            )
        keys = (PAIR_ID.name if self.reference is None else self.reference.on, key)
        return open_rows(
            self.pairs,
            row=row,
            reference=self.reference,
            access=self.access,
            keys=[each for each in keys if each is not None],
            name=name,
            again=again or key is not None or self.reference is not None,
            cancel=self.execution.cancel,
            by_shard=self.executor.elsewhere,
        )

    def needs_of(self, dataset: Dataset, objective: CheckedObjective) -> Needs:
        """Return what the contract asks of the columns: what the loss needs, if they fit it.

        Completions beside a loss of pairs are judged by their own contract.
        """
        needs = objective.needs
        columns = columns_of(dataset, self.pairs.columns)
        if needs.row == "pair" and row_of(dataset.columns, columns) == "completion":
            return needs_of_columns(dataset.columns, columns)
        return needs

    def bound(
        self,
        dataset: Dataset,
        needs: Needs,
        *,
        adds: Iterable[str] = (),
        replace_added: bool = True,
        groups_by: Iterable[str] = (),
    ) -> Binding:
        """Bind the contract to the columns of the pairs."""
        columns = columns_of(dataset, self.pairs.columns)
        if needs.row == "pair":
            refuse_rows_of_completions(dataset, columns)
        with reading(dataset.name):
            dataset.check_roles(columns, needs)
            return bind(
                dataset.frame,
                source=dataset.name,
                max_logp=self.max_logp,
                columns=columns,
                contract=self.contract.schema,
                unread=dataset.unread,
                adds=adds,
                replace=replace_added,
                groups_by=groups_by,
                needs=needs,
            )

    def as_given(self, **more: Any) -> dict[str, Any]:
        """Return the groups by parameter of the call, with `more` that only this call has."""
        own = {name: getattr(self, name) for name in type(self).__dataclass_fields__}
        return own | more


def refuse_unreadable(
    dataset: Dataset, executor: Executor, objectives: Iterable[CheckedObjective] = ()
) -> None:
    """Raise if there are no pairs, or if the engine or the loss cannot read them in shards."""
    where = "write the joined pairs first, with join_reference(...).sink_parquet"
    for each in objectives:
        if each.is_of_batches and dataset.has_step:
            raise UsageError(
                f"{each} is a loss of batches, for which the reference would be joined anew in "
                f"each shard: {where}"
            )
    if executor.elsewhere and not dataset.files:
        raise UsageError(
            f"{dataset.name} is no Parquet file: engines and jobs read no other; write it as "
            "Parquet first (`dpo-pipeline convert IN OUT.parquet`, or sink_parquet)"
        )
    if dataset.rows == 0:
        raise ContractError(f"{dataset.name}: it holds no pairs, so nothing was evaluated")


def checked_objective(asked: Objective) -> CheckedObjective:
    """Return the checked objective."""
    return CheckedObjective.of(
        asked.loss, asked.beta, loss_args=asked.arguments, dialect=asked.dialect
    )


def refuse_what_pairs_have(objective: CheckedObjective, subsets: Subsets, batches: Batches) -> None:
    """Raise a UsageError if a loss of completions is asked for what only pairs have."""
    asked_for = {
        "histograms of margins (--histogram)": subsets.histogram,
        "files of batch means (--batches)": batches.file is not None,
        "batches by a column (--batch-by)": batches.by is not None,
    }
    for what, is_asked in asked_for.items():
        if is_asked:
            raise UsageError(f"{objective}: this loss of completions has no {what}")


def needs_of_loss(
    groups: Groups,
    dataset: Dataset,
    subsets: Subsets,
    batches: Batches,
    statistics: StatisticsOptions | None,
) -> Needs:
    """Return the columns that the loss asks for, and refuse what a loss of completions lacks."""
    objective = groups.objective
    if objective.row == "completion":
        refuse_what_pairs_have(objective, subsets, batches)
        if statistics is not None and statistics != StatisticsOptions(level=statistics.level):
            raise UsageError(
                f"{objective}: a loss of completions takes the level of StatisticsOptions, and no "
                "more of it"
            )
    if not objective.is_listwise:
        return objective.needs
    if groups.executor.elsewhere:
        raise UsageError(
            f"{objective} is of all completions of a prompt, which an engine may cut between its "
            "shards: leave the engine out"
        )
    if statistics is not None:
        raise UsageError(
            f"{objective}: a listwise loss has no statistics and no report (statistics=, "
            "--statistics): rank has intervals by prompt"
        )
    better = needs_of_columns(dataset.columns, groups.pairs.columns).extras
    if not {*better} & {each.name for each in PREFERENCES}:
        names = ", ".join(each.name for each in PREFERENCES)
        raise UsageError(f"{objective} needs to know which completion is better: {names}")
    extras = tuple(dict.fromkeys([*objective.needs.extras, *better]))
    return replace(objective.needs, extras=extras)


def refuse_completions(objective: CheckedObjective, call: str) -> None:
    """Raise a UsageError if a loss of completions is given to a call of pairs."""
    if objective.row == "completion":
        raise UsageError(
            f"{objective} is a loss of completions, and {call} is of pairs: give a loss of pairs, "
            "and say how pairs are made of completions (pairing=, --pairing)"
        )


def reference_of(pairs: Pairs, reference: Any) -> Reference | None:
    """Return where the reference is; None if it is beside the policy's log-probs."""
    if reference is not None and pairs.reference is not None:
        raise UsageError("the reference is given twice: as reference= and in Pairs")
    found = pairs.reference if reference is None else reference
    return None if found is None else given(Reference, found)


def max_logp_of(contract: Contract, default: float = MAX_LOGP) -> float:
    """Return the largest log-probability accepted, in nats."""
    return default if contract.max_logp is None else contract.max_logp


def statistics_of_call(statistics: Any, outputs: Outputs) -> StatisticsOptions | None:
    """Return how statistics are made, if they or the report are asked for."""
    check_report(outputs)
    if statistics is None or statistics is False:
        is_asked = (
            outputs.report is not None or outputs.shown or outputs.worst not in {0, ROWS_SHOWN}
        )
        return StatisticsOptions() if is_asked else None
    return StatisticsOptions() if statistics is True else given(StatisticsOptions, statistics)


def check_report(outputs: Outputs) -> None:
    """Raise a UsageError if there is to be a report that cannot be made."""
    if outputs.report is not None:
        check_extra()
        check_page_path(outputs.report)


def inputs_of(dataset: Dataset) -> tuple[Input, ...]:
    """Return what is read of a dataset, and of the reference that is joined to it."""
    files = [
        Input(path=each.path, rows=each.rows, size=size_of(each.identity)) for each in dataset.files
    ]
    sizes = [size_of(each) for each in dataset.others.values()]
    size = sum(filter(None, sizes)) or None
    own = files or [Input(path=dataset.name, rows=None, size=size)]
    if dataset.reference is None:
        return tuple(own)
    joined = inputs_of(dataset.reference)
    return (*own, *(replace(each, is_reference=True) for each in joined))


def with_shown_rows(report: InvalidReport, dataset: Dataset, outputs: Outputs) -> InvalidReport:
    """Return the report with the columns that are to be shown, read for the listed rows alone."""
    starts = {file.relative: file.first_row for file in dataset.files}
    names = outputs.shown

    def read(places: Sequence[tuple[str | None, int]]) -> list[dict[str, Any]]:
        rows = [starts.get(file or "", 0) + row for file, row in places]
        with reading(dataset.name):
            found = dataset.rows_of(rows, names).drop("row")
        return [dict(zip(names, row, strict=True)) for row in found.rows()]

    return report.with_shown(names, read)


def lowest_shown(
    lowest: pl.DataFrame, dataset: Dataset, binding: Binding, outputs: Outputs
) -> pl.DataFrame:
    """Return the pairs with the smallest margins that are to be shown, with their columns."""
    few = lowest.head(outputs.worst)
    # Ids of long files are read for these rows alone.
    if PAIR_ID.name in binding.columns and PAIR_ID.name not in few.columns:
        shards = [dataset.shard(row, 1) for row in few["row"].to_list() or [0]]
        parts = [binding.prepare(each.frame).select(PAIR_ID.name) for each in shards]
        with reading(dataset.name):
            few = few.hstack(pl.concat(pl.collect_all(parts)).head(few.height))
    return with_shown(few, dataset, outputs.shown)


def with_shown(pairs: pl.DataFrame, dataset: Dataset, names: Sequence[str]) -> pl.DataFrame:
    """Return pairs with columns of theirs, which are read for their rows alone."""
    if not names or pairs.is_empty():
        return pairs
    with reading(dataset.name):
        read = dataset.rows_of(pairs["row"].to_list(), tuple(names))
    return pairs.hstack(read.select(f"{SHOWN}{name}" for name in names))


def paths_of(*pairs: Pairs) -> tuple[str, ...]:
    """Return the paths of sources as a command line takes them; none if one is no path."""
    sources = [each.source for each in pairs]
    if not all(isinstance(each, (str, os.PathLike)) for each in sources):
        return ()
    return tuple(str(os.fspath(each)) for each in sources)


class Result(Protocol):
    """A result that has a document."""

    def to_json(self) -> str:
        """Return the document."""
        ...


class Documents:
    """The summary and the report of a call: staged together, written once there is a result."""

    def __init__(self, outputs: Outputs, publication: Publication) -> None:
        self._summary = None if outputs.summary is None else publication.stage(outputs.summary)
        self._report = None if outputs.report is None else publication.stage(outputs.report)

    @staticmethod
    def checked(outputs: Outputs, publication: Publication) -> tuple[Output, ...]:
        """Check that both can be written; nothing is written yet."""
        paths = (outputs.summary, outputs.report)
        return tuple(publication.check(path) for path in paths if path is not None)

    def write(self, result: Result) -> None:
        """Write them to where they were staged."""
        if self._summary is not None:
            place = final_name(self._summary)
            with reading(place), open(self._summary, "w", encoding="utf-8") as file:
                file.write(result.to_json() + "\n")
        if self._report is not None:
            from dpo_pipeline.report import page_of, write_page

            write_page(page_of(cast(Any, result)), self._report)


def staged_batches(
    publication: Publication,
    file: str | os.PathLike[str] | None,
    binding: Binding,
    objectives: tuple[CheckedObjective, ...],
) -> GrowingFile | None:
    """Stage the file of batch means, if there is to be one."""
    if file is None:
        return None
    return GrowingFile(
        publication.stage(file),
        os.fspath(file),
        run_facts(binding, *objectives),
        rows_per_group=BATCHES_PER_GROUP,
    )


def run_facts(binding: Binding, *objectives: CheckedObjective) -> dict[str, str]:
    """Return the Parquet metadata of an output; no path, host or time, so that bytes repeat."""
    checked = [n for each in objectives for n in each.columns_to_check(binding.max_logp)]
    rules = binding.rules.with_scores_in_range(list(dict.fromkeys(checked)))
    computed: dict[str, Any] = {"objectives": [each.to_dict() for each in objectives]}
    if len(objectives) == 1:
        (one,) = objectives
        computed = {"loss": str(one), "beta": one.beta, "objective": one.to_dict()}
    facts = {
        "version": own_version(),
        **computed,
        "contract": {
            "max_logp": binding.max_logp,
            "rules": {rule.name: rule.requirement for rule in rules.rules},
        },
        "columns": dict(binding.mapping),
    }
    return {METADATA_KEY: json.dumps(facts, sort_keys=True)}


def warn_of(report: InvalidReport) -> None:
    """Issue a report's warnings, at the line that called the library."""
    for text in report.all_warnings:
        # Skips this function, the plan's run and the call itself.
        warnings.warn(f"{report.source}: {text}", DataWarning, stacklevel=4)


def subset_keys(by: Sequence[str]) -> list[str]:
    """Return the names that columns of subsets have while sums are made."""
    return [f"__dpo_pipeline_subset_{i}" for i in range(len(by))]


def check_statistics(asked: StatisticsOptions, columns: pl.Schema, by: Sequence[str]) -> None:
    """Raise a UsageError if options of statistics do not fit the columns or those of `by`."""
    if asked.weights and not by:
        raise UsageError("weights are of subsets: say by which columns (by=, --by)")
    if asked.sections is not None and len(by) != 1:
        raise UsageError(
            f"sections of {asked.sections} are made of subsets: say by which one column, "
            f"found by={list(by)!r}"
        )
    for name in asked.judge_columns:
        if name not in columns:
            raise UsageError(f"judge: {name!r} is not a column{did_you_mean(name, columns)}")
        if not columns[name].is_numeric():
            raise UsageError(f"judge: {name!r} is {columns[name]}, and must be a number")
