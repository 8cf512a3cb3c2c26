"""The work on one shard of a dataset: pure functions, to run in this or another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import polars as pl

from dpo_pipeline.columns import N_PAIRS, N_VALID, PROMPT_ID, REWARD_MARGIN
from dpo_pipeline.contract import Binding, Offences, Places, RuleSet, listed
from dpo_pipeline.defaults import (
    CLUSTERS_HELD,
    COUPLED_SHARD_BYTES,
    COUPLED_SHARD_ROWS,
    NEIGHBOURS_ROWS,
    PARTS_HELD,
    PROMPTS_AHEAD,
    STATISTICS_ROWS,
    SUMMED_CHUNK_ROWS,
)
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation.gathering import Gathered, GatheredPart, Gathering
from dpo_pipeline.losses import (
    NO_KL,
    CheckedObjective,
    WithinBatches,
    is_correct,
    with_scores_of,
)
from dpo_pipeline.sources import Dataset, Part, Shard
from dpo_pipeline.statistics import mixed, with_hashes
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import (
    CLUSTER,
    IS_CORRECT,
    N_CLEAN,
    VALID,
    Batching,
    ClusterCounts,
    Form,
    Partial,
    RepeatedKeys,
    Repeats,
    counts_in,
    form_of,
    hashed_ids,
    merge,
    of_bits,
    rolled_up,
    sampled,
    sense_columns,
    sense_of,
)

if TYPE_CHECKING:
    from dpo_pipeline.sums import PairArrays

_NUMBER: Final = "__dpo_pipeline_number"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardScorer:
    """Prepares and scores one shard at a time, so that batches are whole.

    Without objectives it prepares only. `row_bytes` is the average size of a row, if known.
    """

    binding: Binding
    objectives: tuple[CheckedObjective, ...]
    batching: Batching | None = None
    row_bytes: int = 0
    _held: dict[int, pl.DataFrame] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in self.objectives:
            if each.is_of_batches and (self.batching is None or self.batching.size is None):
                if each.row == "completion":
                    raise UsageError(NO_KL)
                raise UsageError(
                    f"{each} is a loss of batches: give the number of consecutive pairs that a "
                    "training step saw, as batches=SIZE (--batch-size)"
                )

    @property
    def _batch_size(self) -> int | None:
        """Rows of a batch, if a loss depends on the other pairs of its batch."""
        of_batches = any(each.is_of_batches for each in self.objectives)
        return self.batching.size if of_batches and self.batching is not None else None

    @property
    def is_coupled(self) -> bool:
        """Whether a loss depends on the other pairs of its batch."""
        return self._batch_size is not None

    def rows(self, otherwise: int) -> int:
        """Return how many rows a shard has: whole batches, if a loss depends on them."""
        size = self._batch_size
        if size is None:
            return otherwise
        fitting = min(COUPLED_SHARD_ROWS, COUPLED_SHARD_BYTES // max(self.row_bytes, 1))
        return max(size, fitting // size * size)

    def scored(self, shard: Shard) -> pl.LazyFrame:
        """Return a shard under canonical names, with the batch of each row, and scored."""
        pairs = self.binding.prepare(shard.frame)
        within = None
        if self.batching is not None:
            pairs = self.batching.with_key(pairs, shard.first_row)
            if self._batch_size is not None:
                within = WithinBatches(key=self.batching.key, sound=self.binding.rules.valid)
        return with_scores_of(pairs, self.objectives, within)

    def scored_part(self, dataset: Dataset, part: Part) -> Iterator[tuple[pl.LazyFrame, int]]:
        """Yield pieces of a part, scored within batches, with their first rows in its file."""
        if part.file is None or part.rows is None:  # a frame is not split, so all of it is held
            yield self.scored(dataset.shard(0, None)), 0
            return
        if part.rows == 0:
            yield self.scored(dataset.shard(0, self.rows(0))).limit(0), 0
        rows = self.rows(part.rows)
        end = part.first_row + part.rows
        for start in range(part.first_row // rows * rows, end, rows):
            first, last = max(start, part.first_row), min(start + rows, end)
            piece = self._collected(dataset, start).slice(first - start, last - first)
            yield piece.lazy(), first - part.file.first_row

    def _collected(self, dataset: Dataset, start: int) -> pl.DataFrame:
        # Files come in order, so the shard of one is often that of the next.
        if start not in self._held:
            self._held.clear()
            shard = self.scored(dataset.shard(start, self.rows(0)))
            self._held[start] = shard.collect(engine="streaming")
        return self._held[start]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """A shard to be read. `index` is its number among the tasks.

    `first_row` counts in the whole dataset; `rows` is None where only reading can tell.
    """

    index: int
    first_row: int
    rows: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialSums:
    """Reads a shard into partial sums, or into rows."""

    dataset: Dataset
    scorer: ShardScorer
    subsets: Mapping[str, str]  # name of each key to the column that it is a copy of
    rules: RuleSet
    tally: Callable[..., pl.LazyFrame]  # by key, or of all pairs
    has_squares: bool  # whether squares of the scores are summed, for intervals
    by_prompt: bool  # whether pairs are counted by prompt, for the interval of the accuracy
    is_keyed: bool  # whether sums are by key, so that those of all pairs are made beside them
    looks_at_all: bool  # whether the sums of `sense` are over all rows, and not a sample of them
    id_columns: tuple[str, ...]  # of ids that are looked at with the rows
    most_rows: int  # a shard of more rows, or of unknown length, is read in chunks
    rolls_up: bool  # whether sums follow from those by cluster, where there are some

    def tasks(self, *, cuts: bool) -> Iterator[ShardTask]:
        """Yield the shards; the first rows, which cost more, are one of their own if `cuts`."""
        index = 0
        for first, rows in self.dataset.ranges(self.scorer.rows(self.most_rows)):
            is_long = rows is not None and 0 < NEIGHBOURS_ROWS < rows and first == 0
            if cuts and is_long and not self.scorer.is_coupled and rows is not None:
                yield ShardTask(index=index, first_row=0, rows=NEIGHBOURS_ROWS)
                index, first, rows = index + 1, NEIGHBOURS_ROWS, rows - NEIGHBOURS_ROWS  # noqa: PLW2901
            yield ShardTask(index=index, first_row=first, rows=rows)
            index += 1

    def sums(self, task: ShardTask) -> Iterator[Partial]:
        """Yield the sums of one shard, read once, and again if the quick form does not fit it."""
        # Neighbours are compared in few rows, as this costs most.
        lagged = task.first_row == 0 and 0 < (task.rows or 0) <= NEIGHBOURS_ROWS
        pairs, first_row, valid = self._pairs(task), task.first_row, self.rules.valid
        runs = self._runs(first_row, task.rows)
        with reading(self.dataset.read_from):
            if runs is None:
                # The first million rows are not worth a second reading.
                form = Form.SMALL if self.looks_at_all else Form.ANY
                yield self.summed(pairs, first_row=first_row, valid=valid, form=form, lagged=lagged)
                return
            # The sample is read apart: a second plan on the same reading costs more.
            sample = [self._pairs(replace(task, first_row=f, rows=n)) for f, n in runs]
            sense, n_seen = self._sense(sample, valid), sum(n for _, n in runs)
            form = Form.CLEAN if sense is None else form_of(sense, n_seen)
            made = self.summed(pairs, first_row=first_row, valid=valid, form=form, has_sense=False)
            yield replace(made, sense=sense, ids=self._ids(sample))

    def of_rows(self, rows: pl.DataFrame, first_row: int, *, lagged: bool) -> Partial:
        """Return the sums of rows that `rows` read, `first_row` being the number of the first."""
        runs, valid = self._places(first_row, rows.height, lagged=lagged), pl.col(VALID)
        is_small = rows.height <= SUMMED_CHUNK_ROWS
        sums = partial(
            self.summed,
            rows.lazy(),
            first_row=first_row,
            valid=valid,
            form=Form.ANY if is_small else Form.SMALL,
            is_small=is_small,
        )
        if runs is None:
            return sums(lagged=lagged)
        sample = [rows.lazy().slice(f - first_row, n) for f, n in runs]
        sense, ids = self._sense(sample, valid, lagged=lagged), self._ids(sample)
        return replace(sums(has_sense=False), sense=sense, ids=ids)

    def rolled_up(
        self, rows: pl.DataFrame, first_row: int, pairs: PairArrays, *, lagged: bool
    ) -> Partial:
        """Return `of_rows` from sums that were made of the rows, for one objective."""
        needs, keys = self.scorer.binding.needs, list(self.subsets)
        (objective,) = self.scorer.objectives
        runs = self._places(first_row, rows.height, lagged=lagged)
        places = [(first_row, rows.height)] if runs is None else runs
        sample = [rows.lazy().slice(f - first_row, n) for f, n in places]
        table = rolled_up(pairs.clusters, objective, needs, keys)
        return Partial(
            sums=table if keys else table.hstack(pairs.equal),
            sense=self._sense(sample, pl.col(VALID), lagged=lagged),
            ids=self._ids(sample),
            squares=pairs.squares,
        )

    def summed(
        self,
        pairs: pl.LazyFrame,
        *,
        first_row: int,
        valid: pl.Expr,
        lagged: bool = False,
        are_wide: bool = False,
        form: Form = Form.SMALL,
        has_sense: bool = True,
        is_small: bool = False,
    ) -> Partial:
        """Return the sums of scored pairs: read once, and again if `form` or squares do not fit.

        `is_small` says that the pairs are few and in memory.
        """
        if self.is_keyed and form is Form.SMALL:
            form = Form.ANY
        rules, squares = replace(self.rules, valid=valid), "wide" if are_wide else "near"
        plan = partial(self.tally, pairs, rules=rules, form=form)
        if not self.is_keyed:
            moments = "neighbours" if lagged else "rows"
            plan = partial(plan, moments=moments if has_sense else None)
        plans = {"sums": plan(squares=squares if self.has_squares else None)}
        if self.is_keyed and has_sense:
            plans["sense"] = self._sense_of(pairs, valid, lagged=lagged)
        prompts = None
        if self.by_prompt:
            prompts = PromptCounts(
                pairs=pairs,
                valid=valid,
                dtype=self.scorer.binding.columns[PROMPT_ID.name],
                first_row=first_row,
                n_first=0 if is_small else _prompts_ahead(pairs),
            )
            plans["prompts"] = prompts.plan()
        if self.id_columns and has_sense:  # without, ids are those of the sample
            plans["ids"] = hashed_ids(pairs, self.id_columns)
        made = _collected(plans, "in-memory" if is_small else "streaming")
        table, sense = made["sums"], made.get("sense")
        fits = form is Form.ANY or table[N_CLEAN].sum() == table[N_PAIRS].sum()
        read = of_bits(table) if fits and self.has_squares and not are_wide else table
        if not fits or read is None:
            return self.summed(
                pairs,
                first_row=first_row,
                valid=valid,
                lagged=lagged,
                are_wide=are_wide or fits,
                form=form if fits else Form.SMALL if form is Form.CLEAN else Form.ANY,
                has_sense=has_sense,
                is_small=is_small,
            )
        table = read.drop(N_CLEAN, strict=False)
        if has_sense and not self.is_keyed:
            own = sense_columns(self.scorer.binding.needs, counts_in(pairs))
            table, sense = table.drop(own), table.select(own)
        n_invalid = int(table[N_PAIRS].sum()) - int(table[N_VALID].sum())
        return Partial(
            sums=table,
            sense=sense,
            prompts=None if prompts is None else prompts.counted(made["prompts"], n_invalid),
            ids=made["ids"].to_series() if "ids" in made else None,
        )

    def _runs(self, first_row: int, rows: int | None) -> list[tuple[int, int]] | None:
        """Return the runs of rows that `sense` is made of; None if they are all rows."""
        if self.looks_at_all or not rows or self.scorer.is_coupled:
            return None
        runs = sampled(first_row, rows)
        return None if runs == [(first_row, rows)] else runs

    def _places(self, first: int, rows: int, *, lagged: bool) -> list[tuple[int, int]] | None:
        """Return `_runs`; if `lagged`, the first run is the rows whose neighbours are compared."""
        runs = self._runs(first, rows)
        if not lagged or rows <= STATISTICS_ROWS:
            return runs
        (_, n), *others = runs or [(first, rows)]
        near = min(n, STATISTICS_ROWS)
        return [(first, near), *([(first + near, n - near)] if n > near else []), *others]

    def looks_at_all_of(self, n_rows: int) -> bool:
        """Return whether ids and what `sense` is made of are looked at in all of so many rows."""
        return self._runs(0, n_rows) is None

    def _ids(self, sample: Sequence[pl.LazyFrame]) -> pl.Series | None:
        if not self.id_columns or not sample:
            return None
        plans = [hashed_ids(pairs, self.id_columns) for pairs in sample]
        return pl.concat(each.collect(engine="streaming") for each in plans).to_series()

    def _sense(
        self, sample: Sequence[pl.LazyFrame], valid: pl.Expr, *, lagged: bool = False
    ) -> pl.DataFrame | None:
        plans = [
            self._sense_of(pairs, valid, lagged=lagged and not i) for i, pairs in enumerate(sample)
        ]
        return merge([each.collect(engine="streaming") for each in plans]) if plans else None

    def _sense_of(self, pairs: pl.LazyFrame, valid: pl.Expr, *, lagged: bool) -> pl.LazyFrame:
        needs = self.scorer.binding.needs
        return sense_of(pairs, valid=valid, needs=needs, lagged=lagged, has_equal=self.is_keyed)

    def rows(self, task: ShardTask, *, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield columns of the scored rows of one shard, with `VALID`."""
        rows = self._pairs(task).with_columns(self.rules.valid.alias(VALID)).select(columns)
        with reading(self.dataset.read_from):
            if self._is_bounded(task):
                # A chunk is read again as it is, when gathered sums are made of it.
                with pl.Config(streaming_chunk_size=SUMMED_CHUNK_ROWS):
                    bounded = rows.collect(engine="streaming")
                yield bounded
            else:
                yield from rows.collect_batches(maintain_order=True, chunk_size=STATISTICS_ROWS)

    def _is_bounded(self, task: ShardTask) -> bool:
        return task.rows is not None and task.rows <= self.most_rows

    def _pairs(self, task: ShardTask) -> pl.LazyFrame:
        shard = self.dataset.shard(task.first_row, task.rows)
        return self.scorer.scored(shard).with_columns(
            pl.col(name).alias(key) for key, name in self.subsets.items()
        )


