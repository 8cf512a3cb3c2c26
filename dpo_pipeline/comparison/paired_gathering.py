"""The tables that a comparison is made from, added up while the common pairs are read.

All sums are exact and a cluster is known by a hash of its prompt or key, so that the tables depend
neither on the order in which pairs come out of the join nor on how they are cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import CHOSEN_REWARD, LOSS, N_VALID, REJECTED_REWARD, REWARD_MARGIN
from dpo_pipeline.defaults import LOGP_LIMIT
from dpo_pipeline.exact import QUANTA_PER_NAT, bin_of
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


_COUNTS: Final = ("counts 0", "counts 1")
_NATS: Final = 1.5 * 2.0**52
"""Added to a number, it leaves the number in whole nats in the low bits, rounded half to even."""
_QUANTA: Final = 1.5 * 2.0**12
"""Added to what is left of it, it leaves that in quanta."""
_BITS: Final = 20
"""Bits of a count among `_packed` ones: pairs of a chunk are fewer than 2**20."""


def _packed(*facts: pl.Expr) -> pl.Expr:
    """Return an Int64 whose sum holds the counts of three facts: one sum costs less than three."""
    weighted = (fact.cast(pl.Int64) * 2 ** (_BITS * i) for i, fact in enumerate(facts))
    return pl.sum_horizontal(weighted)


def _unpacked(name: str) -> list[pl.Expr]:
    return [pl.col(name) // 2 ** (_BITS * i) % 2**_BITS for i in range(3)]


def _parts_of_gap(one: pl.Expr, other: pl.Expr, *, is_wide: bool) -> tuple[pl.Expr, pl.Expr]:
    """Return one number less the other in whole nats, and what is left of both in quanta.

    Both are integers, from the low bits of a Float64 to which a power of two is added; what that
    adds goes with the subtraction. Numbers are at most 2**50, and 2**22 if not wide.
    """
    sides = [(each, each + _NATS) for each in (one, other)]
    whole, left = (
        [
            (nats if part == 0 else each - (nats - _NATS) + _QUANTA).reinterpret(dtype=pl.Int64)
            for each, nats in sides
        ]
        for part in range(2)
    )
    nats = whole[0] - whole[1]
    return nats.cast(pl.Int128) if is_wide else nats, left[0] - left[1]


def _gap(nats: pl.Expr, left: pl.Expr) -> pl.Expr:
    """Return quanta from the sums of both parts."""
    return nats.cast(pl.Int128) * pl.lit(int(QUANTA_PER_NAT), dtype=pl.Int128) + left


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
        )
        if not shared[VALID].all():
            pairs = pairs.filter(VALID)
        margin_a, margin_b = (pl.col(f"{side}_{REWARD_MARGIN}") for side in "ab")
        prompts = pairs[PROMPT] if self._is_by_prompt else None
        pairs = pairs.with_columns(
            cluster_hashes(prompts, hashed(pairs[KEY])).alias(CLUSTER),
            a_right=is_correct(margin_a),
            b_right=is_correct(margin_b),
            change=margin_b - margin_a,
        )
        self._add_clusters(pairs, self._by_cluster)
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

    def _by_cluster(self, pairs: pl.LazyFrame, keys: Sequence[str]) -> pl.LazyFrame:
        """Return the sums of at most 2**20 pairs by cluster."""
        a, b = pl.col("a_right"), pl.col("b_right")
        ties = [pl.col(f"{side}_{REWARD_MARGIN}") == 0.0 for side in "ab"]
        is_wide = bool(self._objective.columns_to_check(self._max_logp, limit=LOGP_LIMIT))
        # Each side is quantised before the subtraction, as for its mean.
        gaps = {
            name: _parts_of_gap(pl.col(f"b_{name}"), pl.col(f"a_{name}"), is_wide=is_wide)
            for name in MEANS
        }
        parted = pairs.select(
            *keys,
            _packed(pl.lit(value=True), a & b, a & ~b).alias(_COUNTS[0]),
            _packed(b & ~a, ties[1], ties[0]).alias(_COUNTS[1]),
            *(each.alias(f"{i} {n}") for n, gap in gaps.items() for i, each in enumerate(gap)),
        )
        sums = parted.group_by(keys).agg(pl.exclude(keys).sum())
        n, both, only_a = _unpacked(_COUNTS[0])
        only_b, ties_b, ties_a = _unpacked(_COUNTS[1])
        return sums.select(
            *keys,
            n.alias(N_VALID),
            both.alias(BOTH_RIGHT),
            only_a.alias(ONLY_A),
            only_b.alias(ONLY_B),
            # In halves: a tie counts one, a correct pair two.
            (2 * (only_b - only_a) + ties_b - ties_a).alias(HALVES),
            *(_gap(pl.col(f"0 {name}"), pl.col(f"1 {name}")).alias(name) for name in MEANS),
        )
