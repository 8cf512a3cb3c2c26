"""Sums over one pass of the dataset, and the figures computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_REWARD,
    LOSS,
    N_PAIRS,
    N_VALID,
    PROMPT_ID,
    REJECTED_REWARD,
    REWARD_MARGIN,
    SOURCE_ROW,
)
from dpo_pipeline.contract import Binding, Offences, Places, RuleSet, listed
from dpo_pipeline.defaults import (
    GATHERED_ROWS,
    MAX_SUBSETS,
    MAX_SUBSETS_WITH_STATISTICS,
    NEIGHBOURS_ROWS,
    SHARD_ROWS,
    STATISTICS_ROWS,
)
from dpo_pipeline.engine import Executor, Watch, in_order
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation.estimates import Intervals, Statistics
from dpo_pipeline.evaluation.estimating import intervals_of, means_of_pairs, statistics_of
from dpo_pipeline.evaluation.evaluation_result import Evaluation
from dpo_pipeline.evaluation.gathering import Gathered, GatheredPart, Gathering
from dpo_pipeline.evaluation.planning import check_statistics, subset_keys
from dpo_pipeline.evaluation.shards import (
    FoundOffences,
    PartialSums,
    ShardScorer,
    ShardTask,
    Work,
    repeats_of_files,
)
from dpo_pipeline.exact import SMALL, lower_edge
from dpo_pipeline.invalid_report import Doubt, InvalidReport
from dpo_pipeline.losses import CheckedObjective, name_of_score, scores_to_check, with_scores_of
from dpo_pipeline.options import StatisticsOptions
from dpo_pipeline.sources import Dataset, Part
from dpo_pipeline.storage import GrowingFile, Target
from dpo_pipeline.sums import (
    BETA,
    BIN,
    N_UNMOVED,
    OBJECTIVE,
    SUMMARY_FIGURES,
    VALID,
    Batching,
    ClusterCounts,
    Repeats,
    RollUps,
    Sense,
    Summary,
    as_trainer,
    batch_table,
    doubts_of,
    figures,
    not_looked_for,
    suffix_of,
    tally,
    totals,
    with_objectives,
)
from dpo_pipeline.unpaired import (
    COMPLETION_FIGURES,
    columns_of_completions,
    completion_figures,
    completion_sums,
    reward_bin,
)


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
    sense: Sense
    repeats: Repeats | None
    suspects: tuple[ShardTask, ...]
    gathered: Gathered | None
    squares: pl.DataFrame | None
    prompts: ClusterCounts | None
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
        found = Offences(self.rules)
        total = sum(shard.rows or 0 for shard in self.suspects) or None
        tasks = [replace(shard, index=index) for index, shard in enumerate(self.suspects)]
        listing = FoundOffences(dataset=self.dataset, scorer=self.scorer, rules=self.rules)
        for shard, results in in_order(self.executor, listing, tasks, watch.check):
            for each in results:
                found.join(each)
            watch.step("listing", shard.rows or 0, total)
        return self._report(found)

    def report_of_quarantine(
        self, parts: Sequence[Part], targets: Sequence[Target], watch: Watch
    ) -> InvalidReport:
        """List the broken rules from the files of invalid pairs, one for each part."""
        found = Offences(self.rules)
        for part, target in zip(parts, targets, strict=True) if self.n_invalid else ():
            pairs = with_scores_of(target.scan(), self.scorer.objectives)
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
            doubts=self._doubts,
            notes=self.dataset.notes,
            not_looked_for=not_looked_for(self.sense, max_logp=self.scorer.binding.max_logp),
            row=self.scorer.binding.needs.row,
            made=self.dataset.made(),
        )

    @property
    def _doubts(self) -> tuple[Doubt, ...]:
        unmoved = None
        if self.subsets is not None:
            names = (pl.col(key).alias(name) for key, name in self.subset_names.items())
            unmoved = self.subsets.select(*names, N_VALID, N_UNMOVED)
        n_ties = None
        if len(self.objectives) == 1 and self.objectives[0].beta > 0.0:
            n_ties = int(self.totals["n_ties"].item())
        return doubts_of(
            self.sense,
            max_logp=self.scorer.binding.max_logp,
            subsets=unmoved,
            repeats=self.repeats,
            n_ties=n_ties,
        )

    def figures(self, sums: pl.DataFrame, keys: Mapping[str, str] | None = None) -> pl.DataFrame:
        """Divide sums: a row for each row and objective. `keys` gives key columns new names."""
        names = dict(keys or {})
        scored = self.scorer.objectives
        divided = completion_figures if self.wanted.unpaired else figures
        tables = [
            divided(sums, each, keys=list(names), suffix=suffix_of(i, scored)).rename(names)
            for i, each in enumerate(scored)
        ]
        return with_objectives(tables, scored) if self.wanted.by_objective else tables[0]

    @property
    def subset_names(self) -> dict[str, str]:
        """The columns of the subsets in sums, and in tables."""
        return dict(zip(subset_keys(self.wanted.by), self.wanted.labels, strict=True))

    @property
    def subset_figures(self) -> pl.DataFrame | None:
        """Figures by subset; None without subsets."""
        return None if self.subsets is None else self.figures(self.subsets, self.subset_names)

    @property
    def histogram(self) -> pl.DataFrame | None:
        """Valid pairs by bin of the margin, and by subset; None without bins."""
        if self.bins is None:
            return None
        return self.bins.filter(pl.col(BIN).is_not_null()).select(
            *(pl.col(key).alias(name) for key, name in self.subset_names.items()),
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
        binding, summary, statistics = self.scorer.binding, self.summary, None
        trained = as_trainer(self.wanted.batching, self.batches)
        if self.gathered is not None and self.wanted.statistics is not None:
            means = means_of_pairs(summary, self.squares, self.wanted.statistics.level)
            statistics = statistics_of(self.gathered, objective, self.wanted.statistics, means)
        return Evaluation(
            source=self.dataset.name,
            reference=self.dataset.joined,
            objective=objective,
            max_logp=binding.max_logp,
            columns=dict(binding.mapping),
            summary=summary,
            invalid=report,
            subsets=self.subset_figures,
            batches=None if trained is not None else self.batches,
            as_trainer=trained,
            histogram=self.histogram,
            intervals=self._intervals(summary, statistics),
            statistics=statistics,
        )

    def _intervals(self, summary: Summary, statistics: Statistics | None) -> Intervals:
        if statistics is not None:
            return statistics.intervals
        n_correct = int(self.totals["n_correct"].item())
        return intervals_of(
            summary, n_correct=n_correct, squares=self.squares, prompts=self.prompts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is measured beside the totals.

    `by_objective` says whether tables name the objective, even if there is one; `intervals`,
    whether the main figures have theirs; `looks_at_all`, whether what no two models give is looked
    for in all rows, and not in a sample of them. `unpaired` are the losses of completions, one a
    row, that are summed.
    """

    by: tuple[str, ...] = ()
    batching: Batching | None = None
    histogram: bool = False
    statistics: StatisticsOptions | None = None
    by_objective: bool = False
    looks_at_all: bool = False
    intervals: bool = False
    unpaired: tuple[CheckedObjective, ...] = ()

    @property
    def batch_keys(self) -> list[str]:
        """The column of the batches in sums, if there are batches."""
        return [] if self.batching is None else [self.batching.key]

    @property
    def is_keyed(self) -> bool:
        """Whether sums are by subset, batch or bin."""
        return bool(self.by or self.histogram or self.batching is not None)

    @property
    def only_batches(self) -> bool:
        """Whether rows are grouped by batches of consecutive rows alone."""
        in_order = self.batching is not None and self.batching.in_order
        others = self.by or self.histogram or self.statistics is not None
        return in_order and not others

    @property
    def first_rows(self) -> int:
        """Rows at the start that stay in one shard: neighbours are compared in them."""
        return NEIGHBOURS_ROWS if self.statistics is None else STATISTICS_ROWS

    @property
    def shard_rows(self) -> int:
        """Rows that one query reads."""
        rows = SHARD_ROWS if self.batching is None else self.batching.shard_rows
        return rows if self.statistics is None else min(rows, GATHERED_ROWS)

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns of the subsets as tables call them, beside those of figures."""
        own = COMPLETION_FIGURES if self.unpaired else SUMMARY_FIGURES
        taken = {*own, *((OBJECTIVE, BETA) if self.by_objective else ())}
        if self.statistics is not None:
            ends = ("_low", "_high")
            taken |= {n for n in self.by if n.startswith(("n_", "sum_", "p_")) or n.endswith(ends)}
        return tuple(f"by_{name}" if name in taken else name for name in self.by)

    def check(self, binding: Binding, dataset: Dataset) -> None:
        """Raise a UsageError if a grouping column is missing, nested, or there twice in tables."""
        columns = binding.columns
        if self.statistics is not None:
            check_statistics(self.statistics, columns, self.by)
        batch_by = self.batching.column if self.batching is not None else None
        for argument, name in [*(("by", name) for name in self.by), ("batches", batch_by)]:
            if name is None:
                continue
            source = binding.source_of(name) if argument == "by" else name
            if source not in columns:
                raise UsageError(
                    f"{argument}: {dataset.no_column(name, columns)}; "
                    f"the columns are {', '.join(columns)}"
                )
            if columns[source].is_nested():
                raise UsageError(f"{argument}: {name!r} is a {columns[source]}, not a plain value")
        if len(set(self.labels)) < len(self.labels):
            raise UsageError(f"by: {', '.join(self.labels)} are columns of one name in tables")


def work_of(
    dataset: Dataset,
    scorer: ShardScorer,
    objectives: tuple[CheckedObjective, ...],
    wanted: Wanted,
) -> Work:
    """Return what is done with each shard of a dataset."""
    binding, rules = scorer.binding, scorer.binding.rules
    if checked := scores_to_check(scorer.objectives, binding.max_logp):
        rules = rules.with_scores_in_range(checked)
    gathering = None
    if wanted.statistics is not None:
        gathering = Gathering(
            binding=binding,
            objective=objectives[0],
            by=wanted.labels,
            keys=subset_keys(wanted.by),
            judge=wanted.statistics.judge_columns,
            has_ids=not _reads_ids_apart(dataset, wanted),
        )
    return Work(
        rules=rules,
        sums=_partial_sums(dataset, scorer, rules, objectives, wanted),
        columns=_columns_of_rows(dataset, binding, objectives, wanted, gathering),
        gathering=gathering,
    )


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
    binding = scorer.binding
    dataset.check_keys()
    work, keys = work_of(dataset, scorer, objectives, wanted), subset_keys(wanted.by)
    sums = RollUps(
        by=wanted.by,
        subset_keys=keys,
        batch_keys=wanted.batch_keys,
        has_bins=wanted.histogram,
        most_subsets=MAX_SUBSETS if wanted.statistics is None else MAX_SUBSETS_WITH_STATISTICS,
        batches=batch_table(
            wanted.batching,
            objectives,
            by_objective=wanted.by_objective,
            n_rows=dataset.rows,
            file=batch_file,
        ),
        unique_batches=wanted.only_batches,
    )
    suspects, parts = list[ShardTask](), list[GatheredPart]()
    with batch_file or nullcontext():
        for shard, results in in_order(executor, work, work.tasks(), watch.check):
            n_invalid = sums.n_invalid
            for partial_sums, part in results:
                sums.add(partial_sums)
                if part is not None:
                    parts = work.held([*parts, part])
            if sums.n_invalid > n_invalid:
                suspects.append(shard)
            watch.step("evaluating", shard.rows or 0, dataset.rows)
        batches = sums.finished_batches()
    return Measured(
        dataset=dataset,
        rules=work.rules,
        objectives=objectives,
        scorer=scorer,
        wanted=wanted,
        totals=pl.DataFrame({N_PAIRS: [0], N_VALID: [0]}) if sums.totals is None else sums.totals,
        subsets=_sorted(sums.subsets, keys),
        batches=batches,
        bins=_sorted(sums.bins, [*keys, BIN]),
        sense=Sense.of_sums(sums.sense_row),
        repeats=replace(sums.repeats, is_of_all=work.sums.looks_at_all_of(sums.n_pairs))
        if work.sums.id_columns
        else repeats_of_files(dataset, binding, watch, looks_at_all=wanted.looks_at_all),
        suspects=tuple(suspects),
        gathered=work.finished(parts),
        squares=sums.squares,
        prompts=sums.prompts,
        executor=executor,
    )


def _reads_ids_apart(dataset: Dataset, wanted: Wanted) -> bool:
    """Whether ids are read of the few rows of files that need them, and not with all columns."""
    if wanted.statistics is None:
        return bool(dataset.files)
    is_long = (dataset.rows or 0) > GATHERED_ROWS and dataset.can_cut()
    return is_long and not dataset.has_step and not wanted.by


def _columns_of_rows(
    dataset: Dataset,
    binding: Binding,
    objectives: Sequence[CheckedObjective],
    wanted: Wanted,
    gathering: Gathering | None,
) -> list[str]:
    """Return the columns of the rows that are read, if sums are not made where they are read.

    A frame, or the join of one, is one shard of any length: it is summed chunk by chunk.
    """
    columns = [] if gathering is None else list(gathering.columns)
    is_one_shard = dataset.rows is None or not dataset.can_cut()
    has_own_sums = wanted.histogram or wanted.batching is not None
    if has_own_sums if gathering is not None else is_one_shard:
        scores = (CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN, LOSS)
        names = [name_of_score(name, each, objectives) for each in objectives for name in scores]
        roles = (*(t.count for t in binding.needs.texts), *([PROMPT_ID] * wanted.intervals))
        counts = [role.name for role in roles if role.name in binding.columns]
        columns += [*binding.needs.logps, *counts, *names, *columns_of_completions(wanted.unpaired)]
    batch = [] if wanted.batching is None else wanted.batching.columns
    ids = [] if _reads_ids_apart(dataset, wanted) else binding.needs.keys(binding.columns)
    more = [*subset_keys(wanted.by), VALID, *batch, *ids]
    return list(dict.fromkeys([*columns, *more])) if columns else []


def _partial_sums(
    dataset: Dataset,
    scorer: ShardScorer,
    rules: RuleSet,
    objectives: tuple[CheckedObjective, ...],
    wanted: Wanted,
) -> PartialSums:
    binding, batching = scorer.binding, wanted.batching
    keys, apart = subset_keys(wanted.by), dataset.has_step or _reads_ids_apart(dataset, wanted)
    by_prompt = wanted.intervals and PROMPT_ID.name in binding.columns
    extra = [*completion_sums(wanted.unpaired), *(batching.sums() if batching else ())]
    of_all = partial(totals, objectives=objectives, needs=binding.needs, extra=extra)
    by_key = partial(
        tally,
        objectives=objectives,
        needs=binding.needs,
        keys=[*wanted.batch_keys, *keys],
        in_order=wanted.only_batches and batching is not None and batching.are_long,
        by_bin=wanted.histogram,
        few=wanted.only_batches and batching is not None and batching.are_small,
        extra=extra,
        binned=reward_bin(wanted.unpaired[0]) if wanted.unpaired else None,
    )
    return PartialSums(
        dataset=dataset,
        scorer=scorer,
        subsets=dict(zip(keys, map(binding.source_of, wanted.by), strict=True)),
        rules=rules.with_small(scores_to_check(scorer.objectives, 0.0, lowest=-SMALL, limit=SMALL)),
        tally=by_key if wanted.is_keyed else of_all,
        has_squares=wanted.intervals and not by_prompt,
        by_prompt=by_prompt and wanted.statistics is None,
        is_keyed=wanted.is_keyed,
        looks_at_all=wanted.looks_at_all,
        id_columns=() if apart else binding.needs.keys(binding.columns),
        # The hashes of all prompts of a shard are in memory.
        most_rows=min(wanted.shard_rows, SHARD_ROWS // 4) if by_prompt else wanted.shard_rows,
        rolls_up=batching is None and not wanted.histogram,
    )


def _sorted(sums: pl.DataFrame | None, keys: Sequence[str]) -> pl.DataFrame | None:
    return None if sums is None else sums.sort(keys, nulls_last=True)
