"""The tables that a comparison is made from, added up while the common pairs are read.

All sums are exact and a cluster is known by a hash of its prompt or key, so that the tables depend
neither on the order in which pairs come out of the join nor on how they are cut into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import CHOSEN_REWARD, LOSS, N_VALID, REJECTED_REWARD, REWARD_MARGIN
from dpo_pipeline.exact import bin_of, exact_sum
from dpo_pipeline.losses import is_correct
from dpo_pipeline.sources import KEY
from dpo_pipeline.statistics import cluster_hashes, hashed
from dpo_pipeline.sums import (
    CELL,
    CLUSTER,
    VALID,
    ClusterTable,
    GrowingTables,
    cell_of,
    coarse_bin,
    pair_count,
    split_cells,
)

PROMPT: Final = "__dpo_pipeline_prompt"
ONLY_A: Final = "only_a"
ONLY_B: Final = "only_b"
BOTH_RIGHT: Final = "both_right"
HALVES: Final = "halves"
MEANS: Final = (LOSS, REWARD_MARGIN, CHOSEN_REWARD, REJECTED_REWARD)
"""Columns of a scored pair whose mean difference is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired(ClusterTable):
    """The tables, over pairs that are valid on both sides.

    The sums of `clusters` are `N_VALID`; pairs `BOTH_RIGHT`, `ONLY_A`, `ONLY_B`; `HALVES`: B minus
    A, a correct pair counting 2 and a tie 1; and B minus A of `MEANS`, in quanta.
    """

    totals_a: pl.DataFrame  # one row of sums of `summary.tally` for A, over all common pairs
    totals_b: pl.DataFrame  # the same for B
    gained: pl.DataFrame  # pairs that B alone has right: key, margin_a, margin_b, change
    lost: pl.DataFrame  # pairs that A alone has right
    changes: pl.DataFrame  # `bin` (of `dpo_pipeline.exact`) of the change of margin, `n_pairs`
    margins: pl.DataFrame  # `a_bin`, `b_bin` (each of `coarse_bin`), `n_pairs`


class PairedGathering(GrowingTables):
    """Adds up the tables of `Paired`, chunk by chunk in any order."""

    def add(self, shared: pl.DataFrame, a: pl.DataFrame, b: pl.DataFrame) -> None:
        """Add pairs: once with `KEY`, `PROMPT`, subset keys and `VALID`, and as each side scores.

        The three frames have the same pairs in the same order.
        """
        for name, side in (("totals_a", a), ("totals_b", b)):
            self._add(name, self._tally(side.lazy().with_columns(shared[VALID])), [])
        pairs = shared.with_columns(
            *(a[name].alias(f"a_{name}") for name in MEANS),
            *(b[name].alias(f"b_{name}") for name in MEANS),
        ).filter(VALID)
        margin_a, margin_b = (pl.col(f"{side}_{REWARD_MARGIN}") for side in "ab")
        prompts = pairs[PROMPT] if self._is_by_prompt else None
        pairs = pairs.with_columns(
            cluster_hashes(prompts, hashed(pairs[KEY])).alias(CLUSTER),
            a_right=is_correct(margin_a),
            b_right=is_correct(margin_b),
            change=margin_b - margin_a,
        )
        sums = self._sums()
        self._add_clusters(pairs, lambda rows, keys: rows.group_by(keys).agg(sums))
        right_a, right_b = pl.col("a_right"), pl.col("b_right")
        for name, flipped, reverse in (
            ("gained", right_b & ~right_a, True),
            ("lost", right_a & ~right_b, False),
        ):
            flips = pairs.lazy().filter(flipped)
            flips = flips.select(key=KEY, margin_a=margin_a, margin_b=margin_b, change="change")
            # Equal changes are ordered by key, so that any order of the pairs gives the same.
            self._keep_lowest(name, flips, ["change", "key"], reverse=reverse)
        self._add_sums("changes", pairs.select(bin=bin_of(pl.col("change"))), ["bin"], pair_count())
        margins = pairs.select(cell_of(coarse_bin(margin_a), coarse_bin(margin_b)))
        self._add_sums("margins", margins, [CELL], pair_count())

    def finish(self) -> Paired:
        """Return the tables; at least one chunk must have been added."""
        tables = self._tables
        return Paired(
            by=self._by,
            is_by_prompt=self._is_by_prompt,
            is_exact=self._is_exact,
            clusters=self._finished_clusters(),
            totals_a=tables["totals_a"],
            totals_b=tables["totals_b"],
            gained=tables["gained"],
            lost=tables["lost"],
            changes=tables["changes"].sort("bin"),
            margins=split_cells(tables["margins"], "a_bin", "b_bin"),
        )

    def _sums(self) -> list[pl.Expr]:
        a, b = pl.col("a_right"), pl.col("b_right")
        # In halves: a tie counts one, a correct pair two.
        halves = [
            2 * pl.col(f"{side}_right").cast(pl.Int64)
            + (pl.col(f"{side}_{REWARD_MARGIN}") == 0.0).cast(pl.Int64)
            for side in "ab"
        ]
        return [
            pair_count().alias(N_VALID),
            (a & b).sum().cast(pl.Int64).alias(BOTH_RIGHT),
            (a & ~b).sum().cast(pl.Int64).alias(ONLY_A),
            (b & ~a).sum().cast(pl.Int64).alias(ONLY_B),
            (halves[1] - halves[0]).sum().alias(HALVES),
            # Each side is quantised before the subtraction, as for its mean.
            *((exact_sum(pl.col(f"b_{n}")) - exact_sum(pl.col(f"a_{n}"))).alias(n) for n in MEANS),
        ]
