"""What one reading of a dataset gave, as merged partial sums, and what they amount to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Self

import polars as pl

from dpo_pipeline.arguments import checked_names
from dpo_pipeline.columns import N_PAIRS, N_VALID, SOURCE_ROW, did_you_mean
from dpo_pipeline.contract import Binding, Offences, Places, RuleSet, offences
from dpo_pipeline.defaults import (
    MAX_SUBSETS,
    MAX_SUBSETS_WITH_STATISTICS,
    SHARD_ROWS,
    STATISTICS_ROWS,
)
from dpo_pipeline.engine import Executor, Local, Watch, in_order, one_by_one
from dpo_pipeline.errors import ContractError, InvalidPairsError, UsageError
from dpo_pipeline.evaluation.estimates import Statistics
from dpo_pipeline.evaluation.estimating import statistics_of
from dpo_pipeline.evaluation.evaluation_result import Evaluation
from dpo_pipeline.evaluation.gathering import Gathered, Gathering
from dpo_pipeline.evaluation.shards import (
    FoundOffences,
    PartialSums,
    Scorer,
    ShardScorer,
    ShardTask,
)
from dpo_pipeline.exact import lower_edge
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import CheckedObjective, with_scores_if
from dpo_pipeline.options import StatisticsOptions
from dpo_pipeline.sources import Dataset, Part
from dpo_pipeline.storage import GrowingFile, Target, reading
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
    tally,
)

_SUBSET: Final = "__dpo_pipeline_subset_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one reading of a dataset gave; merged partial sums, from which all figures follow."""

    dataset: Dataset
    binding: Binding
    rules: RuleSet
    objective: CheckedObjective | None
    scorer: Scorer
    by: tuple[str, ...]
    totals: pl.DataFrame
    subsets: pl.DataFrame | None
    batches: pl.DataFrame | None
    bins: pl.DataFrame | None
    suspects: tuple[ShardTask, ...]
    """The shards that hold invalid pairs."""
    gathered: Gathered | None = None
    asked: StatisticsOptions | None = None
    executor: Executor = field(default_factory=Local)

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
        """List what broke, reading the shards with invalid pairs once more."""
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
        """List what broke from the files of invalid pairs, one for each part."""
        found = Offences(self.rules.rules)
        for part, target in zip(parts, targets, strict=True) if self.n_invalid else ():
            pairs = with_scores_if(target.scan(), self.objective)
            plan = offences(pairs, self.rules, row=SOURCE_ROW)
            with reading(target.name):
                for chunk in plan.collect_batches(maintain_order=True):
                    found.add(chunk, Places([(part.file.relative, part.file.rows)]))
            watch.step("listing", 0, None)
        return self._report(found)

    def _report(self, found: Offences) -> InvalidReport:
        return InvalidReport(
            source=self.dataset.name,
            n_pairs=self.n_pairs,
            n_invalid=self.n_invalid,
            broken=found.broken(),
            warnings=tuple(Health.of_sums(self.totals.row(0, named=True)).warnings()),
        )

    def summary(self) -> Summary:
        """Divide the sums over all pairs."""
        if self.objective is None:
            raise UsageError("a check has no figures")
        return Summary.of_row(figures(self.totals, self.objective).row(0, named=True))

    def result(self, report: InvalidReport) -> Evaluation:
        """Divide the sums."""
        if self.objective is None:
            raise UsageError("a check has no figures")
        subsets = None
        if self.subsets is not None:
            keys = subset_keys(self.by)
            subsets = figures(self.subsets, self.objective, keys=keys).rename(
                dict(zip(keys, self.by, strict=True))
            )
        histogram = None
        if self.bins is not None:
            histogram = self.bins.filter(pl.col(BIN).is_not_null()).select(
                *(pl.col(k).alias(n) for k, n in zip(subset_keys(self.by), self.by, strict=True)),
                bin=pl.col(BIN),
                lower=lower_edge(pl.col(BIN)),
                upper=lower_edge(pl.col(BIN) + 1),
                n_pairs=pl.col(N_PAIRS),
            )
        return Evaluation(
            source=self.dataset.name,
            reference=self.dataset.joined,
            objective=self.objective,
            max_logp=self.binding.max_logp,
            columns=dict(self.binding.mapping),
            summary=self.summary(),
            invalid=report,
            subsets=subsets,
            batches=self.batches,
            histogram=histogram,
            statistics=self._statistics(),
        )

    def _statistics(self) -> Statistics | None:
        if self.gathered is None or self.asked is None or self.objective is None:
            return None
        return statistics_of(self.gathered, self.objective, self.asked)


