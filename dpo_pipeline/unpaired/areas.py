"""Where the rewards of one label stand among those of the other: the area under the curve.

Rewards are counted by narrow bins. Where completions have prompts, they are read once more: each
reward's place among those of the other label is added up by prompt, for the interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import polars as pl

from dpo_pipeline.columns import LABEL, LOGRATIO, N_CHOSEN, N_PAIRS, PROMPT_ID
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.statistics import (
    Estimate,
    area_of_clusters,
    area_of_counts,
    cluster_hashes,
    mixed,
)
from dpo_pipeline.sums import BIN, CLUSTER, ClusterCounts

_SCALE: Final = 0.01
"""Where bins of rewards turn from linear to proportional, in nats."""
_WIDTH: Final = 0.005 / 16
"""Width of a bin of rewards: in units of `_SCALE` near zero, relative to the reward far from it."""
UP: Final = "up"
DOWN: Final = "down"


def reward_bin(objective: CheckedObjective) -> pl.Expr:
    """Return the bin of each reward, much narrower than those of `exact.bin_of`."""
    reward = objective.beta * pl.col(LOGRATIO)
    return ((reward / _SCALE).arcsinh() / _WIDTH).round().cast(pl.Int32)


def counts_of_bins(bins: pl.DataFrame) -> pl.DataFrame:
    """Return the bins of all subsets in order, with how many of either label each holds."""
    return (
        bins.filter(pl.col(BIN).is_not_null())
        .group_by(BIN)
        .agg(up=pl.col(N_CHOSEN).sum(), down=(pl.col(N_PAIRS) - pl.col(N_CHOSEN)).sum())
        .sort(BIN)
    )


def area_of_bins(counts: pl.DataFrame, level: float) -> tuple[Estimate, float] | tuple[None, None]:
    """Return the area under the curve of rewards by label, and how far it may be off."""
    return area_of_counts(counts, level) or (None, None)


def with_clusters(rows: pl.DataFrame, first_row: int) -> pl.DataFrame:
    """Add `CLUSTER` to rows: their prompt, or themselves without one."""
    numbers = pl.int_range(first_row, first_row + rows.height, dtype=pl.UInt64, eager=True)
    alone = numbers.to_frame("n").select(mixed(mixed(pl.col("n"))))["n"]
    prompts = rows[PROMPT_ID.name] if PROMPT_ID.name in rows.columns else None
    return rows.with_columns(cluster_hashes(prompts, alone).alias(CLUSTER))


class Placements:
    """Adds up by prompt where rewards stand among those of the other label, in any order.

    `counts` has those of `counts_of_bins` of each side. Places are whole numbers, twice the
    rewards that one is above or below, so that no sum is rounded.
    """

    def __init__(self, counts: Mapping[str, pl.DataFrame]) -> None:
        self._places = {side: _places(table) for side, table in counts.items()}
        first = next(iter(counts.values()))
        self.n_up, self.n_down = (int(first[name].sum()) for name in (UP, DOWN))
        self._found: ClusterCounts | None = None

    def add(self, rows: pl.DataFrame) -> None:
        """Add valid completions: `CLUSTER`, `LABEL`, and the bin of each side under its name."""
        is_up, sums = pl.col(LABEL.name), []
        for side, table in self._places.items():
            above, below = (
                pl.col(side).replace_strict(table[BIN], table[name], return_dtype=pl.Int64)
                for name in ("above", "below")
            )
            sums += [
                above.filter(is_up).sum().alias(f"above_{side}"),
                below.filter(~is_up).sum().alias(f"below_{side}"),
            ]
        table = rows.group_by(CLUSTER).agg(
            is_up.sum().cast(pl.Int64).alias(UP), (~is_up).sum().cast(pl.Int64).alias(DOWN), *sums
        )
        new = ClusterCounts(table=table, is_exact=True).bagged_if_many()
        self._found = new if self._found is None else self._found.merged(new)

    def clusters(self) -> pl.DataFrame:
        """Return the sums of each cluster, places as shares of the other label."""
        table = pl.DataFrame() if self._found is None else self._found.table.sort(CLUSTER)
        return table.select(
            pl.col(UP, DOWN).cast(pl.Float64),
            pl.col("^above_.*$") / (2.0 * self.n_down),
            pl.col("^below_.*$") / (2.0 * self.n_up),
        )

    def area(self, side: str, level: float) -> Estimate | None:
        """Return the area of a side with its interval by prompt."""
        if self._found is None:
            return None
        of = self.clusters()
        return area_of_clusters(of[f"above_{side}"], of[f"below_{side}"], of[UP], of[DOWN], level)


def _places(counts: pl.DataFrame) -> pl.DataFrame:
    up, down = pl.col(UP).cast(pl.Int64), pl.col(DOWN).cast(pl.Int64)
    return counts.select(
        BIN,
        above=2 * down.cum_sum() - down,
        below=2 * (up.sum() - up.cum_sum()) + up,
    )
