"""The tables that statistics of an evaluation are made from, added up while it reads its rows.

All sums are exact, so that the tables do not depend on how the rows were cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_REWARD,
    CHOSEN_TOKENS,
    LOSS,
    N_PAIRS,
    N_VALID,
    OF_SUBSET,
    PAIR_ID,
    PROMPT_ID,
    REJECTED_REWARD,
    REJECTED_TOKENS,
    REWARD_MARGIN,
)
from dpo_pipeline.contract import Binding
from dpo_pipeline.defaults import (
    BAGS,
    CLUSTERS_HELD,
    COURSE_POINTS,
    JUDGE_CELLS,
    REPEATS_HELD,
    SUBSETS_HELD,
    WORST_HELD,
    WORST_OF_SUBSET,
)
from dpo_pipeline.exact import lower_edge
from dpo_pipeline.losses import CheckedObjective, linear_rewards
from dpo_pipeline.statistics import hashed
from dpo_pipeline.sums import (
    CLUSTER,
    VALID,
    ClusterTable,
    coarse_bin,
    coarse_middle,
    merge,
)

if TYPE_CHECKING:
    from dpo_pipeline.sums import Grid, PairArrays

GROUP: Final = "__dpo_pipeline_group"
ROW: Final = "row"
_HASH: Final = "hash"
_POINT: Final = "point"
GROUPS: Final = 64
"""Groups of clusters that a jackknife leaves out in turn; a divisor of the bags."""
_JUDGED: Final = (GROUP, "gap", "bin")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
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
        worst: The same of each subset, `WORST_OF_SUBSET` pairs at most, with the columns of `by`
            after `OF_SUBSET`; None without subsets, or with more than `SUBSETS_HELD`.
        repeats: The share of pairs whose log-probs are all those of an earlier pair, counted among
            `repeats_seen` pairs. None if no pair was looked at.
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
    worst: pl.DataFrame | None
    repeats: float | None
    repeats_seen: int
    contradictory: float | None
    judged: pl.DataFrame | None

    def __repr__(self) -> str:
        """Return the rows of each table."""
        tables = {each.name: getattr(self, each.name) for each in fields(self)}
        rows = [f"{n}={t.height}" for n, t in tables.items() if isinstance(t, pl.DataFrame)]
        return f"Gathered(rows of {', '.join(rows)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredPart:
    """The tables of some rows: a value that can be sent, and merged with others in any order.

    Attributes:
        end: Rows of the dataset up to the last of these.
        is_exact: Whether each cluster has its own row in `clusters`.
        repeats: Counts by `_HASH`, whose last bit says that chosen and rejected are exchanged; of
            hashes that `thinning`, a power of two, leaves.
        is_coarse: Whether the judge's gaps are binned.
    """

    end: int
    is_exact: bool
    clusters: pl.DataFrame
    groups: pl.DataFrame
    margins: Grid
    rewards: Grid
    lengths: pl.DataFrame
    course: pl.DataFrame
    lowest: pl.DataFrame
    worst: pl.DataFrame | None
    repeats: pl.DataFrame
    thinning: int
    judged: pl.DataFrame | None
    is_coarse: bool


class Gathering:
    """Makes the tables of `Gathered`: of some rows, of parts together, of all.

    Attributes:
        columns: What rows have to have beside `VALID` and the subset keys.
    """

    def __init__(
        self,
        *,
        binding: Binding,
        objective: CheckedObjective,
        by: Sequence[str],
        keys: Sequence[str],
        judge: tuple[str, ...],
        has_ids: bool,
    ) -> None:
        """Start for pairs of a binding; `keys` are those of `by` in rows."""
        schema, needs = binding.columns, binding.needs
        self._needs = needs
        self._by, self._keys = tuple(by), list(keys)
        self._judge = judge
        self._is_by_prompt = PROMPT_ID.name in schema
        self._objective = objective
        self._has_lengths = all(role.name in schema for role in (CHOSEN_TOKENS, REJECTED_TOKENS))
        scores = [] if objective.has_linear_rewards else [CHOSEN_REWARD, REJECTED_REWARD]
        self._summed = [*needs.logps, LOSS, *scores]
        # Parts that come after others in one process leave out what those would not keep.
        self._thinning = 1
        names = (*([PAIR_ID.name] * has_ids), PROMPT_ID.name, *judge)
        self.columns = [
            *needs.logps,
            *((CHOSEN_TOKENS.name, REJECTED_TOKENS.name) if self._has_lengths else ()),
            *(name for name in names if name in schema),
            *(*scores, REWARD_MARGIN, LOSS),
        ]

    def part(self, rows: pl.DataFrame, first_row: int) -> tuple[GatheredPart, PairArrays]:
        """Return the tables of rows: `columns`, the subset keys and `VALID`; and their sums.

        Those have the columns of subset keys too.
        """
        import numpy as np

        from dpo_pipeline.sums import PairArrays, coded

        end = first_row + rows.height
        number = np.arange(first_row, end, dtype=np.uint64)
        hashes = self._hashes(rows, number)
        # Each pair without prompts is a cluster, so that many rows are surely many.
        held = CLUSTERS_HELD if self._is_by_prompt or rows.height <= CLUSTERS_HELD else 0
        clusters, codes, is_exact = coded(hashes, rows.select(self._keys), held, BAGS)
        n = clusters.height
        n_pairs = n_valid = np.bincount(codes, minlength=n)
        if not rows[VALID].all():
            valid = rows[VALID].to_numpy()
            rows, number, hashes = rows.filter(VALID), number[valid], hashes[valid]
            codes = codes[valid]
            n_valid = np.bincount(codes, minlength=n)
        group = _remainder(hashes, GROUPS)
        pairs = PairArrays(
            rows,
            self._needs,
            self._summed,
            codes=codes,
            n=n,
            group=group,
            n_groups=GROUPS,
            most=int(n_valid.max(initial=0)),
            number=number,
            rows_per_point=_rows_per_point(end),
            objective=self._objective,
            has_lengths=self._has_lengths,
            has_squares=not self._is_by_prompt,
        )
        counts = {N_PAIRS: n_pairs, N_VALID: n_valid}
        clusters = clusters.hstack(pl.DataFrame(counts).cast(pl.Int64)).hstack(pairs.clusters)
        pairs.clusters = clusters.filter(pl.col(N_PAIRS) > 0)
        groups = pairs.groups
        groups.insert_column(0, pl.Series(GROUP, np.arange(GROUPS), dtype=pl.UInt64))
        repeats, thinning = _counted(pairs, self._thinning)
        part = _thinned(
            GatheredPart(
                end=end,
                is_exact=is_exact,
                clusters=pairs.clusters,
                groups=groups.filter(pl.col(N_VALID) > 0),
                margins=pairs.margins,
                rewards=pairs.rewards,
                lengths=pairs.lengths,
                course=pairs.course,
                lowest=self._lowest(rows, number, pairs.margins),
                worst=self._first_of_each(rows.select(*self._keys, *self._listed(number))),
                repeats=repeats,
                thinning=thinning,
                judged=self._judged(rows, group) if self._judge else None,
                is_coarse=False,
            )
        )
        self._thinning = max(self._thinning, part.thinning)
        return part, pairs

    def merged(self, parts: Sequence[GatheredPart]) -> GatheredPart:
        """Return the tables of parts together, in any order."""
        from dpo_pipeline.sums import Grid

        end = max(each.end for each in parts)
        is_exact = all(each.is_exact for each in parts)
        is_coarse = any(each.is_coarse for each in parts)
        thinning = max(each.thinning for each in parts)
        clusters = [each.clusters for each in parts]
        if not is_exact:
            clusters = [each.with_columns(pl.col(CLUSTER) % BAGS) for each in clusters]
        size = _rows_per_point(end)
        course = [
            each.course.with_columns(pl.col(_POINT) // (size // _rows_per_point(each.end)))
            for each in parts
        ]
        judged = [each.judged for each in parts if each.judged is not None]
        if is_coarse:
            judged = [each.with_columns(_coarse_gap()) for each in judged]
        part = _thinned(
            GatheredPart(
                end=end,
                is_exact=is_exact,
                clusters=merge(clusters, [*self._keys, CLUSTER]),
                groups=merge([each.groups for each in parts], [GROUP]),
                margins=Grid.merged([each.margins for each in parts]),
                rewards=Grid.merged([each.rewards for each in parts]),
                lengths=merge([each.lengths for each in parts], ["length_bin"]),
                course=merge(course, [_POINT]),
                lowest=_first(pl.concat([each.lowest for each in parts])),
                worst=self._worst([each.worst for each in parts]),
                repeats=_added_up([each.repeats.filter(_is_kept(thinning)) for each in parts]),
                thinning=thinning,
                judged=merge(judged, _JUDGED) if judged else None,
                is_coarse=is_coarse,
            ),
            [*self._keys, CLUSTER],
        )
        self._thinning = max(self._thinning, part.thinning)
        return part

    def finished(self, part: GatheredPart) -> Gathered:
        """Return the tables of all parts, merged."""
        clusters = merge([part.clusters], [*self._keys, CLUSTER])
        clusters = clusters.rename(dict(zip(self._keys, self._by, strict=True)))
        in_use = clusters.filter(pl.col(N_VALID) > 0)[CLUSTER].n_unique()
        seen, distinct = int(part.repeats[N_PAIRS].sum()), part.repeats.height
        pair = part.repeats.group_by(pl.col(_HASH) // 2).agg(pl.col(N_PAIRS).min(), n=pl.len())
        opposed = 2 * int(pair.filter(pl.col("n") > 1)[N_PAIRS].sum())
        size = _rows_per_point(part.end)
        first_row = (pl.col(_POINT) * size).alias("first_row")
        return Gathered(
            by=self._by,
            is_by_prompt=self._is_by_prompt,
            is_exact=part.is_exact,
            n_clusters=in_use if part.is_exact else None,
            has_lengths=self._has_lengths,
            has_reference=self._needs.reference,
            clusters=clusters.sort(*self._by, CLUSTER, nulls_last=True),
            groups=part.groups.sort(GROUP),
            margins=part.margins.table(GROUP, "bin"),
            rewards=part.rewards.table("chosen_bin", "rejected_bin"),
            lengths=part.lengths.sort("length_bin"),
            course=part.course.sort(_POINT).select(first_row, pl.exclude(_POINT)),
            rows_per_point=size,
            lowest=part.lowest,
            worst=self._in_order(part.worst),
            repeats=1.0 - distinct / seen if seen else None,
            repeats_seen=seen,
            contradictory=opposed / seen if seen else None,
            judged=None if part.judged is None else part.judged.sort(_JUDGED),
        )

    def _hashes(self, rows: pl.DataFrame, number: Any) -> Any:
        """Return a hash of the cluster of each row: its prompt, or the row where that is null."""
        import numpy as np

        from dpo_pipeline.sums import mixed_array

        if not self._is_by_prompt:
            return mixed_array(number)
        prompts = rows[PROMPT_ID.name]
        if prompts.dtype == pl.Int64 and not prompts.null_count():
            return mixed_array(prompts.rechunk().to_numpy().view(np.uint64))
        prompts = hashed(prompts)
        if prompts.null_count():
            # Hashed once more, because prompts may be the same numbers as rows.
            prompts = prompts.fill_null(pl.Series(mixed_array(mixed_array(number))))
        return prompts.rechunk().to_numpy()

    def _lowest(self, rows: pl.DataFrame, number: Any, margins: Grid) -> pl.DataFrame:
        """Return the pairs with the smallest margins."""
        import numpy as np

        if rows.height > WORST_HELD:  # only rows in the bins of the smallest
            upto = np.cumsum(margins.counts.sum(axis=0))
            last = margins.low[1] + int(np.searchsorted(upto, WORST_HELD))
            end = pl.select(lower_edge(pl.lit(last + 1))).item()
            few = (rows[REWARD_MARGIN] <= end).arg_true()
            rows, number = rows[few], number[few.to_numpy()]
        return _first(rows.select(self._listed(number)))

    def _listed(self, number: Any) -> list[Any]:
        """Return the columns of pairs that are listed."""
        ids = [PAIR_ID.name] if PAIR_ID.name in self.columns else []
        scores: list[Any] = [CHOSEN_REWARD, REJECTED_REWARD]
        if self._objective.has_linear_rewards:
            made = linear_rewards(self._objective)
            scores = [each.alias(name) for name, each in made.items()]
        return [pl.Series(ROW, number), LOSS, REWARD_MARGIN, *scores, *ids]

    def _worst(self, tables: Sequence[pl.DataFrame | None]) -> pl.DataFrame | None:
        there = [each for each in tables if each is not None]
        return self._first_of_each(pl.concat(there)) if len(there) == len(tables) else None

    def _in_order(self, worst: pl.DataFrame | None) -> pl.DataFrame | None:
        names = {key: f"{OF_SUBSET}{name}" for key, name in zip(self._keys, self._by, strict=True)}
        if worst is None:
            return None
        return worst.rename(names).sort(*names.values(), REWARD_MARGIN, ROW, nulls_last=True)

    def _first_of_each(self, rows: pl.DataFrame) -> pl.DataFrame | None:
        """Return the pairs with the smallest margins of each subset; None if there are too many."""
        keys = self._keys
        if not keys or rows.select(pl.struct(keys).n_unique()).item() > SUBSETS_HELD:
            return None
        last = pl.col(REWARD_MARGIN).bottom_k(WORST_OF_SUBSET).max()
        few = rows.filter(pl.col(REWARD_MARGIN) <= last.over(keys))
        of_each = pl.exclude(keys).bottom_k_by([REWARD_MARGIN, ROW], k=WORST_OF_SUBSET)
        return (
            few.group_by(keys)
            .agg(of_each)
            .explode([name for name in rows.columns if name not in keys])
        )

    def _judged(self, rows: pl.DataFrame, group: Any) -> pl.DataFrame:
        scores = [pl.col(name).cast(pl.Float64) for name in self._judge]
        gap = scores[0] if len(scores) == 1 else scores[0] - scores[1]
        cells = rows.select(
            pl.Series(GROUP, group, dtype=pl.UInt64),
            gap=gap,
            bin=coarse_bin(pl.col(REWARD_MARGIN)),
        ).filter(pl.col("gap").is_finite())
        return cells.group_by(_JUDGED).agg(pl.len().cast(pl.Int64).alias(N_PAIRS))


def _remainder(hashes: Any, n: int) -> Any:
    """Return each hash modulo n, which is fast for a power of two."""
    import numpy as np

    if n & (n - 1):
        return (hashes % np.uint64(n)).astype(np.int64)
    return (hashes & np.uint64(n - 1)).view(np.int64)


def _rows_per_point(end: int) -> int:
    """Return the power of two that makes the course of so many rows no longer than it may be."""
    size = 1
    while -(-end // size) > COURSE_POINTS:
        size *= 2
    return size


def _first(rows: pl.DataFrame) -> pl.DataFrame:
    # Equal margins are ordered by row, so that any cut into parts gives the same rows.
    return rows.sort(REWARD_MARGIN, ROW).head(WORST_HELD)


def _coarse_gap() -> pl.Expr:
    return coarse_middle(coarse_bin(pl.col("gap"))).alias("gap")


def _is_kept(thinning: int) -> pl.Expr:
    return pl.col(_HASH) <= pl.lit((2**64 - 1) // thinning, dtype=pl.UInt64)


def _counted(pairs: PairArrays, least: int) -> tuple[pl.DataFrame, int]:
    """Count pairs by hash, of as few hashes as are surely enough; return also their thinning.

    It is at least `least`: what all pairs need can only be more than what some of them do.
    """
    import numpy as np

    keys, thinning = pairs.keys, least
    while keys.size > REPEATS_HELD * thinning:
        thinning *= 2
    # Fewer keys than so many are surely enough, if those are more than may be held.
    while thinning > least and _slots(_kept(keys, thinning // 2)) <= REPEATS_HELD:
        thinning //= 2
    rows = np.flatnonzero(keys <= np.uint64((2**64 - 1) // thinning))
    hashes, counts = np.unique(pairs.hashes(rows), return_counts=True)
    return pl.DataFrame({_HASH: hashes, N_PAIRS: pl.Series(counts, dtype=pl.Int64)}), thinning


def _added_up(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Add up tables of `_counted`, by sorting: faster than a group for each hash."""
    import numpy as np

    rows = pl.concat(tables)
    hashes = rows[_HASH].to_numpy()
    order = np.argsort(hashes)
    hashes = hashes[order]
    starts = np.flatnonzero(np.diff(hashes, prepend=hashes[:1] + np.uint64(1)) != 0)
    counts = rows[N_PAIRS].to_numpy()[order]
    sums = np.add.reduceat(counts, starts) if starts.size else counts
    return pl.DataFrame({_HASH: hashes[starts], N_PAIRS: sums})


