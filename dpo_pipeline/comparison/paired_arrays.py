"""Common pairs as arrays: their sums over all and by cluster, block by block.

A block stays in the cache of a core. Arrays of a whole chunk would go to memory and back for each
step, which costs several times as much.
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
from dpo_pipeline.exact import QUANTA_PER_NAT, SMALL
from dpo_pipeline.statistics import hashed
from dpo_pipeline.sums import (
    COARSE,
    N_COMPARED,
    N_UNMOVED,
    bins_of,
    equal,
    exact_sums,
    mixed_array,
    same_numbers,
    whole_quanta,
)

Whole = NDArray[np.int64]
Numbers = NDArray[np.float64]
Hashes = NDArray[np.uint64]

_BLOCK: Final = 2**14
_SHIFT: Final = 1.5 * 2.0**12
"""Added to a number up to `SMALL`, it leaves the number in quanta in the low bits."""
_BITS: Final = 0x40B8000000000000
"""The bits of `_SHIFT`."""
_FEW: Final = 2**11
"""The quanta of so many small numbers have a sum that fits 64 bits."""
_MOST: Final = 2.0**63
_AGAINST: Final = ((POLICY_CHOSEN, REF_CHOSEN), (POLICY_REJECTED, REF_REJECTED))
STATES: Final = 9
"""What a pair is for both sides: 3 x of A + of B, each 0 wrong, 1 a tie, 2 right."""


def blocks(n: int) -> Iterator[slice]:
    """Yield the rows of each block."""
    for first in range(0, n, _BLOCK):
        yield slice(first, min(first + _BLOCK, n))


class Buffers:
    """Arrays of a block that steps write into: new ones would be fetched from the system anew."""

    def __init__(self) -> None:
        """Take the memory."""
        self._floats = [np.empty(_BLOCK) for _ in range(2)]
        self._wholes = [np.empty(_BLOCK, dtype=np.int64) for _ in range(2)]

    def floats(self, n: int) -> list[Numbers]:
        """Return two arrays of numbers."""
        return [each[:n] for each in self._floats]

    def wholes(self, n: int) -> list[Whole]:
        """Return two arrays of whole numbers."""
        return [each[:n] for each in self._wholes]


def hashes_of(keys: pl.Series) -> Hashes:
    """Return `hashed` keys, none of which is null."""
    if not keys.dtype.is_integer() or keys.dtype in (pl.Int128, pl.UInt128):
        return hashed(keys).rechunk().to_numpy()
    whole = pl.UInt64 if keys.dtype.is_unsigned_integer() else pl.Int64
    return mixed_array(keys.cast(whole).rechunk().to_numpy().view(np.uint64))


def _quanta(values: Numbers, into: Numbers) -> Whole:
    """Return small numbers in quanta, plus `_BITS`; rounded half to even."""
    return np.add(values, _SHIFT, out=into).view(np.int64)


def _total(values: Numbers, largest: float, into: Numbers) -> int:
    """Return the sum of a block in quanta, of magnitudes up to 2**50."""
    if largest > SMALL:
        codes = np.zeros(values.size, dtype=np.int64)
        return int(exact_sums(codes, 1, whole_quanta(values), values.size).item())
    quanta = _quanta(values, into)
    quanta -= _BITS
    whole = quanta.size - quanta.size % _FEW
    parts = quanta[:whole].reshape(-1, _FEW).sum(axis=1).tolist()
    return int(sum(parts)) + int(quanta[whole:].sum())


class SideArrays:
    """The columns of one side of valid common pairs.

    Attributes:
        of: The columns by name.
        n: How many pairs.
        sums: The sums of `tally` with neither keys nor moments.
        lowest: The smallest of each column.
        highest: The largest.
        state: 0 for a wrong pair, 1 for a tie and 2 for a right one.
    """

    def __init__(
        self,
        scored: pl.DataFrame,
        needs: Needs,
        means: Sequence[str],
        summed: Sequence[str],
        buffers: Buffers,
    ) -> None:
        """Take the log-probs and the scores `means`, and add up the log-probs and `summed`."""
        names = (*needs.logps, *means)
        self._logps = needs.logps
        self.of = {n: scored[n].cast(pl.Float64).rechunk().to_numpy() for n in names}
        self.n = scored.height
        self.margin = self.of[REWARD_MARGIN]
        self.sums = Counter({N_VALID: self.n, N_COMPARED: self.n})
        self.lowest, self.highest = (dict.fromkeys(names, by) for by in (np.inf, -np.inf))
        self.state = np.empty(self.n, dtype=np.uint8)
        both, added = list(combinations(needs.logps, 2)), {*needs.logps, *summed}
        into = buffers.floats(_BLOCK)[0]
        for rows in blocks(self.n):
            of = {name: column[rows] for name, column in self.of.items()}
            self._add_equal(of, both)
            for name, column in of.items():
                low, high = float(column.min()), float(column.max())
                self.lowest[name] = min(low, self.lowest[name])
                self.highest[name] = max(high, self.highest[name])
                if name in added:
                    self.sums[f"sum_{name}"] += _total(column, max(-low, high), into[: column.size])
            is_tie, is_right = of[REWARD_MARGIN] == 0.0, of[REWARD_MARGIN] > 0.0
            self.sums["n_ties"] += int(np.count_nonzero(is_tie))
            self.sums["n_correct"] += int(np.count_nonzero(is_right))
            self.state[rows] = is_tie.view(np.uint8) + 2 * is_right.view(np.uint8)

    def _add_equal(self, of: Mapping[str, Numbers], both: Sequence[tuple[str, str]]) -> None:
        same = {names: same_numbers(of[names[0]], of[names[1]]) for names in both}
        for names, each in same.items():
            self.sums[equal(*names)] += int(np.count_nonzero(each))
        is_same = [same.get((ours.name, theirs.name)) for ours, theirs in _AGAINST]
        unmoved = 0
        if is_same[0] is not None and is_same[1] is not None:
            unmoved = int(np.count_nonzero(is_same[0] & is_same[1]))
        self.sums[N_UNMOVED] += unmoved

    def ends(self) -> pl.DataFrame:
        """Return the extremes of the log-probs, as `sense_sums` names them."""
        ends = {"min": self.lowest, "max": self.highest}
        return pl.DataFrame({f"{end}_{n}": of[n] for end, of in ends.items() for n in self._logps})

    def size(self, name: str) -> float:
        """Return the largest magnitude of a column."""
        return max(-self.lowest[name], self.highest[name], 0.0)


def same_counts(a: SideArrays, b: SideArrays) -> tuple[int, int, int]:
    """Return on how many pairs both sides have the same policy log-prob: chosen, rejected, both."""
    found = np.zeros(3, dtype=np.int64)
    for rows in blocks(a.n):
        chosen, rejected = (
            a.of[role.name][rows] == b.of[role.name][rows]
            for role in (POLICY_CHOSEN, POLICY_REJECTED)
        )
        found += [np.count_nonzero(each) for each in (chosen, rejected, chosen & rejected)]
    return int(found[0]), int(found[1]), int(found[2])


def states_by(codes: Whole, n: int, states: NDArray[np.uint8]) -> Whole:
    """Count pairs by code and state: one row a code."""
    cells = np.zeros(n * STATES, dtype=np.int64)
    for rows in blocks(codes.size):
        np.add.at(cells, codes[rows] * STATES + states[rows], 1)
    return cells.reshape(n, STATES)


def gaps_by(
    codes: Whole, n: int, sides: tuple[SideArrays, SideArrays], names: Sequence[str], use: Buffers
) -> Mapping[str, pl.Series]:
    """Return B minus A of the sums of scores by code, in quanta, each side quantised before."""
    most = int(np.bincount(codes, minlength=1).max())
    found = {}
    for name in names:
        a, b = (each.of[name] for each in sides)
        largest = max(each.size(name) for each in sides)
        if largest <= SMALL and 2.0 * (largest + 1.0) * QUANTA_PER_NAT * most < _MOST:
            sums = np.zeros(n, dtype=np.int64)
            for rows in blocks(codes.size):
                one, other = use.floats(a[rows].size)
                gaps = _quanta(b[rows], other)
                gaps -= _quanta(a[rows], one)
                np.add.at(sums, codes[rows], gaps)
            found[name] = pl.Series(sums).cast(pl.Int128)
        else:
            wide = [exact_sums(codes, n, whole_quanta(each), most) for each in (b, a)]
            found[name] = wide[0] - wide[1]
    return found


_LARGEST: Final = np.array([2.0**52])
"""More than any margin or change of one."""


class Histograms:
    """Counts of common pairs by their change of margin, and by both margins."""

    def __init__(self) -> None:
        """Start without pairs; memory is taken where there are counts."""
        self._last = int(bins_of(_LARGEST)[0])
        self._last_coarse = int(bins_of(_LARGEST, COARSE)[0])
        self._width = 2 * self._last_coarse + 1
        self._changes = np.zeros(2 * self._last + 1, dtype=np.int64)
        self._margins = np.zeros(self._width**2, dtype=np.int64)

    def add(self, a: Numbers, b: Numbers) -> None:
        """Add the margins of pairs."""
        gaps = np.empty(_BLOCK)
        for rows in blocks(a.size):
            one, other = a[rows], b[rows]
            gap = np.subtract(other, one, out=gaps[: one.size])
            np.add.at(self._changes, bins_of(gap) + self._last, 1)
            cells = bins_of(one, COARSE) + self._last_coarse
            cells *= self._width
            cells += bins_of(other, COARSE) + self._last_coarse
            np.add.at(self._margins, cells, 1)

    def changes(self) -> pl.DataFrame:
        """Return `bin` and `n_pairs`."""
        bins = np.flatnonzero(self._changes)
        return _counted({"bin": bins - self._last}, self._changes[bins])

    def margins(self) -> pl.DataFrame:
        """Return `a_bin`, `b_bin` and `n_pairs`."""
        cells = np.flatnonzero(self._margins)
        high, low = cells // self._width, cells % self._width
        bins = {"a_bin": high - self._last_coarse, "b_bin": low - self._last_coarse}
        return _counted(bins, self._margins[cells])


def _counted(bins: Mapping[str, Whole], counts: Whole) -> pl.DataFrame:
    table = pl.DataFrame({**bins, N_PAIRS: counts})
    return table.cast({N_PAIRS: pl.Int64, **dict.fromkeys(bins, pl.Int32)})
