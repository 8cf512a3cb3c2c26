"""Mean loss and rewards of completions with errors by cluster: of one policy, or B minus A."""

from __future__ import annotations

from typing import Final

import polars as pl

from dpo_pipeline.columns import LABEL, LOSS, N_VALID, REWARD
from dpo_pipeline.exact import QUANTA_PER_NAT, exact_sum
from dpo_pipeline.statistics import (
    Estimate,
    difference_of_means,
    paired_difference,
    without_interval,
)
from dpo_pipeline.sums import CLUSTER, ClusterCounts
from dpo_pipeline.unpaired.areas import DOWN, UP

BEFORE: Final = "_of_a"
"""Ends the names of the scores of A, which are taken from those of B."""


class ClusterMeans:
    """Adds up scores by cluster, chunk by chunk in any order."""

    def __init__(self) -> None:
        """Start without completions."""
        self._found: ClusterCounts | None = None

    @property
    def n_clusters(self) -> int:
        """Clusters, or bags of them if they are many."""
        return 0 if self._found is None else self._found.table.height

    def add(self, rows: pl.DataFrame) -> None:
        """Add valid completions: `CLUSTER`, `LABEL`, loss and reward, and perhaps those of A."""
        is_up = pl.col(LABEL.name)
        kinds = {"chosen": is_up, "rejected": ~is_up}

        def summed(name: str, which: pl.Expr | None = None) -> pl.Expr:
            names = [name, *([name + BEFORE] if name + BEFORE in rows.columns else [])]
            columns = [pl.col(n) if which is None else pl.col(n).filter(which) for n in names]
            sums = [exact_sum(each) for each in columns]
            return sums[0] if len(sums) == 1 else sums[0] - sums[1]

        table = rows.group_by(CLUSTER).agg(
            pl.len().cast(pl.Int64).alias(N_VALID),
            is_up.sum().cast(pl.Int64).alias(UP),
            (~is_up).sum().cast(pl.Int64).alias(DOWN),
            summed(LOSS).alias("loss"),
            **{kind: summed(REWARD, which) for kind, which in kinds.items()},
        )
        new = ClusterCounts(table=table, is_exact=True).bagged_if_many()
        self._found = new if self._found is None else self._found.merged(new)

    def tested(self, level: float) -> dict[str, tuple[Estimate, float | None]]:
        """Return each mean with its interval, and the p-value of a mean of 0.

        A figure of one label is left out where no completion has it.
        """
        if self._found is None:
            return {}
        of = self._found.table.sort(CLUSTER)
        nats = {n: of[n].cast(pl.Float64) / QUANTA_PER_NAT for n in ("loss", "chosen", "rejected")}
        n_all, up, down = (of[name].cast(pl.Float64) for name in (N_VALID, UP, DOWN))
        found: dict[str, tuple[Estimate, float | None]] = {}
        margin = difference_of_means(nats["chosen"], nats["rejected"], up, down, level)
        if margin is not None:
            found["reward_margin"] = margin
        for name, sums, n in (
            ("loss", nats["loss"], n_all),
            ("chosen_reward", nats["chosen"], up),
            ("rejected_reward", nats["rejected"], down),
        ):
            made = paired_difference(sums.filter(n > 0), n.filter(n > 0), level)
            if made is not None:
                mean = made.difference
                # Clusters that are all alike tell nothing about the spread.
                estimate = mean if mean.standard_error else without_interval(mean)
                found[name] = estimate, made.p_value
        return found
