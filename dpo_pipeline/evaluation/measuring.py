"""Sums over one pass of the dataset, and the figures computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import polars as pl

from dpo_pipeline.columns import N_PAIRS, N_VALID, SOURCE_ROW
from dpo_pipeline.contract import Offences, Places, RuleSet, listed
from dpo_pipeline.defaults import (
    MAX_SUBSETS,
    MAX_SUBSETS_WITH_STATISTICS,
    SHARD_ROWS,
    STATISTICS_ROWS,
)
from dpo_pipeline.engine import Executor, Watch, in_order
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation.estimating import statistics_of
from dpo_pipeline.evaluation.evaluation_result import Evaluation
from dpo_pipeline.evaluation.gathering import Gathered, Gathering
from dpo_pipeline.evaluation.shards import (
    FoundOffences,
    PartialSums,
    ShardScorer,
    ShardTask,
)
from dpo_pipeline.exact import lower_edge
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import CheckedObjective, scores_to_check, with_scores_of
from dpo_pipeline.options import StatisticsOptions
from dpo_pipeline.sources import Dataset, Part
from dpo_pipeline.storage import GrowingFile, Target
from dpo_pipeline.sums import (
    BIN,
    SUMMARY_FIGURES,
    VALID,
    Batching,
    BatchTable,
    Health,
    Summary,
    figures,
    merge,
    suffix_of,
    tally,
    with_objectives,
)

_SUBSET: Final = "__dpo_pipeline_subset_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Merged partial sums over one pass of the dataset, from which all figures follow.

    `rules` are those that valid pairs keep, those of scores among them; `suspects` are the shards
    with invalid pairs. `totals` is one row of sums. Batches are means.
    """

    dataset: Dataset
    rules: RuleSet
    objectives: tuple[CheckedObjective, ...]
    scorer: ShardScorer
    wanted: Wanted
    totals: pl.DataFrame
    subsets: pl.DataFrame | None
    batches: pl.DataFrame | None
    bins: pl.DataFrame | None
    suspects: tuple[ShardTask, ...]
    gathered: Gathered | None
    executor: Executor

    @property
    def n_pairs(self) -> int:
        """Pairs read."""
        return int(self.totals[N_PAIRS].item() or 0)

    @property
    def n_invalid(self) -> int:
        """Pairs that break a rule or more."""
        return self.n_pairs - self.n_valid

    @property
    def n_valid(self) -> int:
        """Pairs that keep every rule."""
        return int(self.totals[N_VALID].item() or 0)

    def report(self, watch: Watch) -> InvalidReport:
        """List the broken rules, reading the shards with invalid pairs once more."""
        found = Offences(self.rules.rules)
        total = sum(shard.rows or 0 for shard in self.suspects) or None
        tasks = [replace(shard, index=index) for index, shard in enumerate(self.suspects)]
        listing = FoundOffences(
            dataset=self.dataset,
            scorer=self.scorer,
            rules=self.rules,
            places=Places((file.relative, file.rows) for file in self.dataset.files),
        )
        for shard, results in in_order(self.executor, listing, tasks, watch.check):
            for each in results:
                found.join(each)
            watch.step("listing", shard.rows or 0, total)
        return self._report(found)

    def report_of_quarantine(
        self, parts: Sequence[Part], targets: Sequence[Target], watch: Watch
    ) -> InvalidReport:
        """List the broken rules from the files of invalid pairs, one for each part."""
        found = Offences(self.rules.rules)
        for part, target in zip(parts, targets, strict=True) if self.n_invalid else ():
            pairs = with_scores_of(target.scan(), self.objectives)
            place = [] if part.file is None else [(part.file.relative, part.file.rows)]
            found.join(
                listed(pairs, self.rules, Places(place), read_from=target.name, row=SOURCE_ROW)
            )
            watch.step("listing", 0, None)
        return self._report(found)

    def _report(self, found: Offences) -> InvalidReport:
        return InvalidReport(
            source=self.dataset.name,
            n_pairs=self.n_pairs,
            n_invalid=self.n_invalid,
            broken=found.broken(),
            warnings=tuple(Health.of_sums(self.totals.row(0, named=True)).warnings()),
            notes=self.dataset.notes,
        )

    def figures(self, sums: pl.DataFrame, keys: Mapping[str, str] | None = None) -> pl.DataFrame:
        """Divide sums: a row for each row and objective. `keys` gives key columns new names."""
        names = dict(keys or {})
        tables = [
            figures(sums, each, keys=list(names), suffix=suffix_of(i, self.objectives)).rename(
                names
            )
            for i, each in enumerate(self.objectives)
        ]
        return with_objectives(tables, self.objectives) if self.wanted.by_objective else tables[0]

    @property
    def _subset_names(self) -> dict[str, str]:
        return dict(zip(subset_keys(self.wanted.by), self.wanted.by, strict=True))

    @property
    def subset_figures(self) -> pl.DataFrame | None:
        """Figures by subset; None without subsets."""
        return None if self.subsets is None else self.figures(self.subsets, self._subset_names)

    @property
    def histogram(self) -> pl.DataFrame | None:
        """Valid pairs by bin of the margin, and by subset; None without bins."""
        if self.bins is None:
            return None
        return self.bins.filter(pl.col(BIN).is_not_null()).select(
            *(pl.col(key).alias(name) for key, name in self._subset_names.items()),
            bin=pl.col(BIN),
            lower=lower_edge(pl.col(BIN)),
            upper=lower_edge(pl.col(BIN) + 1),
            n_pairs=pl.col(N_PAIRS),
        )

    @property
    def summary(self) -> Summary:
        """The figures over all pairs, for the one objective."""
        return Summary.of_row(self.figures(self.totals).row(0, named=True))

    def evaluation(self, report: InvalidReport) -> Evaluation:
        """Return the figures, for the one objective."""
        (objective,) = self.objectives
        binding = self.scorer.binding
        statistics = None
        if self.gathered is not None and self.wanted.statistics is not None:
            statistics = statistics_of(self.gathered, objective, self.wanted.statistics)
        return Evaluation(
            source=self.dataset.name,
            reference=self.dataset.joined,
            objective=objective,
            max_logp=binding.max_logp,
            columns=dict(binding.mapping),
            summary=self.summary,
            invalid=report,
            subsets=self.subset_figures,
            batches=self.batches,
            histogram=self.histogram,
            statistics=statistics,
        )