def judge(measured: Measured, *, on_invalid: str, max_invalid: float | None, watch: Watch) -> None:
    """Raise if what was measured must not pass.

    Raises:
        ContractError: There is no pair, or no valid one, or invalid ones are not allowed.
    """
    n_pairs, n_invalid = measured.n_pairs, measured.n_invalid
    if n_pairs == 0:
        raise ContractError(f"{measured.dataset.name}: it holds no pairs, so nothing was evaluated")
    limit = n_pairs if max_invalid is None else max_invalid
    allowed = limit * n_pairs if isinstance(limit, float) else limit
    if on_invalid == "raise" and n_invalid:
        raise InvalidPairsError(measured.report(watch))
    if n_invalid > allowed:
        raise InvalidPairsError(
            measured.report(watch),
            reason=f"{n_invalid:,} of {n_pairs:,} pairs are invalid, more than max_invalid "
            f"({max_invalid}) allows",
        )
    if n_invalid == n_pairs:
        raise InvalidPairsError(measured.report(watch), reason="no pair is valid")


def subset_keys(by: Sequence[str]) -> list[str]:
    """Return the names that columns of subsets have while sums are made."""
    return [f"{_SUBSET}{i}" for i in range(len(by))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an evaluation is to give beside the totals.

    Attributes:
        by: Columns of the subsets.
        batching: How pairs are put into batches.
        batch_file: Where their means go, if not into the result.
        histogram: Whether margins are binned.
        statistics: What statistics are to be made, if any.
    """

    by: tuple[str, ...] = ()
    batching: Batching | None = None
    batch_file: GrowingFile | None = None
    histogram: bool = False
    statistics: StatisticsOptions | None = None

    @classmethod
    def of(
        cls,
        *,
        by: str | Sequence[str] | None,
        batching: Batching | None,
        batch_file: GrowingFile | None,
        histogram: bool,
        statistics: StatisticsOptions | None = None,
    ) -> Self:
        """Make it from the arguments of a call."""
        return cls(
            by=checked_names("by", by),
            batching=batching,
            batch_file=batch_file,
            histogram=histogram,
            statistics=statistics,
        )

    @property
    def only_batches(self) -> bool:
        """Whether rows group by nothing but batches of consecutive rows."""
        in_order = self.batching is not None and self.batching.in_order
        others = self.by or self.histogram or self.statistics is not None
        return in_order and not others

    @property
    def is_faster_in_order(self) -> bool:
        """Whether the groups of a shard are best summed one after the other."""
        return self.only_batches and self.batching is not None and self.batching.are_long

    @property
    def shard_rows(self) -> int:
        """Rows that one query reads."""
        rows = SHARD_ROWS if self.batching is None else self.batching.shard_rows
        return rows if self.statistics is None else min(rows, STATISTICS_ROWS)

    @property
    def max_subsets(self) -> int:
        """Groups of `by` that there may be."""
        return MAX_SUBSETS if self.statistics is None else MAX_SUBSETS_WITH_STATISTICS

    def check(self, columns: pl.Schema) -> None:
        """Raise a UsageError if a column that is grouped by is not there or not plain."""
        if self.statistics is not None:
            self.statistics.check(columns, self.by)
        batch_by = self.batching.column if self.batching is not None else None
        for argument, name in [*(("by", name) for name in self.by), ("batch_by", batch_by)]:
            if name is None:
                continue
            if name not in columns:
                raise UsageError(
                    f"{argument}: {name!r} is not a column{did_you_mean(name, columns)}; "
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
    wanted: Wanted,
    watch: Watch,
    executor: Executor | None = None,
) -> Measured:
    """Read the dataset once, shard by shard, and add up its partial sums."""
    executor = Local() if executor is None else executor
    binding, objective = scorer.binding, scorer.objective
    wanted.check(binding.columns)
    batching = wanted.batching
    checked = () if objective is None else objective.columns_to_check(binding.max_logp)
    rules = binding.rules.with_scores_in_range(checked) if checked else binding.rules
    sums = _RollUps(wanted, objective=objective, n_rows=dataset.rows)
    plan_of = partial(
        tally,
        objective=objective,
        needs=binding.needs,
        is_wide=bool(checked),
        keys=[*sums.batch_keys, *sums.subset_keys],
        by_bin=wanted.histogram,
        extra=[*scorer.sums(), *(() if batching is None else batching.sums())],
    )
    partial_sums = PartialSums(
        dataset=dataset,
        scorer=scorer,
        subsets=dict(zip(sums.subset_keys, wanted.by, strict=True)),
        valid=rules.valid,
        tally=plan_of,
        most_rows=wanted.shard_rows,
        may_be_endless=wanted.only_batches,
        in_order=wanted.is_faster_in_order,
    )
    gathering, function = None, partial_sums.sums
    if wanted.statistics is not None and objective is not None:
        gathering = Gathering(
            schema=binding.columns,
            objective=objective,
            needs=binding.needs,
            is_wide=bool(checked),
            by=wanted.by,
            keys=sums.subset_keys,
            judge=wanted.statistics.judge_columns,
        )
        of_batches = () if batching is None else batching.columns
        of_losses = rules.valid.meta.root_names() if scorer.sums() else ()
        columns = [*gathering.columns, *sums.subset_keys, *of_batches, *of_losses, VALID]
        function = partial(partial_sums.rows, columns=list(dict.fromkeys(columns)))

    def tasks() -> Iterator[ShardTask]:
        for index, shard in enumerate(dataset.shards(scorer.rows(wanted.shard_rows))):
            yield ShardTask(
                index=index,
                first_row=shard.first_row,
                rows=shard.rows,
                seen=scorer.seen(shard.first_row),
            )

    suspects = []
    with wanted.batch_file or nullcontext():
        run = one_by_one if scorer.is_running else in_order
        for shard, results in run(executor, function, tasks(), watch.check):
            n_invalid = sums.n_invalid
            for part in results:
                if gathering is None:
                    sums.add(part)
                else:  # statistics are of rows in their order, which come here for it
                    gathering.add(part)
                    plan = plan_of(part.lazy(), valid=pl.col(VALID), in_order=partial_sums.in_order)
                    sums.add(plan.collect(engine="streaming"))
            scorer.note(shard.first_row + (shard.rows or 0), sums.totals)
            if sums.n_invalid > n_invalid:
                suspects.append(shard)
            watch.step("evaluating", shard.rows or 0, dataset.rows)
        batches = sums.finished_batches()
    return Measured(
        dataset=dataset,
        binding=binding,
        rules=rules,
        objective=objective,
        scorer=scorer,
        by=wanted.by,
        totals=sums.totals,
        subsets=sums.sorted(sums.subsets, sums.subset_keys),
        batches=batches,
        bins=sums.sorted(sums.bins, [*sums.subset_keys, BIN]),
        suspects=tuple(suspects),
        gathered=None if gathering is None else gathering.finish(),
        asked=wanted.statistics,
        executor=executor,
    )


class _RollUps:
    """Partial sums of what was read so far, added up each way that is wanted."""

    def __init__(
        self, wanted: Wanted, *, objective: CheckedObjective | None, n_rows: int | None
    ) -> None:
        self.subset_keys = subset_keys(wanted.by)
        self.batch_keys = [] if wanted.batching is None else [wanted.batching.key]
        self.totals = pl.DataFrame({N_PAIRS: [0], N_VALID: [0]})
        self.subsets: pl.DataFrame | None = None
        self.bins: pl.DataFrame | None = None
        self.n_invalid = 0
        self._wanted = wanted
        self._empty = True
        self._table: BatchTable | None = None
        if wanted.batching is not None and objective is not None:
            self._table = BatchTable(
                wanted.batching, objective=objective, n_rows=n_rows, file=wanted.batch_file
            )

    def add(self, part: pl.DataFrame) -> None:
        """Add the result of one `tally`."""
        self.n_invalid += int((part[N_PAIRS] - part[N_VALID]).sum())
        if self._wanted.histogram:
            keys = [*self.subset_keys, BIN]
            self.bins = self._merged(self.bins, part.select(*keys, N_PAIRS), keys)
            part = part.drop(BIN)
        if self._wanted.by:
            subsets = part.drop(self.batch_keys)
            self.subsets = self._merged(self.subsets, subsets, self.subset_keys)
            self._check_groups(self.subsets)
        if self._table is not None:
            self._table.add(part.drop(self.subset_keys), unique=self._wanted.only_batches)
        total = part.drop(self.batch_keys, self.subset_keys)
        self.totals = merge([total] if self._empty else [self.totals, total])
        self._empty = False

    def _check_groups(self, subsets: pl.DataFrame) -> None:
        if subsets.height > self._wanted.max_subsets:
            raise UsageError(
                f"by: {', '.join(self._wanted.by)} has more than {self._wanted.max_subsets:,} "
                "subsets; choose a coarser column, or score the pairs and group the output"
            )

    @staticmethod
    def _merged(old: pl.DataFrame | None, new: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
        return merge([new] if old is None else [old, new], keys)

    @staticmethod
    def sorted(sums: pl.DataFrame | None, keys: Sequence[str]) -> pl.DataFrame | None:
        """Sort by the keys, null last."""
        return None if sums is None else sums.sort(keys, nulls_last=True)

    def finished_batches(self) -> pl.DataFrame | None:
        """Return the table of batch means; None without one, or where it went to a file."""
        return None if self._table is None else self._table.finish()
