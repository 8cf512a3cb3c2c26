"""Counts of valid and correct pairs by cluster: what the interval of an accuracy is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import N_VALID
from dpo_pipeline.defaults import BAGS, CLUSTERS_HELD
from dpo_pipeline.sums.growing_tables import CLUSTER

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
