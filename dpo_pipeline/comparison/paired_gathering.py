"""The tables that a comparison is made from, added up while the common pairs are read.

All sums are exact and a cluster is known by a hash of its prompt or key, so that the tables depend
neither on the order in which pairs come out of the join nor on how they are cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dpo_pipeline.columns import CHOSEN_REWARD, LOSS, N_VALID, REJECTED_REWARD, REWARD_MARGIN
from dpo_pipeline.comparison.paired_arrays import (
    Buffers,
    Hashes,
    Histograms,
    SideArrays,
    gaps_by,
    hashes_of,
    same_counts,
    states_by,
)
from dpo_pipeline.comparison.side_sums import ClusterSums, SideSums, clusters_of
from dpo_pipeline.defaults import WORST_HELD
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.sources import KEY
from dpo_pipeline.sums import CLUSTER, ClusterTable
from dpo_pipeline.unpaired import PROMPT

ONLY_A: Final = "only_a"
ONLY_B: Final = "only_b"
BOTH_RIGHT: Final = "both_right"
HALVES: Final = "halves"
MEANS: Final = (LOSS, REWARD_MARGIN, CHOSEN_REWARD, REJECTED_REWARD)
"""Columns of a scored pair whose mean difference is wanted."""

_STATES: Final = {
    BOTH_RIGHT: [0, 0, 0, 0, 0, 0, 0, 0, 1],
    ONLY_A: [0, 0, 0, 0, 0, 0, 1, 1, 0],
    ONLY_B: [0, 0, 1, 0, 0, 1, 0, 0, 0],
    HALVES: [0, 1, 2, -1, 0, 1, -2, -1, 0],
}
"""What a pair adds to each count, by its state: 3 x of A + of B, each 0 wrong, 1 tied, 2 right."""
_GAINED: Final = (2, 5)
_LOST: Final = (6, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired(ClusterTable):
    """The tables, over pairs that are valid on both sides.

    The sums of `clusters` are `N_VALID`; pairs `BOTH_RIGHT`, `ONLY_A`, `ONLY_B`; `HALVES`: B minus
    A, a correct pair counting 2 and a tie 1; and B minus A of `MEANS`, in quanta.
    """

    totals_a: pl.DataFrame  # one row of sums, named as by `summary.tally`, for A
    totals_b: pl.DataFrame  # the same for B
    gained: pl.DataFrame  # pairs that B alone has right: key, margin_a, margin_b, change
    lost: pl.DataFrame  # pairs that A alone has right
    changes: pl.DataFrame  # `bin` (of `dpo_pipeline.exact`) of the change of margin, `n_pairs`
    margins: pl.DataFrame  # `a_bin`, `b_bin` (each of `coarse_bin`), `n_pairs`
    n_same_logps: tuple[int, int, int] = (0, 0, 0)  # pairs with the same: chosen, rejected, both
    n_same_margin: int = 0


class PairedGathering:
    """Adds up the tables of `Paired`, chunk by chunk in any order."""

    def __init__(
        self,
        *,
        objective: CheckedObjective,
        by: Sequence[str],
        keys: Sequence[str],
        is_by_prompt: bool,
        n_rows: int | None,
    ) -> None:
        """Start without pairs.

        Args:
            objective: What pairs are scored by.
            by: Columns of the subsets.
            keys: Their names in chunks.
            is_by_prompt: Whether chunks have `PROMPT`.
            n_rows: Most pairs that there can be, if known: of many, a sample shows whether
                log-probs make sense.
        """
        scores = [] if objective.has_linear_rewards else [CHOSEN_REWARD, REJECTED_REWARD]
        self._by, self._keys = tuple(by), list(keys)
        self._is_by_prompt = is_by_prompt
        self._tables: dict[str, pl.DataFrame] = {}
        self._buffers = Buffers()
        self._histograms = Histograms()
        self._clusters = ClusterSums(self._keys)
        self._sides = tuple(
            SideSums(objective.needs, MEANS, [LOSS, *scores], self._buffers, n_rows=n_rows)
            for _ in range(2)
        )
        self._same = [0, 0, 0, 0]

    @property
    def n_subsets(self) -> int:
        """Subsets found so far."""
        return self._clusters.table.select(self._keys).n_unique() if self._keys else 0

    @property
    def n_valid(self) -> int:
        """Pairs added, which are valid on both sides."""
        return self._sides[0].n_valid

    def add(self, shared: pl.DataFrame, a: pl.DataFrame, b: pl.DataFrame, n_pairs: int) -> None:
        """Add pairs that are valid on both sides, `n_pairs` with those that are not.

        `shared` has `KEY`, `PROMPT` and the subset keys; the others what each side scores. The
        three frames have the same pairs in the same order.
        """
        by_key = hashes_of(shared[KEY])
        one, other = (
            side.add(scored, by_key, n_pairs)
            for side, scored in zip(self._sides, (a, b), strict=True)
        )
        same = (*same_counts(one, other), int(np.count_nonzero(one.margin == other.margin)))
        self._same = [x + y for x, y in zip(self._same, same, strict=True)]
        states = 3 * one.state + other.state
        self._add_clusters(shared, by_key, states, one, other)
        self._add_flips(shared[KEY], states, one, other)
        self._histograms.add(one.margin, other.margin)

    def _add_clusters(
        self,
        shared: pl.DataFrame,
        by_key: Hashes,
        states: NDArray[np.uint8],
        a: SideArrays,
        b: SideArrays,
    ) -> None:
        """Add the sums of pairs by cluster and the subset keys."""
        prompts = shared[PROMPT] if self._is_by_prompt else None
        hashes = clusters_of(prompts, by_key)
        clusters, codes = self._clusters.coded(hashes, shared.select(self._keys))
        n = clusters.height
        counts = states_by(codes, n, states)
        sums = {name: counts @ np.array(adds) for name, adds in _STATES.items()}
        gaps = gaps_by(codes, n, (a, b), MEANS, self._buffers)
        self._clusters.add(
            clusters.with_columns(
                pl.Series(N_VALID, counts.sum(axis=1)),
                *(pl.Series(name, each) for name, each in sums.items()),
                *(each.alias(name) for name, each in gaps.items()),
            )
        )

    def _add_flips(
        self, keys: pl.Series, states: NDArray[np.uint8], a: SideArrays, b: SideArrays
    ) -> None:
        """Keep the pairs with the largest changes among those that one side alone has right."""
        for name, of, sign in (("gained", _GAINED, 1.0), ("lost", _LOST, -1.0)):
            rows = np.flatnonzero((states == of[0]) | (states == of[1]))
            change = b.margin[rows] - a.margin[rows]
            if rows.size > WORST_HELD:
                size = sign * change
                few = size >= np.partition(size, -WORST_HELD)[-WORST_HELD]
                rows, change = rows[few], change[few]
            flips = pl.DataFrame(
                [
                    keys.gather(rows).alias("key"),
                    pl.Series("margin_a", a.margin[rows]),
                    pl.Series("margin_b", b.margin[rows]),
                    pl.Series("change", change),
                ]
            )
            if name in self._tables:
                flips = pl.concat([self._tables[name], flips])
            # Equal changes are ordered by key, so that any order of the pairs gives the same.
            order = flips.sort("change", "key", descending=[name == "gained", False])
            self._tables[name] = order.head(WORST_HELD)

    def finish(self) -> Paired:
        """Return the tables; at least one chunk must have been added."""
        tables = self._tables
        clusters = self._clusters.table.rename(dict(zip(self._keys, self._by, strict=True)))
        totals = [side.totals() for side in self._sides]
        return Paired(
            by=self._by,
            is_by_prompt=self._is_by_prompt,
            is_exact=self._clusters.is_exact,
            clusters=clusters.sort(*self._by, CLUSTER, nulls_last=True),
            totals_a=totals[0],
            totals_b=totals[1],
            gained=tables["gained"],
            lost=tables["lost"],
            changes=self._histograms.changes(),
            margins=self._histograms.margins(),
            n_same_logps=(self._same[0], self._same[1], self._same[2]),
            n_same_margin=self._same[3],
        )
