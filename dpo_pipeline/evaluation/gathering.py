"""The tables that statistics of an evaluation are made from, added up while it reads its rows.

All sums are exact, so that the tables do not depend on how the rows were cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_LOGRATIO,
    CHOSEN_REWARD,
    CHOSEN_TOKENS,
    LOSS,
    N_PAIRS,
    N_VALID,
    OTHER_SIDE,
    PAIR_ID,
    PROMPT_ID,
    REJECTED_LOGRATIO,
    REJECTED_REWARD,
    REJECTED_TOKENS,
    REWARD_MARGIN,
    Needs,
)
from dpo_pipeline.defaults import COURSE_POINTS, JUDGE_CELLS, REPEATS_HELD
from dpo_pipeline.exact import bin_of, exact_sum
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.statistics import cluster_hashes, mixed
from dpo_pipeline.sums import (
    CELL,
    CLUSTER,
    VALID,
    ClusterTable,
    GrowingTables,
    cell_of,
    cluster_sums,
    coarse_bin,
    coarse_middle,
    course_sums,
    group_sums,
    longer_by,
    pair_count,
    split_cells,
    steps_of,
)

GROUP: Final = "__dpo_pipeline_group"
ROW: Final = "row"
_SWAPPED: Final = "n_swapped"
GROUPS: Final = 64
"""Groups of clusters that a jackknife leaves out in turn; a divisor of the bags."""
_JUDGED: Final = (GROUP, "gap", "bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered(ClusterTable):
    """The tables, over valid pairs where nothing else is said. Sums named `sum_` are in quanta.

    `clusters` holds the sums of `summary.tally`, over all pairs, and those of `cluster_sums`.

    Attributes:
        n_clusters: Clusters with a valid pair, if they were few enough to be counted.
        has_lengths: Whether token counts are there.
        has_reference: Whether reference log-probs are.
        groups: `GROUP` and the sums of `group_sums`.
        margins: `GROUP`, `bin` (of `dpo_pipeline.exact`), `n_pairs`.
        rewards: `chosen_bin`, `rejected_bin` (each of `coarse_bin`), `n_pairs`.
        lengths: `length_bin` (of `coarse_bin`, of the token difference), `n_pairs`, `n_correct`,
            `sum_reward_margin`; empty without token counts.
        course: `first_row`, `n_pairs`, `n_correct`, `sum_loss`, `sum_reward_margin`: runs of
            `rows_per_point` consecutive rows, in order.
        rows_per_point: A power of two.
        lowest: The pairs with the smallest margins: `row`, the loss, margin, rewards, and
            `pair_id` where there is one.
        repeats: The share of pairs whose log-probs are all those of an earlier pair, to 2**-40
            nats, counted among `repeats_seen` pairs. None if no pair was looked at.
        contradictory: The share of them whose log-probs are those of another pair with chosen and
            rejected exchanged.
        judged: `GROUP`, `gap` (the judge's preference for the chosen completion), `bin` (of
            `coarse_bin`, of the margin), `n_pairs`; None without a judge.
    """

    n_clusters: int | None
    has_lengths: bool
    has_reference: bool
    groups: pl.DataFrame
    margins: pl.DataFrame
    rewards: pl.DataFrame
    lengths: pl.DataFrame
    course: pl.DataFrame
    rows_per_point: int
    lowest: pl.DataFrame
    repeats: float | None
    repeats_seen: int
    contradictory: float | None
    judged: pl.DataFrame | None


class Gathering(GrowingTables):
    """Adds up the tables of `Gathered`, chunk by chunk in the order of the rows.

    Attributes:
        columns: What a chunk has to have beside `VALID` and the subset keys.
    """

    def __init__(
        self,
        *,
        schema: pl.Schema,
        objective: CheckedObjective,
        needs: Needs,
        max_logp: float,
        by: Sequence[str],
        keys: Sequence[str],
        judge: tuple[str, ...],
    ) -> None:
        """Start without rows, for pairs with the columns of `schema`."""
        super().__init__(
            objective=objective,
            needs=needs,
            max_logp=max_logp,
            by=by,
            keys=keys,
            is_by_prompt=PROMPT_ID.name in schema,
        )
        self._judge = judge
        self._has_lengths = all(role.name in schema for role in (CHOSEN_TOKENS, REJECTED_TOKENS))
        names = (PAIR_ID.name, PROMPT_ID.name, *judge)
        self.columns = [
            *needs.logps,
            *((CHOSEN_TOKENS.name, REJECTED_TOKENS.name) if self._has_lengths else ()),
            *(name for name in names if name in schema),
            *(CHOSEN_LOGRATIO, REJECTED_LOGRATIO),
            *(CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN, LOSS),
        ]
        self._n_rows = 0
        self._rows_per_point = 1
        self._thinning = 1
        self._judge_is_coarse = False

    def add(self, chunk: pl.DataFrame) -> None:
        """Add the next rows: `columns`, the subset keys and `VALID`."""
        rows = pl.int_range(self._n_rows, self._n_rows + chunk.height, dtype=pl.UInt64, eager=True)
        self._n_rows += chunk.height
        prompts = chunk[PROMPT_ID.name] if self._is_by_prompt else None
        by_row = rows.to_frame(ROW).select(mixed(pl.col(ROW)))[ROW]
        chunk = chunk.with_columns(
            rows.alias(ROW), cluster_hashes(prompts, by_row).alias(CLUSTER)
        ).with_columns((pl.col(CLUSTER) % GROUPS).alias(GROUP))
        extra = cluster_sums(self._needs, has_lengths=self._has_lengths)
        self._add_clusters(chunk, lambda pairs, keys: self._tally(pairs, keys, extra))
        valid = chunk.filter(VALID)
        sums = group_sums(self._needs, has_lengths=self._has_lengths)
        self._add_sums("groups", valid, [GROUP], *sums)
        margins = valid.select(cell_of(pl.col(GROUP), bin_of(pl.col(REWARD_MARGIN))))
        self._add_sums("margins", margins, [CELL], pair_count())
        chosen, rejected = (coarse_bin(pl.col(name)) for name in (CHOSEN_REWARD, REJECTED_REWARD))
        rewards = valid.select(cell_of(chosen, rejected))
        self._add_sums("rewards", rewards, [CELL], pair_count())
        self._add_lengths(valid.lazy())
        self._add_course(valid.lazy())
        shown = [ROW, LOSS, REWARD_MARGIN, CHOSEN_REWARD, REJECTED_REWARD]
        shown += [PAIR_ID.name] if PAIR_ID.name in self.columns else []
        # Equal margins are ordered by row, so that any cut into chunks gives the same rows.
        self._keep_lowest("lowest", valid.lazy().select(shown), [REWARD_MARGIN, ROW])
        self._add_repeats(valid)
        if self._judge:
            self._add_judged(valid.lazy())

    def finish(self) -> Gathered:
        """Return the tables; at least one chunk must have been added."""
        tables = self._tables
        in_use = tables["clusters"].filter(pl.col(N_VALID) > 0)[CLUSTER].n_unique()
        repeats = tables["repeats"]
        seen = int(repeats.select(pl.col(N_PAIRS, _SWAPPED).sum()).sum_horizontal().item())
        distinct = int(
            repeats.select((pl.col(N_PAIRS, _SWAPPED) > 0).sum()).sum_horizontal().item()
        )
        opposed = int(repeats.select(2 * pl.min_horizontal(N_PAIRS, _SWAPPED)).sum().item())
        first_row = (pl.col("point") * self._rows_per_point).alias("first_row")
        return Gathered(
            by=self._by,
            is_by_prompt=self._is_by_prompt,
            is_exact=self._is_exact,
            n_clusters=in_use if self._is_exact else None,
            has_lengths=self._has_lengths,
            has_reference=self._needs.reference,
            clusters=self._finished_clusters(),
            groups=tables["groups"].sort(GROUP),
            margins=split_cells(tables["margins"], GROUP, "bin"),
            rewards=split_cells(tables["rewards"], "chosen_bin", "rejected_bin"),
            lengths=tables["lengths"].sort("length_bin"),
            course=tables["course"].sort("point").select(first_row, pl.exclude("point")),
            rows_per_point=self._rows_per_point,
            lowest=tables["lowest"],
            repeats=1.0 - distinct / seen if seen else None,
            repeats_seen=seen,
            contradictory=opposed / seen if seen else None,
            judged=tables["judged"].sort(_JUDGED) if self._judge else None,
        )

    def _add_lengths(self, valid: pl.LazyFrame) -> None:
        difference = longer_by() if self._has_lengths else pl.lit(None, dtype=pl.Int64)
        rows = valid.with_columns(length_bin=coarse_bin(difference.cast(pl.Float64)))
        rows = rows.filter(pl.col("length_bin").is_not_null())
        self._add_sums("lengths", rows, ["length_bin"], pair_count(), *course_sums())

    def _add_course(self, valid: pl.LazyFrame) -> None:
        size = self._rows_per_point
        while -(-self._n_rows // size) > COURSE_POINTS:
            size *= 2
        if size > self._rows_per_point:
            self._rekey("course", pl.col("point") // (size // self._rows_per_point), ["point"])
        self._rows_per_point = size
        rows = valid.with_columns(point=(pl.col(ROW) // size).cast(pl.Int64))
        loss = exact_sum(pl.col(LOSS)).alias(f"sum_{LOSS}")
        self._add_sums("course", rows, ["point"], pair_count(), *course_sums(), loss)

    def _add_repeats(self, valid: pl.DataFrame) -> None:
        logps = self._needs.logps
        nothing = pl.lit(0, dtype=pl.UInt64)
        hashes = valid.select(nothing.alias("as_is"), nothing.alias("exchanged"), *logps)
        # Mixed after each column, because bf16 values fill few bits of a word.
        for name in logps:
            hashes = hashes.with_columns(
                as_is=mixed(pl.col("as_is") ^ steps_of(pl.col(name))),
                exchanged=mixed(pl.col("exchanged") ^ steps_of(pl.col(OTHER_SIDE[name]))),
            )
        # A pair and its exchange share a row, and count in a column each.
        is_swapped = pl.col("as_is") > pl.col("exchanged")
        hashes = hashes.select(pl.min_horizontal("as_is", "exchanged").alias("hash"), s=is_swapped)
        counts = [
            where.sum().cast(pl.Int64).alias(name)
            for where, name in ((~pl.col("s"), N_PAIRS), (pl.col("s"), _SWAPPED))
        ]
        self._add_sums("repeats", hashes.filter(self._is_kept()), ["hash"], *counts)
        # Copies share a hash, so a sample of the hashes keeps the share of copies.
        while self._tables["repeats"].height > REPEATS_HELD:
            self._thinning *= 2
            self._tables["repeats"] = self._tables["repeats"].filter(self._is_kept())

    def _is_kept(self) -> pl.Expr:
        return pl.col("hash") % self._thinning == 0

    def _add_judged(self, valid: pl.LazyFrame) -> None:
        scores = [pl.col(name).cast(pl.Float64) for name in self._judge]
        gap = scores[0] if len(scores) == 1 else scores[0] - scores[1]
        rows = valid.with_columns(gap=gap, bin=coarse_bin(pl.col(REWARD_MARGIN)))
        rows = rows.filter(pl.col("gap").is_finite())
        coarse_gap = coarse_middle(coarse_bin(pl.col("gap"))).alias("gap")
        if self._judge_is_coarse:
            rows = rows.with_columns(coarse_gap)
        self._add_sums("judged", rows, _JUDGED, pair_count())
        if self._tables["judged"].height > JUDGE_CELLS and not self._judge_is_coarse:
            self._judge_is_coarse = True
            self._rekey("judged", coarse_gap, _JUDGED)
