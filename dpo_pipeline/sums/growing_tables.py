"""Tables of exact sums that grow by adding the sums of more rows, clusters of pairs among them.

A cluster is taken as independent: a prompt, or a pair without one. Few clusters have a row each;
many are hashed into bags, which bounds memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import N_VALID
from dpo_pipeline.defaults import BAGS, CLUSTERS_HELD

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
