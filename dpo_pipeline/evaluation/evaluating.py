"""`evaluate` and `check`: pairs in, figures or broken rules out, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import (
    ADDED_TO,
    KL,
    LABEL,
    LOSS,
    PROMPT_ID,
    REWARD,
    SCORED,
)
from dpo_pipeline.contract import Binding, why_refused
from dpo_pipeline.defaults import CONFIDENCE_LEVEL, LOSS_NAME, STATISTICS_ROWS
from dpo_pipeline.engine import Executor, Watch
from dpo_pipeline.errors import ContractError, InvalidPairsError, UsageError
from dpo_pipeline.evaluation.evaluation_result import Evaluation
from dpo_pipeline.evaluation.measuring import Measured, Wanted, measure
from dpo_pipeline.evaluation.planning import (
    Documents,
    Groups,
    Result,
    inputs_of,
    lowest_shown,
    needs_of_loss,
    paths_of,
    refuse_unreadable,
    staged_batches,
    statistics_of_call,
    warn_of,
    with_shown,
    with_shown_rows,
)
from dpo_pipeline.evaluation.shards import ShardScorer
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.options import Batches, StatisticsOptions, Subsets
from dpo_pipeline.plan import Facts, Output, Plan, planned
from dpo_pipeline.sources import Dataset, publication_of
from dpo_pipeline.statistics import Estimate
from dpo_pipeline.storage import GrowingFile, reading
from dpo_pipeline.sums import Batching, BatchTable
from dpo_pipeline.unpaired import (
    ClusterMeans,
    CompletionEvaluation,
    CompletionSummary,
    Placements,
    area_of_bins,
    counts_of_bins,
    listwise_sums,
    reward_bin,
    with_clusters,
)

T = TypeVar("T", bound=Result)

_ONE: Final = "one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Opened and bound pairs, joined to their reference, and what is measured of them.

    `losses` are all that was asked for, and `objectives` those of pairs; `level` is that of the
    intervals of a loss of completions, if they are asked for.
    """

    groups: Groups
    dataset: Dataset
    binding: Binding
    losses: tuple[CheckedObjective, ...]
    objectives: tuple[CheckedObjective, ...]
    scorer: ShardScorer
    wanted: Wanted
    executor: Executor
    batches: Batches
    level: float | None = None

    @classmethod
    def of(
        cls,
        groups: Groups,
        dataset: Dataset,
        binding: Binding,
        objectives: tuple[CheckedObjective, ...],
        *,
        scored: tuple[CheckedObjective, ...] | None = None,
        by: Subsets | None = None,
        batches: Batches | None = None,
        statistics: StatisticsOptions | None = None,
        by_objective: bool = False,
        intervals: bool = False,
    ) -> Measurement:
        """Check the options against the columns.

        Objectives are summed; `scored` is given if rules look at scores that are not.
        """
        subsets, parts = by or Subsets(), batches or Batches()
        losses, unpaired, level = objectives, tuple[CheckedObjective, ...](), None
        if objectives and objectives[0].row == "completion":
            # Sums of a listwise loss are over prompts, and so are made apart.
            unpaired = scored = () if objectives[0].is_listwise else objectives
            level = None if statistics is None else statistics.level
            objectives, intervals, statistics = (), False, None
        batching = Batching.of(parts)
        wanted = Wanted(
            by=subsets.names,
            # Batches of completions give the KL term, and have no table of means.
            batching=batching if objectives == losses else None,
            histogram=subsets.histogram or (bool(unpaired) and not by_objective),
            unpaired=unpaired,
            statistics=statistics,
            by_objective=by_objective,
            looks_at_all=groups.contract.sense == "all",
            intervals=intervals,
        )
        wanted.check(binding, dataset)
        if parts.as_trainer is not None and by_objective:
            raise UsageError("as_trainer is of evaluate, for one loss")
        if parts.as_trainer is not None and any(
            each.is_of_batches for each in scored or objectives
        ):
            raise UsageError("as_trainer is of losses of pairs, and this is one of batches")
        executor = groups.executor
        refuse_unreadable(dataset, executor, scored or objectives)
        if wanted.batching is not None and parts.file is None:
            BatchTable.check_count(wanted.batching, dataset.rows)
        return cls(
            groups=groups,
            dataset=dataset,
            binding=binding,
            losses=losses,
            objectives=objectives,
            scorer=ShardScorer(
                binding=binding,
                objectives=objectives if scored is None else scored,
                batching=batching,
                row_bytes=dataset.row_bytes,
            ),
            wanted=wanted,
            executor=executor,
            batches=parts,
            level=level,
        )

    @classmethod
    def of_loss(
        cls,
        groups: Groups,
        dataset: Dataset,
        subsets: Subsets,
        batches: Batches,
        *,
        adds: Iterable[str] = (),
        replace_added: bool = True,
        **more: Any,
    ) -> Measurement:
        """Return what is measured for one loss, be it of pairs or of completions."""
        objective = groups.objective
        needs = needs_of_loss(groups, dataset, subsets, batches, more.get("statistics"))
        binding = groups.bound(
            dataset,
            needs,
            adds=[*(added.name for added in ADDED_TO[needs.row]), *adds],
            replace_added=replace_added,
            groups_by=subsets.names,
        )
        return cls.of(groups, dataset, binding, (objective,), by=subsets, batches=batches, **more)

    def evaluation(
        self, measured: Measured, report: InvalidReport
    ) -> Evaluation | CompletionEvaluation:
        """Return the figures of the one loss."""
        (objective,) = self.losses
        if objective.row == "pair":
            return measured.evaluation(report)
        summary = CompletionSummary.of(measured.totals, measured.wanted.unpaired)
        if objective.is_listwise:
            found, subsets = listwise_sums(
                self.dataset, self.binding, objective, self.groups.watch, by=self.wanted.by
            )
            summary, auc, error = replace(summary, **found), None, None
            intervals: dict[str, Estimate] = {}
        else:
            (auc, error, intervals), subsets = self._sure(measured), measured.subset_figures
            if subsets is not None and objective.is_of_batches:
                # A term is of a batch, whose completions may be of several subsets.
                subsets = subsets.with_columns(pl.lit(None, pl.Float64).alias(KL))
        return CompletionEvaluation(
            source=self.dataset.name,
            reference=self.dataset.joined,
            objective=objective,
            max_logp=self.binding.max_logp,
            columns=dict(self.binding.mapping),
            summary=summary,
            auc=auc,
            auc_error=error,
            invalid=report,
            subsets=subsets,
            intervals=intervals,
        )

    def _sure(
        self, measured: Measured
    ) -> tuple[Estimate | None, float | None, dict[str, Estimate]]:
        """Return the area under the curve of rewards by label, its error, and intervals of means.

        Where completions have prompts, or intervals are asked for, they are read once more.
        """
        if measured.bins is None:
            return None, None, {}
        counts, level = counts_of_bins(measured.bins), self.level or CONFIDENCE_LEVEL
        area, error = area_of_bins(counts, level)
        has_prompts = PROMPT_ID.name in self.binding.columns
        if self.level is None and not (has_prompts and area is not None):
            return area, error, {}
        places, means, n_read = Placements({_ONE: counts}), ClusterMeans(), 0
        named = reward_bin(self.losses[0]).alias(_ONE)
        prompts = [PROMPT_ID.name] * has_prompts
        with reading(self.dataset.read_from):
            for first, n in self.dataset.ranges(self.scorer.rows(self.wanted.shard_rows)):
                scored = self.scorer.scored(self.dataset.shard(first, n))
                valid = scored.filter(measured.rules.valid)
                rows = valid.select(*prompts, LABEL.name, LOSS, REWARD, named)
                for chunk in rows.collect_batches(maintain_order=True, chunk_size=STATISTICS_ROWS):
                    self.groups.watch.check()
                    clustered = with_clusters(chunk, n_read)
                    n_read += chunk.height
                    places.add(clustered)
                    if self.level is not None:
                        means.add(clustered)
        if has_prompts:
            area = places.area(_ONE, level)
        return area, error, {name: each for name, (each, _) in means.tested(level).items()}

    def measured(self, watch: Watch, batch_file: GrowingFile | None = None) -> Measured:
        """Read the pairs once, and raise if they must not pass."""
        made = measure(
            self.dataset,
            self.scorer,
            objectives=self.objectives,
            wanted=self.wanted,
            watch=watch,
            executor=self.executor,
            batch_file=batch_file,
        )
        if made.n_pairs == 0:
            made_of = "".join(f": {text}" for text in self.dataset.made())
            problem = f"it holds no pairs, so nothing was evaluated{made_of}"
            raise ContractError(f"{self.dataset.name}: {problem}")
        asked = self.groups.on_invalid
        noun = self.binding.needs.row
        reason = why_refused(asked, made.n_invalid, made.n_pairs, noun)
        if reason is not None:
            excluding = asked.action != "raise"
            # If no invalid pair is allowed, the report is reason enough.
            raise InvalidPairsError(
                made.report(watch), reason=reason if excluding else "", is_excluding=excluding
            )
        return made

    def facts(
        self, function: str, options: Mapping[str, Any], outputs: tuple[Output, ...], **more: Any
    ) -> Facts:
        """Return the facts of its plan."""
        batching, rows, joined = self.wanted.batching, self.dataset.rows, self.dataset.reference
        size = None if batching is None else batching.size
        return Facts(
            function=function,
            call=function.removesuffix("_parquet"),
            source=self.dataset.name,
            notes=self.dataset.told,
            inputs=inputs_of(self.dataset),
            paths=paths_of(self.groups.pairs),
            rows=rows,
            options=options,
            checked_later=() if joined is None else (f"that the keys of {joined.name} fit",),
            columns=dict(self.binding.mapping),
            max_logp=self.binding.max_logp,
            objectives=self.losses,
            by=self.wanted.by,
            statistics=self.wanted.statistics is not None,
            batch_size=size,
            batch_by=None if batching is None else batching.column,
            n_batches=None if size is None or rows is None else -(-rows // size),
            outputs=outputs,
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class MeasurementPlan(Plan[T]):
    """The plan of `check`, `evaluate` and `sweep`.

    `result` makes the result from what was measured and from which rules were broken; `options`
    are the groups under the parameters of the call.
    """

    function: str
    measurement: Measurement
    result: Callable[[Measured, InvalidReport], T]
    options: Mapping[str, Any]
    outputs: tuple[Output, ...]

    @classmethod
    def of(
        cls,
        function: str,
        measurement: Measurement,
        result: Callable[[Measured, InvalidReport], T],
        options: Mapping[str, Any],
    ) -> MeasurementPlan[T]:
        """Check the outputs of a measurement."""
        measurement.dataset.check_shown(measurement.groups.outputs.shown)
        groups, file = measurement.groups, measurement.batches.file
        publication = publication_of(groups.outputs, groups.access, measurement.dataset)
        outputs = Documents.checked(groups.outputs, publication)
        if file is not None:
            outputs += (publication.check(file),)
        return cls(
            function=function,
            measurement=measurement,
            result=result,
            options=options,
            outputs=outputs,
        )

    @property
    def facts(self) -> Facts:
        """What a dry run shows."""
        return self.measurement.facts(self.function, self.options, self.outputs)

    def run(self) -> T:
        """Read the pairs, write the documents, and return the result."""
        made, groups = self.measurement, self.measurement.groups
        watch, dataset = groups.watch, made.dataset
        with publication_of(groups.outputs, groups.access, dataset) as publication:
            documents = Documents(groups.outputs, publication)
            batch_file = staged_batches(
                publication, made.batches.file, made.binding, made.objectives
            )
            measured = made.measured(watch, batch_file)
            report = with_shown_rows(measured.report(watch), dataset, groups.outputs)
            result = self.result(measured, report)
            documents.write(result)
            publication.commit(watch.check)
        warn_of(report)
        return result


@planned
def evaluate(
    pairs: Any,
    beta: float | None = None,
    *,
    reference: Any = None,
    loss: Any = LOSS_NAME,
    by: Any = (),
    batches: Any = None,
    statistics: Any = False,
    contract: Any = None,
    on_invalid: Any = "raise",
    outputs: Any = None,
    execution: Any = None,
) -> Plan[Any]:
    """Return the mean loss, reward accuracy and the other figures of preference pairs.

    The data is read once, in shards of bounded size; shards with invalid pairs are read again, to
    list them. A null, NaN or infinite log-prob makes a pair invalid. Every figure comes from exact
    sums (`Summary` states the error), weighs each valid pair alike, and does not depend on
    batches, threads or files.

    Each argument is a group of options, or the short form named after it.

    Args:
        pairs: `Pairs`, or their source: a dataframe of any kind, or files (a path, a list, a
            glob, a folder, an address), one row a pair with four log-probs in nats.
        beta: KL strength, at least 0 (arXiv 2305.18290, Eq. 7); 0.1, or the dialect's.
        reference: `Reference`, or its source, if its log-probs are not in `pairs`.
        loss: `Objective`, or the name of a loss, or names with weights.
        by: `Subsets`, or columns: also give the figures of each subset; null is a subset.
        batches: `Batches`, or the size of a batch, or the file of their means.
        statistics: `StatisticsOptions`, or True: also intervals, baselines, calibration and
            findings. Pairs with one `prompt_id` are one sample; pairs without it are taken as
            independent, so that intervals are too narrow where prompts repeat and are not named.
        contract: `Contract`, or a pandera schema or model whose checks are added.
        on_invalid: `OnInvalid`, or "raise" or "exclude".
        outputs: `Outputs`, or the file of the summary document.
        execution: `Execution`, or the name of an engine.

    Raises:
        UsageError: An argument cannot be used, or makes too many subsets or batches.
        ContractError: Columns, types or rows break the contract, or no pair is valid.
        JoinError: The keys of the pairs and of the reference do not fit.
        StorageError: A file cannot be read or written.
        EngineError: The engine cannot be reached, or lost its workers.
        Cancelled: The run was stopped.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> pairs = pl.DataFrame({"policy_chosen_logps": [-10.0], "policy_rejected_logps": [-14.0],
        ...                       "ref_chosen_logps": [-11.0], "ref_rejected_logps": [-12.0]})
        >>> round(dpo_pipeline.evaluate(pairs, beta=0.1).summary.loss, 4)
        0.5544
    """
    groups = Groups.of(locals())
    asked = statistics_of_call(statistics, groups.outputs)
    objective = groups.objective
    subsets, parts = given(Subsets, by), given(Batches, batches)
    dataset = groups.opened(row=objective.needs.row)
    groups, subsets = groups.showing(dataset.columns), subsets.within(dataset.columns)
    asked = None if asked is None else asked.within(dataset.columns, subsets.names)
    # Scores in the data are computed again, whatever beta they had.
    measurement = Measurement.of_loss(
        groups, dataset, subsets, parts, statistics=asked, intervals=True
    )
    options = groups.as_given(by=subsets, batches=parts, statistics=asked)

    def result(measured: Measured, report: InvalidReport) -> Evaluation | CompletionEvaluation:
        origin = measurement.facts("evaluate", options, ()).origin
        made = replace(measurement.evaluation(measured, report), origin=origin)
        if isinstance(made, CompletionEvaluation) or made.statistics is None:
            return made
        gathered = made.statistics.gathered
        lowest = lowest_shown(gathered.lowest, dataset, measurement.binding, groups.outputs)
        worst = gathered.worst
        if worst is not None and groups.outputs.report is not None:
            worst = with_shown(worst, dataset, groups.outputs.shown)
        gathered = replace(gathered, lowest=lowest, worst=worst)
        return replace(made, statistics=replace(made.statistics, gathered=gathered))

    return MeasurementPlan.of("evaluate", measurement, result, options)


@planned
def check(
    pairs: Any,
    beta: float | None = None,
    *,
    reference: Any = None,
    loss: Any = LOSS_NAME,
    contract: Any = None,
    on_invalid: Any = "exclude",
    outputs: Any = None,
    execution: Any = None,
) -> Plan[InvalidReport]:
    """Check pairs against the contract of a loss, computing no figure; arguments as in `evaluate`.

    Completions, one a row, are checked against their own contract: the columns decide.

    Args:
        pairs: As in `evaluate`, or completions.
        beta: As in `evaluate`: a reward or a loss may be too large to be summed.
        reference: As in `evaluate`.
        loss: As in `evaluate`: it says which columns a pair needs.
        contract: As in `evaluate`.
        on_invalid: `OnInvalid` with `at_most`, the count or share of invalid pairs allowed.
        outputs: As in `evaluate`, without a report.
        execution: As in `evaluate`.

    Returns:
        The report. Invalid pairs are in it, and are no error unless there are more than
        `on_invalid` allows.

    Raises:
        ContractError: Columns or types break the contract, or no pair is valid.
        UsageError, JoinError, StorageError, EngineError, Cancelled: As `evaluate`.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> pairs = pl.DataFrame({"policy_chosen_logps": [9.0, -10.0], "ref_chosen_logps": -11.0,
        ...                       "policy_rejected_logps": -14.0, "ref_rejected_logps": -12.0})
        >>> dpo_pipeline.check(pairs).by_rule
        {'policy_chosen_logps.at_most': 1}
    """
    groups = Groups.of(locals())
    if groups.on_invalid.action != "exclude":
        raise UsageError("check leaves pairs as they are: say how many may be invalid (at_most)")
    objective = groups.objective
    dataset = groups.opened(row=None)
    groups = groups.showing(dataset.columns)
    needs = groups.needs_of(dataset, objective)
    binding = groups.bound(dataset, needs, adds=[added.name for added in SCORED])
    # Score only if sound log-probs can give a score too large to be summed.
    is_scored = needs.row == objective.needs.row
    scored = (objective,) if is_scored and objective.columns_to_check(binding.max_logp) else ()
    if scored and objective.is_of_batches:
        raise UsageError(f"{objective} is a loss of batches: evaluate checks its pairs")
    measurement = Measurement.of(groups, dataset, binding, (), scored=scored)
    return MeasurementPlan.of("check", measurement, lambda _, report: report, groups.as_given())
