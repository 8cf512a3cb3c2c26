"""Running sums of a dataset: the totals and, if wanted, by subset, batch and bin; repeated keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import N_CHOSEN, N_PAIRS, N_VALID
from dpo_pipeline.defaults import BAGS, CLUSTERS_HELD
from dpo_pipeline.errors import UsageError
from dpo_pipeline.sums.batches import BatchTable
from dpo_pipeline.sums.moments import square_columns
from dpo_pipeline.sums.sense import RepeatedKeys, Repeats
from dpo_pipeline.sums.summary import BIN, merge

CLUSTER: Final = "__dpo_pipeline_cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTable:
    """Sums by cluster.

    Attributes:
        by: Columns of the subsets.
        is_by_prompt: Whether clusters are prompts; otherwise each pair is one.
        is_exact: Whether each cluster has its own row; otherwise rows are bags of clusters.
        clusters: One row a cluster (or bag) and subset, sorted: the columns of `by`, `CLUSTER`
            (UInt64), and sums; those named `sum_` are in quanta.
    """

    by: tuple[str, ...]
    is_by_prompt: bool
    is_exact: bool
    clusters: pl.DataFrame


def across_subsets(clusters: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Return one row a cluster: `CLUSTER` and its sums over all subsets, in order of appearance."""
    sums = clusters.drop(by).group_by(CLUSTER, maintain_order=True)
    return sums.agg(pl.all().sum())


N_CORRECT: Final = "n_correct"
IS_CORRECT: Final = "is_correct"
"""Column of rows to be counted: null where a pair is invalid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCounts:
    """Counts by cluster, of few clusters one by one, of many in bags; merged in any order.

    `table` has the columns `CLUSTER`, `N_VALID` and `N_CORRECT`.
    """

    table: pl.DataFrame
    is_exact: bool

    @staticmethod
    def plan(rows: pl.LazyFrame, *, in_bags: bool) -> pl.LazyFrame:
        """Return the plan of a table of rows with `CLUSTER` (a hash) and `IS_CORRECT`."""
        key, right = pl.col(CLUSTER), pl.col(IS_CORRECT)
        counts = rows.group_by(key % BAGS if in_bags else key).agg(
            right.count().cast(pl.Int64).alias(N_VALID), right.sum().cast(pl.Int64).alias(N_CORRECT)
        )
        return counts.filter(pl.col(N_VALID) > 0)

    def merged(self, other: ClusterCounts) -> ClusterCounts:
        """Add the counts of other rows."""
        both = (self, other)
        is_exact = all(each.is_exact for each in both)
        rows = pl.concat([each.table for each in both])
        return ClusterCounts(
            table=_added(rows, is_exact=is_exact), is_exact=is_exact
        ).bagged_if_many()

    def bagged_if_many(self) -> ClusterCounts:
        """Put clusters into bags if they are more than are held one by one."""
        if not self.is_exact or self.table.height <= CLUSTERS_HELD:
            return self
        return ClusterCounts(table=_added(self.table, is_exact=False), is_exact=False)


def _added(rows: pl.DataFrame, *, is_exact: bool) -> pl.DataFrame:
    # The bag of a bag is itself.
    key = pl.col(CLUSTER) if is_exact else pl.col(CLUSTER) % BAGS
    return rows.group_by(key).agg(pl.all().sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """Sums of some rows, by key if there are keys; those of `sense`, if looked at; hashed ids.

    `prompts` are counts by prompt, where the interval of the accuracy needs them; `squares` are
    sums of squares, if they are not among the sums.
    """

    sums: pl.DataFrame
    sense: pl.DataFrame | None
    ids: pl.Series | None
    prompts: ClusterCounts | None = None
    squares: pl.DataFrame | None = None


class RollUps:
    """Adds up the partial sums of a dataset.

    Attributes:
        totals: One row of sums over all pairs; None before the first rows.
        subsets: Sums by subset.
        bins: Pairs by subset and bin of the margin.
        squares: One row of `square_sums`; None without them.
        prompts: Counts by prompt; None without them.
        n_invalid: Pairs that break a rule.
    """

    def __init__(
        self,
        *,
        by: Sequence[str],
        subset_keys: Sequence[str],
        batch_keys: Sequence[str],
        has_bins: bool,
        most_subsets: int,
        batches: BatchTable | None,
        unique_batches: bool,
    ) -> None:
        """Start without rows.

        Args:
            by: Columns of the subsets, as errors call them.
            subset_keys: Their names in the sums.
            batch_keys: The column of the batches in the sums, if there are batches.
            has_bins: Whether sums are by bin.
            most_subsets: How many there may be.
            batches: The table of batch means.
            unique_batches: Whether a batch has one row in the sums of a shard.
        """
        self.totals: pl.DataFrame | None = None
        self.subsets: pl.DataFrame | None = None
        self.bins: pl.DataFrame | None = None
        self.squares: pl.DataFrame | None = None
        self.prompts: ClusterCounts | None = None
        self.n_invalid = 0
        self._sense: pl.DataFrame | None = None
        self._ids = RepeatedKeys()
        self._by = by
        self._subset_keys = list(subset_keys)
        self._batch_keys = list(batch_keys)
        self._has_bins = has_bins
        self._most_subsets = most_subsets
        self._batches = batches
        self._unique_batches = unique_batches

    @property
    def n_pairs(self) -> int:
        """Rows so far."""
        return 0 if self.totals is None else int(self.totals[N_PAIRS].item())

    @property
    def sense_row(self) -> dict[str, Any]:
        """The sums that `Sense` is made from."""
        found = {N_VALID: 0} if self.totals is None else self.totals.row(0, named=True)
        return ({} if self._sense is None else self._sense.row(0, named=True)) | found

    @property
    def repeats(self) -> Repeats:
        """What the ids so far amount to."""
        return self._ids.found

    def add(self, partial: Partial) -> None:
        """Add the sums of some rows."""
        part = partial.sums
        if partial.sense is not None:
            self._sense = _merged(self._sense, partial.sense, ())
        if partial.ids is not None:
            self._ids.add(partial.ids)
        if partial.prompts is not None:
            known = self.prompts
            self.prompts = partial.prompts if known is None else known.merged(partial.prompts)
        squares = partial.squares
        if names := square_columns(part.columns):
            squares, part = part.select(names), part.drop(names)
        if squares is not None:
            self.squares = _merged(self.squares, squares, ())
        self.n_invalid += int((part[N_PAIRS] - part[N_VALID]).sum())
        if self._has_bins:
            keys = [*self._subset_keys, BIN]
            counts = [name for name in (N_PAIRS, N_CHOSEN) if name in part.columns]
            self.bins = _merged(self.bins, part.select(*keys, *counts), keys)
            part = part.drop(BIN)
        if self._subset_keys:
            of_subsets = part.drop(self._batch_keys)
            self.subsets = _merged(self.subsets, of_subsets, self._subset_keys)
            if self.subsets.height > self._most_subsets:
                raise UsageError(
                    f"by: {', '.join(self._by)} has more than {self._most_subsets:,} subsets; "
                    "choose a coarser column, or score the pairs and group the output"
                )
        if self._batches is not None:
            self._batches.add(part.drop(self._subset_keys), unique=self._unique_batches)
        self.totals = _merged(self.totals, part.drop(self._batch_keys, self._subset_keys), ())

    def finished_batches(self) -> pl.DataFrame | None:
        """Return the table of batch means; None without one, or where it went to a file."""
        return None if self._batches is None else self._batches.finish()


def _merged(old: pl.DataFrame | None, new: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    return merge([new] if old is None else [old, new], keys)
