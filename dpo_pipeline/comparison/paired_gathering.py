"""The tables that a comparison is made from, added up while the common pairs are read.

All sums are exact and a cluster is known by a hash of its prompt or key, so that the tables depend
neither on the order in which pairs come out of the join nor on how they are cut into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dpo_pipeline.columns import (
    CHOSEN_REWARD,
    LOSS,
    N_VALID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REJECTED_REWARD,
    REWARD_MARGIN,
)
from dpo_pipeline.comparison.paired_arrays import (
    Buffers,
    Ends,
    Histograms,
    Numbers,
    PairedSums,
    Whole,
    hashes_of,
)
from dpo_pipeline.comparison.side_sums import ClusterSums, SideSums, clusters_of
from dpo_pipeline.defaults import WORST_HELD
from dpo_pipeline.exact import SMALL
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
        self._objective, self._by, self._keys = objective, tuple(by), list(keys)
        self._is_by_prompt = is_by_prompt
        self._flips = {"gained": _Flips(_GAINED, 1.0), "lost": _Flips(_LOST, -1.0)}
        self._buffers = Buffers()
        self._changes = np.empty_like(self._buffers.floats[0])
        self._histograms = Histograms(self._buffers)
        self._clusters = ClusterSums(self._keys)
        self._sides = tuple(
            SideSums(objective.needs, MEANS, [LOSS, *scores], self._buffers, n_rows=n_rows)
            for _ in range(2)
        )
        self._same = np.zeros(4, dtype=np.int64)

    @property
    def n_subsets(self) -> int:
        """Subsets found so far."""
        return self._clusters.table.select(self._keys).n_unique() if self._keys else 0

    @property
    def n_valid(self) -> int:
        """Pairs added, which are valid on both sides."""
        return self._sides[0].n_valid

    def add(
        self,
        shared: pl.DataFrame,
        a: pl.DataFrame,
        b: pl.DataFrame,
        n_pairs: int,
        ends: Sequence[Ends] | None = None,
    ) -> None:
        """Add pairs that are valid on both sides, `n_pairs` with those that are not.

        `shared` has `KEY`, `PROMPT` and the subset keys; the others what each side scores, with the
        ends of its log-probs if they are known. The three frames have the same pairs in the same
        order.
        """
        by_key = hashes_of(shared[KEY])
        prompts = shared[PROMPT] if self._is_by_prompt else None
        hashes = clusters_of(prompts, by_key)
        clusters, codes = self._clusters.coded(hashes, shared.select(self._keys))
        if len({tuple(each.chunk_lengths()) for rows in (a, b) for each in rows}) > 1:
            a, b = a.rechunk(), b.rechunk()
        sample = self._sides[0].sample_of(by_key)
        known = [self._within(each) for each in ends or ({}, {})]
        one, other = (
            side.arrays_of(scored, sample, each)
            for side, scored, each in zip(self._sides, (a, b), known, strict=True)
        )
        most = np.bincount(codes, minlength=1).max()
        sums = PairedSums(clusters.height, MEANS, self._buffers, most=float(most))
        for (rows, of_a), (_, of_b) in zip(one.blocks(), other.blocks(), strict=True):
            one.add(rows, of_a)
            other.add(rows, of_b)
            states = 3 * one.state[rows] + other.state[rows]
            sums.add(codes[rows], states, (of_a, of_b), (one, other))
            self._add_block(rows, of_a, of_b, states)
        for side, arrays, scored in zip(self._sides, (one, other), (a, b), strict=True):
            side.add_arrays(arrays, scored, sample, n_pairs)
        for each in self._flips.values():
            each.close(shared[KEY])
        by_state = sums.states()
        counts = {name: by_state @ np.array(adds) for name, adds in _STATES.items()}
        self._clusters.add(
            clusters.with_columns(
                pl.Series(N_VALID, by_state.sum(axis=1)),
                *(pl.Series(name, each) for name, each in counts.items()),
                *(each.alias(name) for name, each in sums.gaps().items()),
            )
        )

    def _within(self, ends: Ends) -> Ends:
        """Add what scores are within, where the ends of their log-probs tell that it is small."""
        largest = math.inf
        if ends:
            lowest, highest = (
                min(low for low, _ in ends.values()),
                max(high for _, high in ends.values()),
            )
            largest = self._objective.largest_score(lowest, highest)
        return ends if largest > SMALL else {**ends, **dict.fromkeys(MEANS, (-largest, largest))}

    def _add_block(
        self,
        rows: slice,
        a: Mapping[str, Numbers],
        b: Mapping[str, Numbers],
        states: NDArray[np.uint8],
    ) -> None:
        """Add what depends on both sides, pair by pair."""
        margins = a[REWARD_MARGIN], b[REWARD_MARGIN]
        chosen, rejected = (a[r.name] == b[r.name] for r in (POLICY_CHOSEN, POLICY_REJECTED))
        same = (chosen, rejected, chosen & rejected, margins[0] == margins[1])
        self._same += [np.count_nonzero(each) for each in same]
        changes = np.subtract(margins[1], margins[0], out=self._changes[: states.size])
        for each in self._flips.values():
            each.add(rows.start, states, changes, margins)
        self._histograms.add(*margins, changes)

    def finish(self) -> Paired:
        """Return the tables; at least one chunk must have been added."""
        clusters = self._clusters.table.rename(dict(zip(self._keys, self._by, strict=True)))
        totals, same = [side.totals() for side in self._sides], self._same.tolist()
        return Paired(
            by=self._by,
            is_by_prompt=self._is_by_prompt,
            is_exact=self._clusters.is_exact,
            clusters=clusters.sort(*self._by, CLUSTER, nulls_last=True),
            totals_a=totals[0],
            totals_b=totals[1],
            **{name: each.table for name, each in self._flips.items()},
            changes=self._histograms.changes(),
            margins=self._histograms.margins(),
            n_same_logps=(same[0], same[1], same[2]),
            n_same_margin=same[3],
        )


class _Flips:
    """Keeps the pairs with the largest changes among those that one side alone has right."""

    def __init__(self, states: tuple[int, int], sign: float) -> None:
        self._states, self._sign = states, sign
        self._least = 0.0  # a change of less is not kept
        self._found: list[tuple[Whole, Numbers, Numbers, Numbers]] = []
        self.table = pl.DataFrame()

    def add(
        self,
        first: int,
        states: NDArray[np.uint8],
        changes: Numbers,
        margins: tuple[Numbers, Numbers],
    ) -> None:
        """Look through a block, which begins at the row `first`."""
        large = changes >= self._least if self._sign > 0.0 else changes <= -self._least
        rows = np.flatnonzero(large)
        of = states[rows]
        rows = rows[(of == self._states[0]) | (of == self._states[1])]
        if rows.size:
            a, b = (each[rows] for each in margins)
            self._found.append((rows + first, a, b, changes[rows]))

    def close(self, keys: pl.Series) -> None:
        """Keep the largest of the blocks added, whose pairs have these keys."""
        if self.table.width and not self._found:
            return
        columns = [np.concatenate(each) for each in zip(*self._found, strict=True)]
        self._found.clear()
        if not columns:
            columns = [np.zeros(0, dtype=np.int64), *[np.zeros(0)] * 3]
        rows, *numbers = columns
        if rows.size > WORST_HELD:
            sizes = self._sign * numbers[-1]
            few = sizes >= np.partition(sizes, -WORST_HELD)[-WORST_HELD]
            rows, numbers = rows[few], [each[few] for each in numbers]
        named = zip(("margin_a", "margin_b", "change"), numbers, strict=True)
        flips = pl.DataFrame(
            [keys.gather(rows).alias("key"), *(pl.Series(name, each) for name, each in named)]
        )
        if self.table.width:
            flips = pl.concat([self.table, flips])
        # Equal changes are ordered by key, so that any order of the pairs gives the same.
        order = flips.sort("change", "key", descending=[self._sign > 0.0, False])
        self.table = order.head(WORST_HELD)
        if self.table.height == WORST_HELD:
            self._least = abs(float(self.table["change"][-1]))