def subset_keys(by: Sequence[str]) -> list[str]:
    """Return the names that columns of subsets have while sums are made."""
    return [f"{_SUBSET}{i}" for i in range(len(by))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is measured beside the totals.

    `by_objective` says whether tables name the objective, even if there is one.
    """

    by: tuple[str, ...] = ()
    batching: Batching | None = None
    histogram: bool = False
    statistics: StatisticsOptions | None = None
    by_objective: bool = False

    @property
    def only_batches(self) -> bool:
        """Whether rows are grouped by batches of consecutive rows alone."""
        in_order = self.batching is not None and self.batching.in_order
        others = self.by or self.histogram or self.statistics is not None
        return in_order and not others

    @property
    def shard_rows(self) -> int:
        """Rows that one query reads."""
        rows = SHARD_ROWS if self.batching is None else self.batching.shard_rows
        return rows if self.statistics is None else min(rows, STATISTICS_ROWS)

    def check(self, columns: pl.Schema, dataset: Dataset) -> None:
        """Raise a UsageError if a grouping column is missing, nested or named like a figure."""
        if self.statistics is not None:
            self.statistics.check(columns, self.by)
        batch_by = self.batching.column if self.batching is not None else None
        for argument, name in [*(("by", name) for name in self.by), ("batches", batch_by)]:
            if name is None:
                continue
            if name not in columns:
                raise UsageError(
                    f"{argument}: {dataset.no_column(name, columns)}; "
                    f"the columns are {', '.join(columns)}"
                )
            if columns[name].is_nested():
                raise UsageError(f"{argument}: {name!r} is a {columns[name]}, not a plain value")
            if argument == "by" and name in SUMMARY_FIGURES:
                raise UsageError(f"by: {name!r} is the name of a figure; rename the column before")


def measure(
    dataset: Dataset,
    scorer: ShardScorer,
    *,
    objectives: tuple[CheckedObjective, ...],
    wanted: Wanted,
    watch: Watch,
    executor: Executor,
    batch_file: GrowingFile | None = None,
) -> Measured:
    """Read the dataset once, shard by shard, and add up its partial sums.

    Without objectives, only what needs no score is summed. `batch_file` is where batch means go,
    if not into the result.
    """
    binding, batching = scorer.binding, wanted.batching
    dataset.check_keys()
    checked = scores_to_check(scorer.objectives, binding.max_logp)
    rules = binding.rules.with_scores_in_range(checked) if checked else binding.rules
    sums = _RollUps(wanted, objectives=objectives, n_rows=dataset.rows, file=batch_file)
    plan_of = partial(
        tally,
        objectives=objectives,
        needs=binding.needs,
        max_logp=binding.max_logp,
        keys=[*sums.batch_keys, *sums.subset_keys],
        by_bin=wanted.histogram,
        extra=[] if batching is None else batching.sums(),
    )
    partial_sums = PartialSums(
        dataset=dataset,
        scorer=scorer,
        subsets=dict(zip(sums.subset_keys, wanted.by, strict=True)),
        valid=rules.valid,
        tally=plan_of,
        most_rows=wanted.shard_rows,
        may_be_endless=wanted.only_batches,
        in_order=wanted.only_batches and batching is not None and batching.are_long,
    )
    gathering, function = None, partial_sums.sums
    if wanted.statistics is not None:
        (objective,) = objectives
        gathering = Gathering(
            schema=binding.columns,
            objective=objective,
            needs=binding.needs,
            max_logp=binding.max_logp,
            by=wanted.by,
            keys=sums.subset_keys,
            judge=wanted.statistics.judge_columns,
        )
        of_batches = () if batching is None else batching.columns
        columns = [*gathering.columns, *sums.subset_keys, *of_batches, VALID]
        function = partial(partial_sums.rows, columns=list(dict.fromkeys(columns)))

    def tasks() -> Iterator[ShardTask]:
        for index, shard in enumerate(dataset.shards(scorer.rows(wanted.shard_rows))):
            yield ShardTask(index=index, first_row=shard.first_row, rows=shard.rows)

    suspects = []
    with batch_file or nullcontext():
        for shard, results in in_order(executor, function, tasks(), watch.check):
            n_invalid = sums.n_invalid
            for part in results:
                if gathering is None:
                    sums.add(part)
                else:  # statistics need the rows themselves, in order
                    gathering.add(part)
                    plan = plan_of(part.lazy(), valid=pl.col(VALID), in_order=partial_sums.in_order)
                    sums.add(plan.collect(engine="streaming"))
            if sums.n_invalid > n_invalid:
                suspects.append(shard)
            watch.step("evaluating", shard.rows or 0, dataset.rows)
        batches = sums.finished_batches()
    return Measured(
        dataset=dataset,
        rules=rules,
        objectives=objectives,
        scorer=scorer,
        wanted=wanted,
        totals=pl.DataFrame({N_PAIRS: [0], N_VALID: [0]}) if sums.totals is None else sums.totals,
        subsets=_sorted(sums.subsets, sums.subset_keys),
        batches=batches,
        bins=_sorted(sums.bins, [*sums.subset_keys, BIN]),
        suspects=tuple(suspects),
        gathered=None if gathering is None else gathering.finish(),
        executor=executor,
    )


class _RollUps:
    """Running sums: the totals and, if wanted, by subset, batch and bin."""

    def __init__(
        self,
        wanted: Wanted,
        *,
        objectives: tuple[CheckedObjective, ...],
        n_rows: int | None,
        file: GrowingFile | None,
    ) -> None:
        self.subset_keys = subset_keys(wanted.by)
        self.batch_keys = [] if wanted.batching is None else [wanted.batching.key]
        self.totals: pl.DataFrame | None = None
        self.subsets: pl.DataFrame | None = None
        self.bins: pl.DataFrame | None = None
        self.n_invalid = 0
        self._wanted = wanted
        self._table: BatchTable | None = None
        if wanted.batching is not None and objectives:
            self._table = BatchTable(
                wanted.batching,
                objectives=objectives,
                by_objective=wanted.by_objective,
                n_rows=n_rows,
                file=file,
            )

    def add(self, part: pl.DataFrame) -> None:
        """Add the result of one `tally`."""
        self.n_invalid += int((part[N_PAIRS] - part[N_VALID]).sum())
        if self._wanted.histogram:
            keys = [*self.subset_keys, BIN]
            self.bins = _merged(self.bins, part.select(*keys, N_PAIRS), keys)
            part = part.drop(BIN)
        if self._wanted.by:
            part_of_batches = part.drop(self.batch_keys)
            self.subsets = _merged(self.subsets, part_of_batches, self.subset_keys)
            without = self._wanted.statistics is None
            most = MAX_SUBSETS if without else MAX_SUBSETS_WITH_STATISTICS
            if self.subsets.height > most:
                raise UsageError(
                    f"by: {', '.join(self._wanted.by)} has more than {most:,} subsets; choose a "
                    "coarser column, or score the pairs and group the output"
                )
        if self._table is not None:
            self._table.add(part.drop(self.subset_keys), unique=self._wanted.only_batches)
        self.totals = _merged(self.totals, part.drop(self.batch_keys, self.subset_keys), ())

    def finished_batches(self) -> pl.DataFrame | None:
        """Return the table of batch means; None without one, or where it went to a file."""
        return None if self._table is None else self._table.finish()


def _merged(old: pl.DataFrame | None, new: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    return merge([new] if old is None else [old, new], keys)


def _sorted(sums: pl.DataFrame | None, keys: Sequence[str]) -> pl.DataFrame | None:
    return None if sums is None else sums.sort(keys, nulls_last=True)
