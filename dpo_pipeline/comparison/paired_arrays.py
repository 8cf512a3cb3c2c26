"""Common pairs as arrays: their sums over all and by cluster, block by block.

A block stays in the cache of a core until all is made of it. Steps write into arrays that are there
already: memory that is asked for anew comes page by page from the system, which costs more than the
sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dpo_pipeline.columns import (
    N_PAIRS,
    N_VALID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    REWARD_MARGIN,
    Needs,
)
from dpo_pipeline.exact import QUANTA_PER_NAT, SHIFT, SHIFT_BITS, SMALL
from dpo_pipeline.statistics import hashed
from dpo_pipeline.sums import (
    COARSE,
    N_COMPARED,
    N_UNMOVED,
    ExactSums,
    WholeSums,
    bins_of,
    equal,
    exact_sums,
    mixed_array,
    whole_quanta,
)

Whole = NDArray[np.int64]
Numbers = NDArray[np.float64]
Hashes = NDArray[np.uint64]
Marks = NDArray[np.bool_]
Ends = Mapping[str, tuple[float, float]]
"""The smallest and the largest of columns."""
NO_ENDS: Final = (np.inf, -np.inf)

_BLOCK: Final = 2**15
_MOST: Final = 2.0**63
_AGAINST: Final = ((POLICY_CHOSEN, REF_CHOSEN), (POLICY_REJECTED, REF_REJECTED))
STATES: Final = 9
"""What a pair is for both sides: 3 x of A + of B, each 0 wrong, 1 a tie, 2 right."""


class Buffers:
    """Arrays of a block that steps write into."""

    def __init__(self) -> None:
        """Take the memory."""
        self.floats = [np.empty(_BLOCK) for _ in range(2)]
        self.singles = [np.empty(_BLOCK, dtype=np.float32) for _ in range(4)]
        self.wholes = [np.empty(_BLOCK, dtype=np.int64) for _ in range(2)]


def hashes_of(keys: pl.Series) -> Hashes:
    """Return `hashed` keys, none of which is null."""
    if not keys.dtype.is_integer() or keys.dtype in (pl.Int128, pl.UInt128):
        return hashed(keys).rechunk().to_numpy()
    whole = pl.UInt64 if keys.dtype.is_unsigned_integer() else pl.Int64
    return mixed_array(keys.cast(whole).rechunk().to_numpy().view(np.uint64))


def chunks_of(rows: pl.DataFrame, names: Sequence[str]) -> list[dict[str, Numbers]]:
    """Return columns as arrays, without a copy: those of a plan come in chunks."""
    columns = [rows[name].cast(pl.Float64) for name in names]
    chunks = [column.get_chunks() for column in columns]
    if len({tuple(map(len, each)) for each in chunks}) > 1:
        chunks = [[column.rechunk()] for column in columns]
    arrays = ([each.to_numpy() for each in some] for some in zip(*chunks, strict=True))
    return [dict(zip(names, some, strict=True)) for some in arrays]


def ends_of(chunks: Sequence[Mapping[str, Numbers]]) -> dict[str, tuple[float, float]]:
    """Return the ends of columns, NaN of one with NaN or null."""
    ends: dict[str, tuple[float, float]] = {}
    for chunk in chunks:
        for name, column in chunk.items():
            if column.size:
                low, high = ends.get(name, NO_ENDS)
                # Unlike `min`, these give NaN if either is NaN.
                low, high = np.minimum(low, column.min()), np.maximum(high, column.max())
                ends[name] = float(low), float(high)
    return ends


def _quanta(values: Numbers, into: Numbers) -> Whole:
    """Return small numbers in quanta, plus `SHIFT_BITS`; rounded half to even."""
    return np.add(values, SHIFT, out=into[: values.size]).view(np.int64)


def _total(values: Numbers, largest: float, into: Numbers) -> int:
    """Return the sum of a block in quanta, of magnitudes up to 2**50."""
    if largest > SMALL:
        codes = np.zeros(values.size, dtype=np.int64)
        return int(exact_sums(codes, 1, whole_quanta(values), values.size).item())
    quanta = _quanta(values, into)
    fit = int(_MOST / ((largest + 1.0) * QUANTA_PER_NAT))  # so many have a sum that fits 64 bits
    total = 0
    for first in range(0, values.size, fit):
        some = quanta[first : first + fit]
        # The sum of shifted quanta wraps, and what is left without the shifts fits.
        total += (int(some.sum()) - some.size * SHIFT_BITS + 2**63) % 2**64 - 2**63
    return total


class SideArrays:
    """The columns of one side of valid common pairs, and the sums of the blocks added.

    Attributes:
        n: How many pairs.
        ends: The ends of each column.
        sums: The sums of `tally` with neither keys nor moments.
        state: 0 for a wrong pair, 1 for a tie and 2 for a right one.
        sampled: The log-probs of the sample, block by block.
    """

    def __init__(
        self,
        scored: pl.DataFrame,
        needs: Needs,
        means: Sequence[str],
        summed: Sequence[str],
        buffers: Buffers,
        *,
        ends: Ends | None = None,
        sample: Whole | None = None,
    ) -> None:
        """Take the log-probs and the scores `means`, to add up the log-probs and `summed`.

        `ends` are those of columns where they are known; scores may be within theirs. Of the rows
        of `sample` log-probs are kept.
        """
        names = (*needs.logps, *means)
        self._chunks = chunks_of(scored, names)
        self._logps, self._added = needs.logps, (*needs.logps, *summed)
        self._both = list(combinations(needs.logps, 2))
        self._buffers = buffers
        self.n = scored.height
        known = ends or {}
        others = [{n: c for n, c in each.items() if n not in known} for each in self._chunks]
        self.ends = {**dict.fromkeys(names, NO_ENDS), **known, **ends_of(others)}
        self.sums = Counter({N_VALID: self.n, N_COMPARED: self.n})
        self.state = np.empty(self.n, dtype=np.uint8)
        self._sample = sample
        self.sampled: dict[str, list[Numbers]] = {name: [] for name in needs.logps}

    @property
    def of(self) -> Mapping[str, Numbers]:
        """The columns by name."""
        if len(self._chunks) == 1:
            return self._chunks[0]
        return {n: np.concatenate([each[n] for each in self._chunks]) for n in self.ends}

    def blocks(self) -> Iterator[tuple[slice, Mapping[str, Numbers]]]:
        """Yield the rows of each block and its columns."""
        begin = 0
        for chunk in self._chunks:
            size = chunk[self._logps[0]].size
            for first in range(0, size, _BLOCK):
                last = min(first + _BLOCK, size)
                of = {name: column[first:last] for name, column in chunk.items()}
                yield slice(begin + first, begin + last), of
            begin += size

    def add(self, rows: slice, of: Mapping[str, Numbers]) -> None:
        """Add up a block."""
        self._add_equal(of)
        for name in self._added:
            into = self._buffers.floats[0]
            self.sums[f"sum_{name}"] += _total(of[name], self.size(name), into)
        is_tie, is_right = of[REWARD_MARGIN] == 0.0, of[REWARD_MARGIN] > 0.0
        self.sums["n_ties"] += int(np.count_nonzero(is_tie))
        self.sums["n_correct"] += int(np.count_nonzero(is_right))
        state = np.left_shift(is_right.view(np.uint8), 1, out=self.state[rows])
        state |= is_tie.view(np.uint8)
        if self._sample is not None:
            first, last = np.searchsorted(self._sample, (rows.start, rows.stop))
            some = self._sample[first:last] - rows.start
            for name, kept in self.sampled.items():
                kept.append(of[name][some])

    def _add_equal(self, of: Mapping[str, Numbers]) -> None:
        """Count pairs with two log-probs that are equal as Float32, as `sense.with_equal` does."""
        singles = {}
        for name, into in zip(self._logps, self._buffers.singles, strict=False):
            singles[name] = into[: of[name].size]
            np.copyto(singles[name], of[name], casting="same_kind")
        same = {two: singles[two[0]] == singles[two[1]] for two in self._both}
        for two, each in same.items():
            self.sums[equal(*two)] += int(np.count_nonzero(each))
        is_same = [same.get((ours.name, theirs.name)) for ours, theirs in _AGAINST]
        unmoved = 0
        if is_same[0] is not None and is_same[1] is not None:
            unmoved = int(np.count_nonzero(is_same[0] & is_same[1]))
        self.sums[N_UNMOVED] += unmoved

    def size(self, name: str) -> float:
        """Return the largest magnitude of a column."""
        low, high = self.ends[name]
        return max(-low, high, 0.0)


class PairedSums:
    """What is made of the columns of both sides: sums by cluster, block by block."""

    def __init__(self, n: int, names: Sequence[str], buffers: Buffers, *, most: float) -> None:
        """Start without pairs: there are `n` clusters of up to `most`, and `names` are scores."""
        self._n, self._names, self._buffers = n, names, buffers
        self._cells = np.zeros(n * STATES, dtype=np.int64)
        self._near = {name: WholeSums(n, most) for name in names}
        self._far = [ExactSums(n, names) for _ in "ab"]
        self._is_far = False

    def add(
        self,
        codes: Whole,
        states: NDArray[np.uint8],
        columns: Sequence[Mapping[str, Numbers]],
        sides: Sequence[SideArrays],
    ) -> None:
        """Add a block: the cluster of each pair, its state, and the columns of A and B."""
        cells = np.multiply(codes, STATES, out=self._buffers.wholes[0][: codes.size])
        cells += states
        np.add.at(self._cells, cells, 1)
        one, other = self._buffers.floats
        for name in self._names:
            a, b = (of[name] for of in columns)
            largest = max(side.size(name) for side in sides)
            if largest > SMALL:
                self._is_far = True
                for sums, values in zip(self._far, (a, b), strict=True):
                    sums.add(name, codes, values)
                continue
            gaps = _quanta(b, other)
            gaps -= _quanta(a, one)
            self._near[name].add(codes, gaps, 2.0 * (largest + 1.0) * QUANTA_PER_NAT)

    def states(self) -> Whole:
        """Return the pairs by cluster and state: one row a cluster."""
        return self._cells.reshape(self._n, STATES)

    def gaps(self) -> Mapping[str, pl.Series]:
        """Return B minus A of the sums of scores by cluster, in quanta, each quantised before."""
        found = {name: near.sums() for name, near in self._near.items()}
        if self._is_far:
            a, b = (each.table() for each in self._far)
            found = {n: sums + (b[f"sum_{n}"] - a[f"sum_{n}"]) for n, sums in found.items()}
        return found


_LARGEST: Final = np.array([2.0**52])
"""More than any margin or change of one."""


class Histograms:
    """Counts of common pairs by their change of margin, and by both margins."""

    def __init__(self, buffers: Buffers) -> None:
        """Start without pairs; memory is taken where there are counts."""
        self._buffers = buffers
        self._last = int(bins_of(_LARGEST)[0])
        self._last_coarse = int(bins_of(_LARGEST, COARSE)[0])
        self._width = 2 * self._last_coarse + 1
        self._changes = np.zeros(2 * self._last + 1, dtype=np.int64)
        self._margins = np.zeros(self._width**2, dtype=np.int64)
        self._used = (self._margins.size, 0)  # the first cell with a count, and the end of the last

    def add(self, a: Numbers, b: Numbers, changes: Numbers) -> None:
        """Add a block: the margins of pairs, and how they change."""
        (one, other), (sign, _) = self._buffers.floats, self._buffers.wholes
        bins = bins_of(changes, 1, (one, sign))
        bins += self._last
        np.add.at(self._changes, bins, 1)
        cells = bins_of(a, COARSE, (one, sign))
        cells *= self._width
        cells += bins_of(b, COARSE, (other, sign))
        cells += self._last_coarse * (self._width + 1)
        np.add.at(self._margins, cells, 1)
        first, end = self._used
        self._used = int(cells.min(initial=first)), int(cells.max(initial=end - 1)) + 1

    def changes(self) -> pl.DataFrame:
        """Return `bin` and `n_pairs`."""
        bins = np.flatnonzero(self._changes)
        return _counted({"bin": bins - self._last}, self._changes[bins])

    def margins(self) -> pl.DataFrame:
        """Return `a_bin`, `b_bin` and `n_pairs`."""
        first, end = self._used
        cells = first + np.flatnonzero(self._margins[first:end])
        high, low = cells // self._width, cells % self._width
        bins = {"a_bin": high - self._last_coarse, "b_bin": low - self._last_coarse}
        return _counted(bins, self._margins[cells])


def _counted(bins: Mapping[str, Whole], counts: Whole) -> pl.DataFrame:
    table = pl.DataFrame({**bins, N_PAIRS: counts})
    return table.cast({N_PAIRS: pl.Int64, **dict.fromkeys(bins, pl.Int32)})
