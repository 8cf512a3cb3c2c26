"""What is done to a shard of a dataset, as pure functions that run in this or another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import polars as pl

from dpo_pipeline.columns import POLICY_CHOSEN, POLICY_REJECTED, REF_CHOSEN, REF_REJECTED
from dpo_pipeline.contract import Binding, Offences, Places, RuleSet, numbered, offences
from dpo_pipeline.defaults import COUPLED_SHARD_BYTES, COUPLED_SHARD_ROWS, STATISTICS_ROWS
from dpo_pipeline.engine import Executor
from dpo_pipeline.errors import UsageError
from dpo_pipeline.exact import exact_sum
from dpo_pipeline.losses import CheckedObjective, WithinBatches, logratio, with_scores_if
from dpo_pipeline.sources import Dataset, Part, Shard
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import VALID, Batching

_SEEN_SUM: Final = "seen_sum"
_SEEN_COUNT: Final = "seen_count"


@dataclass(slots=True, kw_only=True)
class ShardScorer:
    """Scores the shards of a dataset in the order of their rows.

    Attributes:
        binding: The contract.
        objective: What is computed; None prepares only.
        batching: How pairs are put into batches.
        row_bytes: Average bytes of a row, where it is known.
    """

    binding: Binding
    objective: CheckedObjective | None
    batching: Batching | None
    row_bytes: int = 0
    _seen: dict[int, tuple[int, int]] = field(default_factory=lambda: {0: (0, 0)})
    _held: tuple[int, pl.DataFrame] | None = None

    def __post_init__(self) -> None:
        if self._is_of_batches and (self.batching is None or self.batching.size is None):
            raise UsageError(
                f"{self.objective} is a loss of batches: give batch_size (--batch-size), the "
                "number of consecutive pairs that a training step saw"
            )

    @property
    def _is_of_batches(self) -> bool:
        return self.objective is not None and self.objective.is_of_batches

    def rows(self, otherwise: int) -> int:
        """Return how many rows a shard has: whole batches, if the loss depends on them."""
        if not self._is_of_batches or self.batching is None or self.batching.size is None:
            return otherwise
        size = self.batching.size
        fitting = min(COUPLED_SHARD_ROWS, COUPLED_SHARD_BYTES // max(self.row_bytes, 1))
        return max(size, fitting // size * size)

    @property
    def is_running(self) -> bool:
        """Whether a shard has to know the sums of all before it."""
        terms = () if self.objective is None else self.objective.terms
        return any("seen" in term.loss.compares for term in terms)

    def seen(self, first_row: int) -> tuple[int, int]:
        """Return what was seen of scores before a row: their quanta, and how many they are."""
        return self._seen.get(first_row, (0, 0))

    def scored(self, shard: Shard) -> pl.LazyFrame:
        """Return a shard under canonical names, with the batch of each row, and scored."""
        pairs = self.binding.prepare(shard.frame)
        if self.batching is not None:
            pairs = self.batching.with_key(pairs, shard.first_row)
        return with_scores_if(pairs, self.objective, self._within(shard))

    def scored_part(self, dataset: Dataset, part: Part) -> Iterator[tuple[pl.LazyFrame, int]]:
        """Yield pieces of a part, scored within batches, with their first rows in its file."""
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
        if self._held is None or self._held[0] != start:
            shard = replace(dataset.shard(start, self.rows(0)), seen=self.seen(start))
            self._held = start, self.scored(shard).collect(engine="streaming")
        return self._held[1]

    def sums(self) -> list[pl.Expr]:
        """Return what the shards to come have to know of this one, as partial sums."""
        if not self._is_of_batches:
            return []
        sound = self.binding.rules.valid
        # Those of the log-probs: the rewards' may be of another term, without a reference.
        scores = [
            pl.when(sound).then(logratio(pl.col(policy.name), pl.col(reference.name)))
            for policy, reference in ((POLICY_CHOSEN, REF_CHOSEN), (POLICY_REJECTED, REF_REJECTED))
        ]
        return [
            (exact_sum(scores[0]) + exact_sum(scores[1])).alias(_SEEN_SUM),
            (2 * sound.sum().cast(pl.Int64)).alias(_SEEN_COUNT),
        ]

    def note(self, end: int, totals: pl.DataFrame) -> None:
        """Remember what was seen of the rows before number `end`, `totals` being their sums."""
        if self._is_of_batches:
            self._seen[end] = (int(totals[_SEEN_SUM].item()), int(totals[_SEEN_COUNT].item()))

    def _within(self, shard: Shard) -> WithinBatches | None:
        if not self._is_of_batches or self.batching is None:
            return None
        return WithinBatches(
            key=self.batching.key,
            sound=self.binding.rules.valid,
            seen=shard.seen,
        )


def refuse_join(objective: CheckedObjective, reference: object) -> None:
    """Raise a UsageError if a loss of batches would have a reference joined to each shard."""
    if objective.is_of_batches and reference is not None:
        raise UsageError(
            f"{objective} is a loss of batches, for which the reference would be joined anew in "
            "each shard: write the joined pairs first, with join_reference(...).sink_parquet"
        )


def refuse_elsewhere(executor: Executor, reference: object) -> None:
    """Raise a UsageError if a reference would have to be joined in other processes."""
    if executor.elsewhere and reference is not None:
        raise UsageError(
            "on an engine the reference would be joined anew for each shard: write the joined "
            "pairs first, with join_reference(...).sink_parquet"
        )


class Scorer(Protocol):
    """What makes scored pairs of a shard."""

    def scored(self, shard: Shard) -> pl.LazyFrame:
        """Return the shard under canonical names, scored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """A shard to be read.

    Attributes:
        index: Its number among the tasks.
        first_row: The number of its first row in the whole dataset.
        rows: How many; None where only reading can tell.
        seen: Quanta of all scores of the rows before, and how many they are.
    """

    index: int
    first_row: int
    rows: int | None
    seen: tuple[int, int] = (0, 0)

    def of(self, dataset: Dataset) -> Shard:
        """Return the shard of the dataset that is meant."""
        return replace(dataset.shard(self.first_row, self.rows), seen=self.seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialSums:
    """Reads a shard into partial sums, or into the rows that statistics are made of.

    Attributes:
        dataset: What the shard is of.
        scorer: What scores it.
        subsets: Name of each key to the column that it is a copy of.
        valid: True where a pair counts.
        tally: From scored pairs to their sums.
        most_rows: Rows beyond which, or if they are unknown, a shard is read bit by bit.
        may_be_endless: Whether there can be as many sums as rows.
        in_order: Whether groups are best summed one after the other.
    """

    dataset: Dataset
    scorer: Scorer
    subsets: Mapping[str, str]
    valid: pl.Expr
    tally: Callable[..., pl.LazyFrame]
    most_rows: int
    may_be_endless: bool
    in_order: bool

    def sums(self, task: ShardTask) -> Iterator[pl.DataFrame]:
        """Yield the sums of one shard."""
        # A frame or a join is one shard however long, and so can end in any number of batches.
        endless = self.may_be_endless and not self._is_bounded(task)
        plan = self.tally(self._pairs(task), valid=self.valid, in_order=endless or self.in_order)
        with reading(self.dataset.read_from):
            if endless:
                yield from plan.collect_batches(maintain_order=True)
            else:
                yield plan.collect(engine="streaming")

    def rows(self, task: ShardTask, *, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield columns of the scored rows of one shard, with `VALID`."""
        rows = self._pairs(task).with_columns(self.valid.alias(VALID)).select(columns)
        with reading(self.dataset.read_from):
            if self._is_bounded(task):
                yield rows.collect(engine="streaming")
            else:
                yield from rows.collect_batches(maintain_order=True, chunk_size=STATISTICS_ROWS)

    def _is_bounded(self, task: ShardTask) -> bool:
        return task.rows is not None and task.rows <= self.most_rows

    def _pairs(self, task: ShardTask) -> pl.LazyFrame:
        return self.scorer.scored(task.of(self.dataset)).with_columns(
            pl.col(name).alias(key) for key, name in self.subsets.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundOffences:
    """Reads a shard into the offences against rules in it.

    Attributes:
        dataset: What the shard is of.
        scorer: What scores it.
        rules: The rules.
        places: The file and row of a row of the dataset.
    """

    dataset: Dataset
    scorer: Scorer
    rules: RuleSet
    places: Places

    def __call__(self, task: ShardTask) -> Iterator[Offences]:
        """Yield the offences of one shard."""
        found = Offences(self.rules.rules)
        pairs = self.scorer.scored(task.of(self.dataset))
        plan = offences(numbered(pairs, task.first_row), self.rules)
        with reading(self.dataset.read_from):
            for chunk in plan.collect_batches(maintain_order=True):
                found.add(chunk, self.places)
        yield found