def _kept(keys: Any, thinning: int) -> Any:
    import numpy as np

    if thinning == 1:
        return keys
    return keys[np.flatnonzero(keys <= np.uint64((2**64 - 1) // thinning))]


def _slots(keys: Any) -> int:
    """Return a number that different keys surely reach."""
    import numpy as np

    there = np.zeros(2**18, dtype=bool)
    there[(keys >> np.uint64(20)) & np.uint64(2**18 - 1)] = True
    return int(there.sum())


def _thinned(part: GatheredPart, keys: Sequence[str] = ()) -> GatheredPart:
    """Return a part whose tables are no longer than they may be."""
    if part.is_exact and part.clusters[CLUSTER].n_unique() > CLUSTERS_HELD:
        bags = merge([part.clusters.with_columns(pl.col(CLUSTER) % BAGS)], keys)
        part = replace(part, clusters=bags, is_exact=False)
    repeats, thinning = part.repeats.filter(_is_kept(part.thinning)), part.thinning
    while repeats.height > REPEATS_HELD:
        thinning *= 2
        repeats = repeats.filter(_is_kept(thinning))
    # Copies share a hash, so a sample of the hashes keeps the share of copies.
    part = replace(part, repeats=repeats, thinning=thinning)
    if part.judged is not None and part.judged.height > JUDGE_CELLS and not part.is_coarse:
        cells = merge([part.judged.with_columns(_coarse_gap())], _JUDGED)
        part = replace(part, judged=cells, is_coarse=True)
    return part
