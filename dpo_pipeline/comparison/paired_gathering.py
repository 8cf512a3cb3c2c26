"""What a comparison needs of the common pairs, as tables whose parts merge by adding.

Every sum is exact and a cluster is known by a hash of its prompt or key, so the tables depend
neither on the order in which pairs come out of the join nor on how they are cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import CHOSEN_REWARD, LOSS, N_VALID, REJECTED_REWARD, REWARD_MARGIN, Needs
from dpo_pipeline.defaults import BAGS, CLUSTERS_HELD, ROWS_SHOWN
from dpo_pipeline.exact import bin_of, exact_sum, exact_sum_of_wide
from dpo_pipeline.losses import CheckedObjective, is_correct
from dpo_pipeline.sources import KEY
from dpo_pipeline.statistics import hashed, mixed
from dpo_pipeline.sums import VALID, coarse_bin, count, counted, merge, parted, tally

PROMPT: Final = "__dpo_pipeline_prompt"
CLUSTER: Final = "__dpo_pipeline_cluster"
ONLY_A: Final = "only_a"
ONLY_B: Final = "only_b"
BOTH_RIGHT: Final = "both_right"
HALVES: Final = "halves"
MEANS: Final = (LOSS, REWARD_MARGIN, CHOSEN_REWARD, REJECTED_REWARD)
"""Columns of a scored pair whose mean difference is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The tables, over pairs that are valid on both sides.

    Attributes:
        by: Columns of the subsets.
        is_by_prompt: Whether clusters are prompts; otherwise each pair is one.
        is_exact: Whether each cluster has its own row; otherwise rows are bags of clusters.
        totals_a: One row of sums of `summary.tally` for A, over all common pairs.
        totals_b: The same for B.
        clusters: One row a cluster (or bag) and subset, sorted: the columns of `by`, `CLUSTER`,
            `N_VALID`; pairs `BOTH_RIGHT`, `ONLY_A`, `ONLY_B`; `HALVES`: correct pairs of B less
            those of A in halves, a tie being one; and the sums of B minus A of `MEANS`, in quanta.
        gained: Pairs that B alone has right: `key`, `margin_a`, `margin_b`, `change`.
        lost: Pairs that A alone has right.
        changes: `bin` (of `sketch`) of the change of margin, `n_pairs`.
        margins: `a_bin`, `b_bin` (`COARSE` bins of `sketch` each), `n_pairs`.
    """

    by: tuple[str, ...]
    is_by_prompt: bool
    is_exact: bool
    totals_a: pl.DataFrame
    totals_b: pl.DataFrame
    clusters: pl.DataFrame
    gained: pl.DataFrame
    lost: pl.DataFrame
    changes: pl.DataFrame
    margins: pl.DataFrame


class PairedGathering:
    """Adds up the tables of `Paired`, chunk by chunk in any order."""

    def __init__(
        self,
        *,
        objective: CheckedObjective,
        needs: Needs,
        is_wide: bool,
        by: Sequence[str],
        keys: Sequence[str],
        has_prompts: bool,
    ) -> None:
        """Say what is compared; `keys` are the names that the columns of `by` have in chunks."""
        self._objective = objective
        self._needs = needs
        self._is_wide = is_wide
        self._by = tuple(by)
        self._keys = list(keys)
        self._has_prompts = has_prompts
        self._is_exact = True
        self._tables: dict[str, pl.DataFrame] = {}

    def add(self, shared: pl.DataFrame, a: pl.DataFrame, b: pl.DataFrame) -> None:
        """Add pairs.

        Args:
            shared: `KEY`, `PROMPT` if there are prompts, the keys, and `VALID`.
            a: The same pairs in the same order, scored for A, under canonical names.
            b: The same for B.
        """
        for name, side in (("totals_a", a), ("totals_b", b)):
            marked = side.lazy().with_columns(shared[VALID])
            sums = tally(
                marked,
                valid=pl.col(VALID),
                objective=self._objective,
                needs=self._needs,
                is_wide=self._is_wide,
            )
            self._add(name, sums, [])
        pairs = shared.with_columns(
            *(a[name].alias(f"a_{name}") for name in MEANS),
            *(b[name].alias(f"b_{name}") for name in MEANS),
        ).filter(VALID)
        pairs = pairs.with_columns(
            self._clusters(pairs).alias(CLUSTER),
            a_right=is_correct(pl.col(f"a_{REWARD_MARGIN}")),
            b_right=is_correct(pl.col(f"b_{REWARD_MARGIN}")),
            change=pl.col(f"b_{REWARD_MARGIN}") - pl.col(f"a_{REWARD_MARGIN}"),
        )
        self._add_clusters(pairs)
        self._add_flips("gained", pairs.filter(pl.col("b_right") & ~pl.col("a_right")), "top")
        self._add_flips("lost", pairs.filter(pl.col("a_right") & ~pl.col("b_right")), "bottom")
        bins = bin_of(pl.col("change")).alias("bin")
        self._add("changes", pairs.lazy().group_by(bins).agg(count()), ["bin"])
        both = {f"{side}_bin": coarse_bin(pl.col(f"{side}_{REWARD_MARGIN}")) for side in "ab"}
        self._add("margins", counted(pairs, both), ["both"])

    @property
    def n_subsets(self) -> int:
        """Subsets found so far."""
        return self._tables["clusters"].select(self._keys).n_unique() if self._keys else 0

    def finish(self) -> Paired:
        """Return the tables; at least one chunk must have been added."""
        tables = self._tables
        clusters = tables["clusters"].rename(dict(zip(self._keys, self._by, strict=True)))
        return Paired(
            by=self._by,
            is_by_prompt=self._has_prompts,
            is_exact=self._is_exact,
            totals_a=tables["totals_a"],
            totals_b=tables["totals_b"],
            clusters=clusters.sort(*self._by, CLUSTER, nulls_last=True),
            gained=tables["gained"],
            lost=tables["lost"],
            changes=tables["changes"].sort("bin"),
            margins=parted(tables["margins"], "a_bin", "b_bin"),
        )

    def _add(self, name: str, part: pl.LazyFrame, keys: Sequence[str]) -> None:
        new = part.collect(engine="streaming")
        old = self._tables.get(name)
        self._tables[name] = new if old is None else merge([old, new], keys)

    def _clusters(self, pairs: pl.DataFrame) -> pl.Series:
        of_pair = hashed(pairs[KEY])
        if not self._has_prompts:
            return of_pair
        # A pair without a prompt is one by itself; its hash is hashed again, as prompts and keys
        # may be the same numbers.
        alone = of_pair.to_frame("pair").select(mixed(pl.col("pair")))["pair"]
        return hashed(pairs[PROMPT]).fill_null(alone)

    def _add_clusters(self, pairs: pl.DataFrame) -> None:
        if self._is_exact and pairs[CLUSTER].n_unique() > CLUSTERS_HELD:
            self._put_into_bags()
        if not self._is_exact:
            pairs = pairs.with_columns(pl.col(CLUSTER) % BAGS)
        keys = [*self._keys, CLUSTER]
        self._add("clusters", pairs.lazy().group_by(keys).agg(self._sums()), keys)
        if self._is_exact and self._tables["clusters"][CLUSTER].n_unique() > CLUSTERS_HELD:
            self._put_into_bags()

    def _put_into_bags(self) -> None:
        self._is_exact = False
        table = self._tables.get("clusters")
        if table is not None:
            bagged = table.with_columns(pl.col(CLUSTER) % BAGS)
            self._tables["clusters"] = merge([bagged], [*self._keys, CLUSTER])

    def _sums(self) -> list[pl.Expr]:
        a, b = pl.col("a_right"), pl.col("b_right")
        # A tie is worth one half, a correct pair two.
        halves = [
            2 * pl.col(f"{side}_right").cast(pl.Int64)
            + (pl.col(f"{side}_{REWARD_MARGIN}") == 0.0).cast(pl.Int64)
            for side in "ab"
        ]
        sum_of = exact_sum_of_wide if self._is_wide else exact_sum
        return [
            count().alias(N_VALID),
            (a & b).sum().cast(pl.Int64).alias(BOTH_RIGHT),
            (a & ~b).sum().cast(pl.Int64).alias(ONLY_A),
            (b & ~a).sum().cast(pl.Int64).alias(ONLY_B),
            (halves[1] - halves[0]).sum().alias(HALVES),
            # Each side is counted in quanta by itself, as its mean is.
            *((sum_of(pl.col(f"b_{n}")) - sum_of(pl.col(f"a_{n}"))).alias(n) for n in MEANS),
        ]

    def _add_flips(self, name: str, pairs: pl.DataFrame, end: str) -> None:
        new = pairs.select(
            key=KEY, margin_a=f"a_{REWARD_MARGIN}", margin_b=f"b_{REWARD_MARGIN}", change="change"
        )
        old = self._tables.get(name)
        both = new if old is None else pl.concat([old, new])
        # The key decides between equal changes, so that any order of the pairs gives the same.
        ordered = both.sort("change", "key", descending=[end == "top", False])
        self._tables[name] = ordered.head(ROWS_SHOWN)
