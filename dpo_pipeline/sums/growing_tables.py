"""Tables of exact sums that grow by adding the sums of more rows, clusters of pairs among them.

A cluster is taken as independent: a prompt, or a pair without one. Few clusters have a row each;
many are hashed into bags, which bounds memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import N_VALID, Needs
from dpo_pipeline.defaults import BAGS, CLUSTERS_HELD, WORST_HELD
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.sums.pair_sums import VALID
from dpo_pipeline.sums.summary import merge, tally

CLUSTER: Final = "__dpo_pipeline_cluster"
Sums = Callable[[pl.LazyFrame, Sequence[str]], pl.LazyFrame]
"""From rows and the columns to group by to one row of sums for each group."""


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


class GrowingTables:
    """Adds up tables by name, chunk by chunk."""

    def __init__(
        self,
        *,
        objective: CheckedObjective,
        needs: Needs,
        max_logp: float,
        by: Sequence[str],
        keys: Sequence[str],
        is_by_prompt: bool,
    ) -> None:
        """Start without rows; `keys` are the names of the columns of `by` in chunks."""
        self._objective = objective
        self._needs = needs
        self._max_logp = max_logp
        self._by = tuple(by)
        self._keys = list(keys)
        self._is_by_prompt = is_by_prompt
        self._is_exact = True
        self._tables: dict[str, pl.DataFrame] = {}

    @property
    def n_subsets(self) -> int:
        """Subsets found so far."""
        return self._tables["clusters"].select(self._keys).n_unique() if self._keys else 0

    def _add(self, name: str, part: pl.LazyFrame, keys: Sequence[str]) -> None:
        new = part.collect(engine="streaming")
        old = self._tables.get(name)
        self._tables[name] = new if old is None else merge([old, new], keys)

    def _add_sums(
        self, name: str, rows: pl.DataFrame | pl.LazyFrame, keys: Sequence[str], *sums: pl.Expr
    ) -> None:
        self._add(name, rows.lazy().group_by(keys).agg(sums), keys)

    def _rekey(self, name: str, key: pl.Expr, keys: Sequence[str]) -> None:
        """Replace a key of a table by a coarser one, and merge rows whose keys become equal."""
        if name in self._tables:
            self._tables[name] = merge([self._tables[name].with_columns(key)], keys)

    def _keep_lowest(
        self, name: str, rows: pl.LazyFrame, order: Sequence[str], *, reverse: bool = False
    ) -> None:
        """Keep the first `WORST_HELD` rows by two columns; `reverse` sorts the first descending."""
        if name in self._tables:
            rows = pl.concat([self._tables[name].lazy(), rows])
        descending = [reverse, False]
        kept = rows.bottom_k(WORST_HELD, by=order, reverse=descending)
        self._tables[name] = kept.sort(order, descending=descending).collect()

    def _tally(
        self, pairs: pl.LazyFrame, keys: Sequence[str] = (), extra: Sequence[pl.Expr] = ()
    ) -> pl.LazyFrame:
        """Return the sums of `summary.tally` over the pairs that are `VALID`."""
        return tally(
            pairs,
            valid=pl.col(VALID),
            objectives=(self._objective,),
            needs=self._needs,
            keys=keys,
            with_sense=not keys,
            extra=extra,
        )

    def _add_clusters(self, pairs: pl.DataFrame, sums: Sums) -> None:
        """Add the sums of pairs by the subset keys and `CLUSTER`."""
        keys = [*self._keys, CLUSTER]
        self._put_into_bags_if_many(pairs)
        if not self._is_exact:
            pairs = pairs.with_columns(pl.col(CLUSTER) % BAGS)
        self._add("clusters", sums(pairs.lazy(), keys), keys)
        self._put_into_bags_if_many(self._tables["clusters"])

    def _put_into_bags_if_many(self, table: pl.DataFrame) -> None:
        if self._is_exact and table[CLUSTER].n_unique() > CLUSTERS_HELD:
            self._is_exact = False
            self._rekey("clusters", pl.col(CLUSTER) % BAGS, [*self._keys, CLUSTER])

    def _finished_clusters(self) -> pl.DataFrame:
        clusters = self._tables["clusters"].rename(dict(zip(self._keys, self._by, strict=True)))
        return clusters.sort(*self._by, CLUSTER, nulls_last=True)


N_CORRECT: Final = "n_correct"
IS_CORRECT: Final = "is_correct"
"""Column of rows to be counted: null where a pair is invalid."""
_SLOTS: Final = 2**17
"""Enough that few of `CLUSTERS_HELD` clusters share one, few enough to be counted fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterCounts:
    """Counts by cluster, of few clusters one by one, of many in bags; merged in any order.

    `table` has the columns `CLUSTER`, `N_VALID` and `N_CORRECT`.
    """

    table: pl.DataFrame
    is_exact: bool

    @classmethod
    def of(cls, rows: pl.DataFrame) -> ClusterCounts:
        """Count rows of `CLUSTER` (a hash) and `IS_CORRECT`."""
        is_exact = not _are_many(rows.lazy().filter(pl.col(IS_CORRECT).is_not_null()))
        key = pl.col(CLUSTER) if is_exact else pl.col(CLUSTER) % BAGS
        right = pl.col(IS_CORRECT)
        counts = (
            rows.lazy()
            .filter(right.is_not_null())
            .group_by(key)
            .agg(
                pl.len().cast(pl.Int64).alias(N_VALID),
                right.sum().cast(pl.Int64).alias(N_CORRECT),
            )
            .collect(engine="streaming")
        )
        return cls(table=counts, is_exact=is_exact).bagged_if_many()

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


def _are_many(rows: pl.LazyFrame) -> bool:
    """Return whether there are surely more clusters than are held; cheap, and may miss some."""
    first = rows.select(CLUSTER).head(2 * CLUSTERS_HELD).collect()
    if first[CLUSTER].n_unique() > CLUSTERS_HELD:
        return True
    if first.height < 2 * CLUSTERS_HELD:
        return False
    slots = rows.group_by(pl.col(CLUSTER) % _SLOTS).agg().collect(engine="streaming")
    return slots.height > CLUSTERS_HELD
