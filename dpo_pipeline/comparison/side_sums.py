"""Sums over common pairs: of one policy, and by cluster, chunk by chunk in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
import polars.selectors as cs

from dpo_pipeline.columns import COUNT_ROLES, N_PAIRS, N_VALID, Needs
from dpo_pipeline.comparison.paired_arrays import (
    NO_ENDS,
    Buffers,
    Ends,
    Hashes,
    SideArrays,
    Whole,
    hashes_of,
)
from dpo_pipeline.defaults import BAGS, CLUSTERS_HELD, SENSED_PAIRS
from dpo_pipeline.statistics import cluster_hashes
from dpo_pipeline.sums import CLUSTER, coded, merge, sense_of

_SAMPLED_BITS: Final = 20


class SideSums:
    """Adds up the pairs of one policy: its figures, and whether its log-probs make sense."""

    def __init__(
        self,
        needs: Needs,
        means: Sequence[str],
        summed: Sequence[str],
        buffers: Buffers,
        *,
        n_rows: int | None,
        held: int | None = None,
    ) -> None:
        """Start without pairs.

        Args:
            needs: Which log-probs there are.
            means: Columns of scores that the arrays have.
            summed: Those of them that are added up, beside the log-probs.
            buffers: Shared by all sides.
            n_rows: Most pairs that there can be, if known: of many, a sample is looked at.
            held: How many pairs are held before they are looked at; all of a sample if not given.
        """
        self._needs, self._means, self._summed = needs, means, summed
        self._buffers = buffers
        self._most = SENSED_PAIRS if held is None else held
        self._sampled = 2**_SAMPLED_BITS
        if n_rows is not None and n_rows > SENSED_PAIRS:
            self._sampled = -(-SENSED_PAIRS * 2**_SAMPLED_BITS // n_rows)
        self._sums = Counter[str]()
        self._seen = [*needs.logps, *(role.name for role in COUNT_ROLES)]
        self._held: list[pl.DataFrame] = []
        self._sense: pl.DataFrame | None = None
        self._ends: dict[str, tuple[float, float]] = {}

    def add(self, scored: pl.DataFrame, by_key: Hashes, n_pairs: int) -> SideArrays:
        """Add valid pairs, `n_pairs` with those that are not, and return their arrays."""
        sample = self.sample_of(by_key)
        side = self.arrays_of(scored, sample)
        for rows, of in side.blocks():
            side.add(rows, of)
        self.add_arrays(side, scored, sample, n_pairs)
        return side

    def sample_of(self, by_key: Hashes) -> Whole | None:
        """Return which pairs show whether log-probs make sense; None if all do."""
        if self._sampled == 2**_SAMPLED_BITS:
            return None
        return np.flatnonzero(by_key < np.uint64(self._sampled << (64 - _SAMPLED_BITS)))

    def arrays_of(
        self, scored: pl.DataFrame, sample: Whole | None, ends: Ends | None = None
    ) -> SideArrays:
        """Return the arrays of valid pairs, of which no block is added yet."""
        names = (self._means, self._summed)
        return SideArrays(scored, self._needs, *names, self._buffers, ends=ends, sample=sample)

    def add_arrays(
        self, side: SideArrays, scored: pl.DataFrame, sample: Whole | None, n_pairs: int
    ) -> None:
        """Add valid pairs, `n_pairs` with those that are not, whose blocks are added."""
        self._sums[N_PAIRS] += n_pairs
        self._sums.update(side.sums)
        seen = scored.select(cs.by_name(self._seen, require_all=False))
        if sample is not None:
            found = {n: np.concatenate([*each, []]) for n, each in side.sampled.items()}
            others = [c for c in seen if c.name not in found]
            seen = pl.DataFrame(found | {c.name: c.gather(sample) for c in others})
        self._held.append(seen)
        if sum(map(len, self._held)) > self._most:
            self._see()
            self._held = [seen.clear()]
        if side.n:
            for name in self._needs.logps:
                (low, high), (least, most) = side.ends[name], self._ends.get(name, NO_ENDS)
                self._ends[name] = min(low, least), max(high, most)

    @property
    def n_valid(self) -> int:
        """Pairs added."""
        return self._sums[N_VALID]

    def _see(self) -> None:
        """Add what shows whether the log-probs of pairs make sense."""
        pairs, valid = pl.concat(self._held).lazy(), pl.lit(value=True)
        sense = sense_of(pairs, valid=valid, needs=self._needs, lagged=False, has_equal=False)
        self._sense = _added(self._sense, sense.collect())

    def totals(self) -> pl.DataFrame:
        """Return one row of sums, as `tally` names them; at least one chunk must have been added.

        Extremes are of all pairs, not of a sample.
        """
        types = {n: pl.Int128 if n.startswith("sum_") else pl.Int64 for n in self._sums}
        self._see()
        self._held = [self._held[0].clear()]
        found = pl.DataFrame([dict(self._sums)], schema=types)
        if self._sense is not None:
            found = found.hstack(self._sense)
        ends = {
            f"{end}_{name}": pl.Series([each[i]])
            for i, end in enumerate(("min", "max"))
            for name, each in self._ends.items()
        }
        return found.with_columns(**ends)


def _added(old: pl.DataFrame | None, new: pl.DataFrame) -> pl.DataFrame:
    return new if old is None else merge([old, new])


def clusters_of(prompts: pl.Series | None, by_key: Hashes) -> Hashes:
    """Return the hash of the cluster of each pair: of its prompt, or of the pair without one."""
    if prompts is None:
        return by_key
    if not prompts.null_count():
        return hashes_of(prompts)
    return cluster_hashes(prompts, pl.Series(by_key)).rechunk().to_numpy()


class ClusterSums:
    """Sums by cluster (and by `keys`) of few clusters one by one, of many in bags."""

    def __init__(self, keys: Sequence[str] = (), held: int | None = None) -> None:
        """Start without pairs; up to `held` clusters are held one by one."""
        self._keys = [*keys, CLUSTER]
        self._held = CLUSTERS_HELD if held is None else held
        self.is_exact = True
        self.table = pl.DataFrame()

    def coded(self, hashes: Hashes, keys: pl.DataFrame) -> tuple[pl.DataFrame, Whole]:
        """Return the clusters of a chunk, and the place of each pair among them."""
        held = self._held if self.is_exact else 0
        clusters, codes, is_exact = coded(hashes, keys, held, BAGS)
        if self.is_exact and not is_exact:
            self._put_into_bags()
        return clusters, codes

    def add(self, sums: pl.DataFrame) -> None:
        """Add the sums of the clusters of `coded`, with `N_VALID`."""
        new = sums.filter(pl.col(N_VALID) > 0)
        self.table = merge([self.table, new], self._keys) if self.table.width else new
        if self.is_exact and self.table[CLUSTER].n_unique() > self._held:
            self._put_into_bags()

    def _put_into_bags(self) -> None:
        """Merge the clusters found so far into bags; a bag is its own."""
        self.is_exact = False
        if self.table.width:
            rows = self.table.with_columns(pl.col(CLUSTER) % BAGS)
            self.table = merge([rows], self._keys)
