"""What statistics need of the rows, as tables whose parts merge by adding: made in the one reading.

Every sum is exact, so the tables do not depend on how the rows were cut into chunks. Prompts (or
pairs, where no prompt is named) are the clusters that an error is made from: each by itself as
long as they are few, and put into bags by their hash from there on, which keeps memory flat.
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
    N_VALID,
    PAIR_ID,
    PROMPT_ID,
    REJECTED_LOGRATIO,
    REJECTED_REWARD,
    REJECTED_TOKENS,
    REWARD_MARGIN,
    Needs,
)
from dpo_pipeline.defaults import (
    BAGS,
    CLUSTERS_HELD,
    COURSE_POINTS,
    JUDGE_CELLS,
    REPEATS_HELD,
    ROWS_SHOWN,
)
from dpo_pipeline.exact import bin_of, exact_sum_of_wide
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.statistics import hashed, mixed
from dpo_pipeline.sums import (
    VALID,
    cluster_sums,
    coarse_bin,
    count,
    counted,
    course_sums,
    group_sums,
    longer_by,
    merge,
    middle_of_coarse,
    parted,
    steps_of,
    tally,
)

CLUSTER: Final = "__dpo_pipeline_cluster"
GROUP: Final = "__dpo_pipeline_group"
ROW: Final = "row"
GROUPS: Final = 64
"""Groups of clusters that a jackknife leaves out in turn; a divisor of the bags."""
_CELL: Final = (GROUP, "gap", "bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The tables, over valid pairs where nothing else is said. Sums named `sum_` are in quanta.

    Attributes:
        by: Columns of the subsets.
        is_by_prompt: Whether clusters are prompts; otherwise each pair is one.
        is_exact: Whether each cluster has its own row; otherwise rows are bags of clusters.
        n_clusters: Clusters with a valid pair, if they were few enough to be counted.
        has_lengths: Whether token counts are there.
        has_reference: Whether reference log-probs are.
        clusters: The columns of `by`, `CLUSTER`, the sums of `summary.tally`, and those of
            `cluster_sums`.
        groups: `GROUP` and the sums of `group_sums`.
        margins: `GROUP`, `bin` (of `sketch`), `n_pairs`.
        rewards: `chosen_bin`, `rejected_bin` (`COARSE` bins of `sketch` each), `n_pairs`.
        lengths: `length_bin` (`COARSE` bins of `sketch` each, of the token difference), `n_pairs`,
            `n_correct`, `sum_reward_margin`; empty without token counts.
        course: `first_row`, `n_pairs`, `n_correct`, `sum_loss`, `sum_reward_margin`: runs of
            `rows_per_point` consecutive rows, in order.
        rows_per_point: A power of two.
        lowest: The pairs with the smallest margins: `row`, the loss, margin, rewards, and
            `pair_id` where there is one.
        repeats: The share of pairs whose log-probs are all those of an earlier pair, to 2**-40
            nats, counted among `repeats_seen` pairs.
        judged: `GROUP`, `gap`, `bin`, `n_pairs`: the judge's preference for the chosen
            completion, and `COARSE` bins of the margin; None without a judge.
    """

    by: tuple[str, ...]
    is_by_prompt: bool
    is_exact: bool
    n_clusters: int | None
    has_lengths: bool
    has_reference: bool
    clusters: pl.DataFrame
    groups: pl.DataFrame
    margins: pl.DataFrame
    rewards: pl.DataFrame
    lengths: pl.DataFrame
    course: pl.DataFrame
    rows_per_point: int
    lowest: pl.DataFrame
    repeats: float | None
    repeats_seen: int
    judged: pl.DataFrame | None