def _collected(
    plans: Mapping[str, pl.LazyFrame], engine: Literal["in-memory", "streaming"]
) -> dict[str, pl.DataFrame]:
    # Columns of a chunk stay in the cache of a core from one expression to the next.
    with pl.Config(streaming_chunk_size=SUMMED_CHUNK_ROWS):
        # One plan alone is run as such: several share a reading, at some cost.
        if len(plans) == 1:
            return {name: plan.collect(engine=engine) for name, plan in plans.items()}
        return dict(zip(plans, pl.collect_all(list(plans.values()), engine=engine), strict=True))


def _prompts_ahead(pairs: pl.LazyFrame) -> int:
    prompts = pairs.select(PROMPT_ID.name).head(PROMPTS_AHEAD).collect(engine="streaming")
    return prompts.to_series().n_unique()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCounts:
    """Counts the valid pairs of a shard, and the correct ones, by prompt or by bag of prompts.

    `n_first` is a number of different prompts, of invalid pairs too, that the shard surely has.
    """

    pairs: pl.LazyFrame
    valid: pl.Expr
    dtype: pl.DataType
    first_row: int
    n_first: int

    def plan(self, *, has_nulls: bool = False, is_sure: bool = True) -> pl.LazyFrame:
        """Return the plan of the counts.

        `has_nulls` makes each pair without a prompt a cluster by itself; otherwise they are one.
        Unless `is_sure`, the first prompts may be those of invalid pairs, and bags are not made.
        """
        right = pl.when(self.valid).then(is_correct(pl.col(REWARD_MARGIN))).alias(IS_CORRECT)
        pairs = self.pairs.with_row_index(_NUMBER) if has_nulls else self.pairs
        rows = with_hashes(pairs, PROMPT_ID.name, self.dtype, into=CLUSTER)
        if has_nulls:
            number = pl.col(_NUMBER).cast(pl.UInt64) + pl.lit(self.first_row, dtype=pl.UInt64)
            rows = rows.with_columns(pl.col(CLUSTER).fill_null(mixed(mixed(number))))
        in_bags = is_sure and self.n_first > CLUSTERS_HELD
        return ClusterCounts.plan(rows.select(CLUSTER, right), in_bags=in_bags)

    def counted(self, table: pl.DataFrame, n_invalid: int) -> ClusterCounts:
        """Return the counts from what the plan gave; it reads again if they do not fit."""
        # Each invalid pair takes one prompt from the first ones at most.
        is_sure = self.n_first - n_invalid > CLUSTERS_HELD
        has_nulls = table[CLUSTER].null_count() > 0
        if has_nulls or is_sure != (self.n_first > CLUSTERS_HELD):
            again = self.plan(has_nulls=has_nulls, is_sure=is_sure)
            table = again.collect(engine="streaming")
        return ClusterCounts(table=table, is_exact=not is_sure).bagged_if_many()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is done with each shard: sums are made of it, or of `columns` of its rows.

    Statistics need the rows, and so do shards whose number of rows is not known.
    """

    rules: RuleSet
    sums: PartialSums
    columns: list[str]
    gathering: Gathering | None

    def __call__(self, task: ShardTask) -> Iterator[tuple[Partial, GatheredPart | None]]:
        """Yield the sums of one shard, chunk by chunk if rows are read, and what is gathered."""
        if not self.columns:
            yield from ((sums, None) for sums in self.sums.sums(task))
            return
        first = task.first_row
        for rows in self.sums.rows(task, columns=self.columns):
            lagged = first == 0 and NEIGHBOURS_ROWS > 0
            if self.gathering is None:
                yield self.sums.of_rows(rows, first, lagged=lagged), None
            else:
                part, pairs = self.gathering.part(rows, first)
                if self.sums.rolls_up:
                    yield self.sums.rolled_up(rows, first, pairs, lagged=lagged), part
                else:
                    yield self.sums.of_rows(rows, first, lagged=lagged), part
            first += rows.height

    def held(self, parts: Sequence[GatheredPart]) -> list[GatheredPart]:
        """Return what some parts gathered, as one of them if they are many."""
        return list(parts) if len(parts) < PARTS_HELD else [self._merged(parts)]

    def finished(self, parts: Sequence[GatheredPart]) -> Gathered | None:
        """Return the tables of all that was gathered; None without parts."""
        if self.gathering is None or not parts:
            return None
        return self.gathering.finished(parts[0] if len(parts) == 1 else self._merged(parts))

    def _merged(self, parts: Sequence[GatheredPart]) -> GatheredPart:
        if self.gathering is None:
            raise TypeError("nothing is gathered")
        return self.gathering.merged(parts)

    def tasks(self) -> Iterator[ShardTask]:
        """Yield the shards."""
        return self.sums.tasks(cuts=not self.columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundOffences:
    """Lists the offences of a shard."""

    dataset: Dataset
    scorer: ShardScorer
    rules: RuleSet

    def __call__(self, task: ShardTask) -> Iterator[Offences]:
        """Yield the offences of one shard."""
        pairs = self.scorer.scored(self.dataset.shard(task.first_row, task.rows))
        yield listed(
            pairs,
            self.rules,
            Places((file.relative, file.rows) for file in self.dataset.files),
            read_from=self.dataset.read_from,
            first_row=task.first_row,
        )


def repeats_of_files(
    dataset: Dataset, binding: Binding, watch: Watch, *, looks_at_all: bool
) -> Repeats | None:
    """Look at the ids of files, whose other columns are not read again; None without ids."""
    columns = [binding.mapping[name] for name in binding.needs.keys(binding.mapping)]
    if not columns or dataset.has_step:  # joined rows have each key once
        return None
    rows = dataset.rows or 0
    runs = [(0, rows)] if looks_at_all else sampled(0, rows)
    ids = RepeatedKeys(sum(n for _, n in runs), is_of_all=runs == [(0, rows)])
    with reading(dataset.name):
        for first, n in runs:
            for part in hashed_ids(dataset.shard(first, n).frame, columns).collect_batches():
                watch.check()
                ids.add(part.to_series())
    return ids.found