class Gathering:
    """Adds up the tables of `Gathered`, chunk by chunk in the order of the rows.

    Attributes:
        columns: What a chunk has to have beside `VALID`.
    """

    def __init__(
        self,
        *,
        schema: pl.Schema,
        objective: CheckedObjective,
        needs: Needs,
        is_wide: bool,
        by: Sequence[str],
        keys: Sequence[str],
        judge: tuple[str, ...],
    ) -> None:
        """Take the columns of scored pairs; `keys` are the names that those of `by` have there."""
        self._objective = objective
        self._needs = needs
        self._is_wide = is_wide
        self._by = tuple(by)
        self._keys = list(keys)
        self._judge = judge
        self._prompt = PROMPT_ID.name if PROMPT_ID.name in schema else None
        self._has_lengths = all(role.name in schema for role in (CHOSEN_TOKENS, REJECTED_TOKENS))
        self._has_pair_id = PAIR_ID.name in schema
        self.columns = [
            *needs.logps,
            *((CHOSEN_TOKENS.name, REJECTED_TOKENS.name) if self._has_lengths else ()),
            *(name for name in (PAIR_ID.name, PROMPT_ID.name, *judge) if name in schema),
            *(CHOSEN_LOGRATIO, REJECTED_LOGRATIO),
            *(CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN, LOSS),
        ]
        self._is_exact = True
        self._n_rows = 0
        self._tables: dict[str, pl.DataFrame] = {}
        self._rows_per_point = 1
        self._thinning = 1
        self._judge_is_coarse = False

    def add(self, chunk: pl.DataFrame) -> None:
        """Add the next rows: `columns`, the keys and `VALID`."""
        rows = pl.int_range(self._n_rows, self._n_rows + chunk.height, dtype=pl.UInt64, eager=True)
        chunk = chunk.with_columns(rows.alias(ROW))
        self._n_rows += chunk.height
        chunk = chunk.with_columns(self._clusters(chunk).alias(CLUSTER))
        chunk = chunk.with_columns((pl.col(CLUSTER) % GROUPS).alias(GROUP))
        self._add_clusters(chunk)
        valid = chunk.filter(VALID)
        self._add(
            "groups",
            valid.lazy()
            .group_by(GROUP)
            .agg(group_sums(self._needs, has_lengths=self._has_lengths)),
            [GROUP],
        )
        margin_bin = bin_of(pl.col(REWARD_MARGIN))
        self._add("margins", counted(valid, {GROUP: pl.col(GROUP), "bin": margin_bin}), ["both"])
        coarse = (coarse_bin(pl.col(name)) for name in (CHOSEN_REWARD, REJECTED_REWARD))
        bins = dict(zip(("chosen_bin", "rejected_bin"), coarse, strict=True))
        self._add("rewards", counted(valid, bins), ["both"])
        self._add_lengths(valid)
        self._add_course(valid)
        self._add_lowest(valid)
        self._add_repeats(valid)
        self._add_judged(valid)

    def finish(self) -> Gathered:
        """Return the tables; at least one chunk must have been added."""
        tables = self._tables
        clusters = tables["clusters"]
        in_use = clusters.filter(pl.col(N_VALID) > 0)[CLUSTER].n_unique()
        seen = int(tables["repeats"]["n_pairs"].sum())
        return Gathered(
            by=self._by,
            is_by_prompt=self._prompt is not None,
            is_exact=self._is_exact,
            n_clusters=in_use if self._is_exact else None,
            has_lengths=self._has_lengths,
            has_reference=self._needs.reference,
            clusters=clusters.rename(dict(zip(self._keys, self._by, strict=True))).sort(
                *self._by, CLUSTER, nulls_last=True
            ),
            groups=tables["groups"].sort(GROUP),
            margins=parted(tables["margins"], GROUP, "bin"),
            rewards=parted(tables["rewards"], "chosen_bin", "rejected_bin"),
            lengths=tables["lengths"].sort("length_bin"),
            course=tables["course"]
            .sort("point")
            .select(
                (pl.col("point") * self._rows_per_point).alias("first_row"), pl.exclude("point")
            ),
            rows_per_point=self._rows_per_point,
            lowest=tables["lowest"],
            repeats=1.0 - tables["repeats"].height / seen if seen else None,
            repeats_seen=seen,
            judged=tables["judged"].sort(_CELL) if self._judge else None,
        )

    def _add(self, name: str, part: pl.LazyFrame | pl.DataFrame, keys: Sequence[str]) -> None:
        new = part.lazy().collect(engine="streaming")
        old = self._tables.get(name)
        self._tables[name] = new if old is None else merge([old, new], keys)

    def _clusters(self, chunk: pl.DataFrame) -> pl.Series:
        by_row = chunk.select(mixed(pl.col(ROW)))[ROW]
        if self._prompt is None:
            return by_row
        # A pair without a prompt is one by itself; the row's hash is hashed again, as prompts may
        # be numbers too.
        return hashed(chunk[self._prompt]).fill_null(
            by_row.to_frame().select(mixed(pl.col(ROW)))[ROW]
        )

    def _add_clusters(self, chunk: pl.DataFrame) -> None:
        if self._is_exact and chunk[CLUSTER].n_unique() > CLUSTERS_HELD:
            self._put_into_bags()
        if not self._is_exact:
            chunk = chunk.with_columns(pl.col(CLUSTER) % BAGS)
        keys = [*self._keys, CLUSTER]
        self._add(
            "clusters",
            tally(
                chunk.lazy(),
                valid=pl.col(VALID),
                objective=self._objective,
                needs=self._needs,
                is_wide=self._is_wide,
                keys=keys,
                with_health=False,
                extra=cluster_sums(self._needs, has_lengths=self._has_lengths),
            ),
            keys,
        )
        if self._is_exact and self._tables["clusters"][CLUSTER].n_unique() > CLUSTERS_HELD:
            self._put_into_bags()

    def _put_into_bags(self) -> None:
        self._is_exact = False
        table = self._tables.get("clusters")
        if table is not None:
            bagged = table.with_columns(pl.col(CLUSTER) % BAGS)
            self._tables["clusters"] = merge([bagged], [*self._keys, CLUSTER])

    def _add_lengths(self, valid: pl.DataFrame) -> None:
        difference = longer_by() if self._has_lengths else pl.lit(None, dtype=pl.Int64)
        table = (
            valid.lazy()
            .with_columns(coarse_bin(difference.cast(pl.Float64)).alias("length_bin"))
            .filter(pl.col("length_bin").is_not_null())
            .group_by("length_bin")
            .agg(count(), *course_sums())
        )
        self._add("lengths", table, ["length_bin"])

    def _add_course(self, valid: pl.DataFrame) -> None:
        size = self._rows_per_point
        while -(-self._n_rows // size) > COURSE_POINTS:
            size *= 2
        old = self._tables.get("course")
        if old is not None and size > self._rows_per_point:
            wider = pl.col("point") // (size // self._rows_per_point)
            self._tables["course"] = merge([old.with_columns(wider)], ["point"])
        self._rows_per_point = size
        table = (
            valid.lazy()
            .group_by((pl.col(ROW) // size).cast(pl.Int64).alias("point"))
            .agg(
                count(),
                *course_sums(),
                exact_sum_of_wide(pl.col(LOSS)).alias(f"sum_{LOSS}"),
            )
        )
        self._add("course", table, ["point"])

    def _add_lowest(self, valid: pl.DataFrame) -> None:
        shown = [ROW, LOSS, REWARD_MARGIN, CHOSEN_REWARD, REJECTED_REWARD]
        shown += [PAIR_ID.name] if self._has_pair_id else []
        new = valid.lazy().select(shown)
        old = self._tables.get("lowest")
        both = new if old is None else pl.concat([old.lazy(), new])
        # The row decides between equal margins, so that any cut into chunks gives the same rows.
        order = [REWARD_MARGIN, ROW]
        kept = both.bottom_k(ROWS_SHOWN, by=order).sort(order)
        self._tables["lowest"] = kept.collect()

    def _add_repeats(self, valid: pl.DataFrame) -> None:
        hashes = valid.select(pl.lit(0, dtype=pl.UInt64).alias("hash"), *self._needs.logps)
        # Mixed after each: numbers with few digits, such as those of bf16, fill few bits of a word.
        for name in self._needs.logps:
            hashes = hashes.with_columns(hash=mixed(pl.col("hash") ^ steps_of(pl.col(name))))
        kept = hashes.lazy().filter(pl.col("hash") % self._thinning == 0)
        self._add("repeats", kept.group_by("hash").agg(count()), ["hash"])
        # All copies of a pair have its hash, so a share of the hashes has the share of copies.
        while self._tables["repeats"].height > REPEATS_HELD:
            self._thinning *= 2
            thinned = self._tables["repeats"].filter(pl.col("hash") % self._thinning == 0)
            self._tables["repeats"] = thinned

    def _add_judged(self, valid: pl.DataFrame) -> None:
        if not self._judge:
            return
        scores = [pl.col(name).cast(pl.Float64) for name in self._judge]
        gap = scores[0] if len(scores) == 1 else scores[0] - scores[1]
        table = (
            valid.lazy()
            .with_columns(gap=gap, bin=coarse_bin(pl.col(REWARD_MARGIN)))
            .filter(pl.col("gap").is_finite())
        )
        if self._judge_is_coarse:
            table = table.with_columns(gap=middle_of_coarse("gap"))
        self._add("judged", table.group_by(_CELL).agg(count()), _CELL)
        if self._tables["judged"].height > JUDGE_CELLS and not self._judge_is_coarse:
            self._judge_is_coarse = True
            wide = self._tables["judged"].with_columns(gap=middle_of_coarse("gap"))
            self._tables["judged"] = merge([wide], _CELL)
