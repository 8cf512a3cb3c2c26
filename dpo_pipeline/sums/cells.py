"""Counts and exact sums by small whole numbers, on arrays: several times as fast as grouping rows.

This is the only file that needs numpy when it is imported: without statistics nothing imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dpo_pipeline.columns import (
    CHOSEN_LOGRATIO,
    CHOSEN_REWARD,
    LOSS,
    N_PAIRS,
    N_VALID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_LOGRATIO,
    REJECTED_REWARD,
    REWARD_MARGIN,
    Needs,
)
from dpo_pipeline.defaults import BAGS
from dpo_pipeline.exact import QUANTA_PER_NAT, bin_of
from dpo_pipeline.sums.growing_tables import CLUSTER
from dpo_pipeline.sums.pair_sums import PRECISIONS, coarse_bin, longer_by

Whole = NDArray[np.int64]
Numbers = NDArray[np.float64]

_LIMB: Final = 2.0**24
_LIMBS: Final = 4
_MOST: Final = 2.0**63
_SLOT_BITS: Final = 17
_BLOCK: Final = 2**14
_MARKS: Final = 8
"""Marks of a row that make one state, which is counted as fast as one mark."""
_CELLS: Final = 2**22
"""Most cells of codes and states."""


def whole_quanta(values: Numbers) -> Numbers:
    """Return values in quanta as whole Float64, rounded half to even as by `exact_sum`."""
    return np.rint(values * QUANTA_PER_NAT)


def exact_sums(codes: Whole, n: int, whole: Numbers, most: int) -> pl.Series:
    """Return the sums of whole numbers by code, from 0 to n - 1, as Int128.

    `most` is the largest number of rows with one code. Magnitudes are at most 2**96.
    """
    largest = float(np.abs(whole).max(initial=0.0))
    if largest * max(most, 1) < _MOST:
        return _added(codes, n, whole.astype(np.int64)).cast(pl.Int128)
    total, unit = pl.zeros(n, dtype=pl.Int128, eager=True), 1
    for i in range(_LIMBS):  # each is below 2**24, and so is exact in any sum
        rest = np.floor(whole / _LIMB) if i < _LIMBS - 1 else np.zeros_like(whole)
        part = _added(codes, n, (whole - rest * _LIMB).astype(np.int64))
        total += part.cast(pl.Int128) * pl.Series([unit], dtype=pl.Int128)
        whole, unit = rest, unit * int(_LIMB)
    return total


def _added(codes: Whole, n: int, values: Whole) -> pl.Series:
    sums = np.zeros(n, dtype=np.int64)
    np.add.at(sums, codes, values)
    return pl.Series(sums)


def numbered(hashes: NDArray[np.uint64]) -> tuple[Whole, Whole]:
    """Number the different hashes from 0 on: the number of each, and a row of each number."""
    found = numbered_up_to(hashes, hashes.size)
    return (np.zeros(0, dtype=np.int64),) * 2 if found is None else found


def numbered_up_to(hashes: NDArray[np.uint64], most: int) -> tuple[Whole, Whole] | None:
    """Return `numbered`, or None if there are more than `most`.

    By a table of slots; hashes that share one are looked at again by other bits.
    """
    codes = np.empty(hashes.size, dtype=np.int64)
    rows: list[Whole] = []
    todo = np.arange(hashes.size)
    shift, known = 0, 0
    while todo.size:
        left = hashes[todo]
        slots = ((left >> np.uint64(shift)) & np.uint64(2**_SLOT_BITS - 1)).astype(np.int64)
        first = np.full(2**_SLOT_BITS, -1, dtype=np.int64)
        first[slots] = todo
        used = np.flatnonzero(first >= 0)
        numbers = np.empty(2**_SLOT_BITS, dtype=np.int64)
        numbers[used] = known + np.arange(used.size)
        known += used.size
        rows.append(first[used])
        if known > most:
            return None
        same = hashes[first[slots]] == left
        codes[todo[same]] = numbers[slots[same]]
        todo = todo[~same]
        shift = (shift + _SLOT_BITS) % 48
    return codes, np.concatenate(rows) if rows else todo


def coded(
    hashes: NDArray[np.uint64], keys: pl.DataFrame, held: int
) -> tuple[pl.DataFrame, Whole, bool]:
    """Number the clusters of rows, which are known by hashes, in each of the subsets of `keys`.

    Returns:
        The clusters (the columns of `keys`, and `CLUSTER`), the place of each row among them, and
        whether each has its own: more than `held` are put into bags.
    """
    found = numbered_up_to(hashes, held) if held else None
    if found is None:
        clusters = pl.DataFrame({CLUSTER: np.arange(BAGS, dtype=np.uint64)})
        codes = (hashes & np.uint64(BAGS - 1)).astype(np.int64)  # BAGS is a power of two
    else:
        codes, first = found
        clusters = pl.DataFrame({CLUSTER: hashes[first]})
    if not keys.width:
        return clusters, codes, found is not None
    # Polars' own hash only puts rows together here, and nothing keeps it.
    subsets = keys.select(pl.struct(pl.all()).hash()).to_series().rechunk().to_numpy()
    subset, first = numbered(subsets)
    names = keys[first]
    cells = subset * clusters.height + codes
    codes, first = numbered(mixed_array(cells.astype(np.uint64)))
    cells = cells[first]
    table = names[cells // clusters.height].hstack(clusters[cells % clusters.height])
    return table, codes, found is not None


def count_by(codes: Whole, n: int) -> pl.Series:
    """Return how many rows have each code."""
    return pl.Series(np.bincount(codes, minlength=n)).cast(pl.Int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Counts by two whole numbers; `counts[i, j]` is of `low[0] + i` and `low[1] + j`."""

    low: tuple[int, int]
    counts: Whole

    @classmethod
    def of(cls, high: Whole, low: Whole) -> Grid:
        """Count rows."""
        if not high.size:
            return cls(low=(0, 0), counts=np.zeros((0, 0), dtype=np.int64))
        starts = int(high.min()), int(low.min())
        shape = int(high.max()) - starts[0] + 1, int(low.max()) - starts[1] + 1
        cells = (high - starts[0]) * shape[1] + (low - starts[1])
        return cls(
            low=starts, counts=np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
        )

    @staticmethod
    def merged(grids: Sequence[Grid]) -> Grid:
        """Add up grids."""
        known = [each for each in grids if each.counts.size]
        if len(known) < 2:  # noqa: PLR2004  nothing to add
            return known[0] if known else grids[0]
        low = tuple(min(each.low[k] for each in known) for k in (0, 1))
        shape = [max(each.low[k] + each.counts.shape[k] for each in known) - low[k] for k in (0, 1)]
        counts = np.zeros(shape, dtype=np.int64)
        for each in known:
            i, j = (each.low[k] - low[k] for k in (0, 1))
            counts[i : i + each.counts.shape[0], j : j + each.counts.shape[1]] += each.counts
        return Grid(low=(low[0], low[1]), counts=counts)

    def table(self, high: str, low: str) -> pl.DataFrame:
        """Return the cells with rows, sorted: both numbers, and `n_pairs`."""
        rows, columns = np.nonzero(self.counts)
        whole = {high: rows + self.low[0], low: columns + self.low[1]}
        counts: dict[str, Any] = {N_PAIRS: self.counts[rows, columns]}
        return pl.DataFrame(whole | counts).cast({high: pl.Int32, low: pl.Int32, N_PAIRS: pl.Int64})


_SQUARED_LIMIT: Final = 2.0**25
"""Largest margin, in nats, whose square is summed for the line over length."""
_MIX: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _table(codes: Whole, n: int, sums: dict[str, Numbers]) -> pl.DataFrame:
    """Return sums of whole numbers by code."""
    most = int(np.bincount(codes, minlength=1).max())
    return pl.DataFrame({name: exact_sums(codes, n, each, most) for name, each in sums.items()})


class PairArrays:
    """The columns of valid, scored pairs as arrays, and their sums by codes."""

    def __init__(self, pairs: pl.DataFrame, needs: Needs, summed: Sequence[str]) -> None:
        """Read the columns; those of `summed` are added up by cluster."""
        self._needs = needs
        names = dict.fromkeys(
            [*needs.logps, CHOSEN_LOGRATIO, REJECTED_LOGRATIO, REWARD_MARGIN, LOSS, *summed]
        )
        self._columns = {name: pairs[name].cast(pl.Float64).rechunk().to_numpy() for name in names}
        self._quanta = {name: whole_quanta(self._columns[name]) for name in summed}
        self.margin = self._columns[REWARD_MARGIN]
        self._right = self.margin > 0.0
        bins = pairs.select(
            margin=bin_of(pl.col(REWARD_MARGIN)),
            chosen=coarse_bin(pl.col(CHOSEN_REWARD)),
            rejected=coarse_bin(pl.col(REJECTED_REWARD)),
        ).cast(pl.Int64)
        self.bins, self.chosen_bins, self.rejected_bins = (each.to_numpy() for each in bins)
        self._longer: Numbers | None = None

    def read_lengths(self, pairs: pl.DataFrame) -> None:
        """Read by how many tokens the chosen completion is longer; NaN where it is not known."""
        longer = pairs.select(longer_by().cast(pl.Float64).fill_null(float("nan"))).to_series()
        self._longer = longer.rechunk().to_numpy()

    def by_cluster(self, codes: Whole, n: int) -> pl.DataFrame:
        """Return the sums and counts of each cluster."""
        sums = {f"sum_{name}": each for name, each in self._quanta.items()}
        small = np.exp(-np.abs(self.margin))
        shortfall = np.where(self.margin >= 0.0, small, 1.0) / (1.0 + small)
        log_loss = np.maximum(-self.margin, 0.0) + np.log1p(small)
        sums["sum_brier"] = whole_quanta(shortfall * shortfall)
        sums["sum_log_loss"] = whole_quanta(log_loss)
        return _table(codes, n, sums).hstack(self._counts(codes, n))

    def _counts(self, codes: Whole, n: int) -> pl.DataFrame:
        of = self._columns
        chosen, rejected = of[CHOSEN_LOGRATIO] < 0.0, of[REJECTED_LOGRATIO] < 0.0
        policy = of[POLICY_CHOSEN.name] > of[POLICY_REJECTED.name]
        counts = {
            "n_correct": self._right,
            "n_ties": self.margin == 0.0,
            "n_chosen_down": chosen,
            "n_rejected_down": rejected,
            "n_both_down": chosen & rejected,
            "n_policy_prefers": policy,
        }
        if self._needs.reference:
            reference = of[REF_CHOSEN.name] > of[REF_REJECTED.name]
            counts["n_reference_prefers"] = reference
            counts["n_both_prefer"] = policy & reference
        if self._longer is not None:
            sized = ~np.isnan(self._longer)
            counts["n_sized"] = sized
            counts["n_longer"] = self._longer > 0.0
            counts["n_shorter"] = self._longer < 0.0
            counts["n_correct_sized"] = self._right & sized
        return _counts_of(codes, n, counts)

    def by_group(self, codes: Whole, n: int) -> pl.DataFrame:
        """Return counts of log-probs by number format, and the sums for the line over length."""
        counts, of = {}, self._columns
        largest = np.max([np.abs(of[name]) for name in self._needs.logps], axis=0)
        difference = np.abs(of[CHOSEN_LOGRATIO] - of[REJECTED_LOGRATIO])
        models = {"policy": (POLICY_CHOSEN, POLICY_REJECTED)}
        if self._needs.reference:
            models["ref"] = (REF_CHOSEN, REF_REJECTED)
        bits = {
            model: of[a.name].view(np.int64) | of[b.name].view(np.int64)
            for model, (a, b) in models.items()
        }
        for name, significand in PRECISIONS.items():
            for model, both in bits.items():
                # A format keeps a number if the bits beyond its own are 0.
                counts[f"n_{model}_{name}"] = both & (2 ** (53 - significand) - 1) == 0
            counts[f"n_below_{name}"] = difference < largest * 2.0**-significand
        table = pl.DataFrame({N_VALID: count_by(codes, n)}).hstack(_counts_of(codes, n, counts))
        if self._longer is None:
            return table
        fits = ~np.isnan(self._longer) & (np.abs(self.margin) <= _SQUARED_LIMIT)
        x, y, codes = self._longer[fits], self.margin[fits], codes[fits]
        line = {"x": x, "y": y, "xx": x * x, "xy": x * y, "yy": y * y}
        sums = _table(codes, n, {f"sum_{name}": whole_quanta(each) for name, each in line.items()})
        return table.with_columns(count_by(codes, n).alias("n_sized")).hstack(sums)

    def by_length(self) -> pl.DataFrame:
        """Return pairs, correct pairs and the sum of margins by bin of the token difference."""
        bins = np.zeros(0, dtype=np.int64)
        known = np.zeros(self.margin.size, dtype=bool)
        if self._longer is not None:
            known = ~np.isnan(self._longer)
            longer = pl.DataFrame({"x": self._longer[known]})
            bins = longer.select(coarse_bin(pl.col("x")).cast(pl.Int64)).to_series().to_numpy()
        return self._course_of(bins, "length_bin", known, with_loss=False)

    def by_point(self, points: Whole) -> pl.DataFrame:
        """Return pairs, correct pairs and the sums of losses and margins by point of the course."""
        return self._course_of(points, "point", slice(None), with_loss=True)

    def _course_of(self, keys: Whole, name: str, rows: Any, *, with_loss: bool) -> pl.DataFrame:
        low = int(keys.min(initial=0)) if keys.size == 0 else int(keys.min())
        codes = keys - low
        n = int(codes.max()) + 1 if keys.size else 0
        sums = {f"sum_{REWARD_MARGIN}": whole_quanta(self.margin[rows])}
        if with_loss:
            sums[f"sum_{LOSS}"] = self._quanta[LOSS][rows]
        table = pl.DataFrame({name: pl.int_range(low, low + n, eager=True, dtype=pl.Int64)})
        counts = _counts_of(codes, n, {"n_correct": self._right[rows]})
        table = table.with_columns(count_by(codes, n).alias(N_PAIRS))
        table = table.hstack(counts).hstack(_table(codes, n, sums))
        return table.filter(pl.col(N_PAIRS) > 0)

    def hashes(self) -> NDArray[np.uint64]:
        """Return a hash of each pair; its last bit says which side came first.

        Pairs with the same log-probs share one, and pairs that have them with chosen and rejected
        exchanged share all but the last bit.
        """
        sides = []
        for policy, reference in ((POLICY_CHOSEN, REF_CHOSEN), (POLICY_REJECTED, REF_REJECTED)):
            side = mixed_array(_bits(self._columns[policy.name]))
            if self._needs.reference:
                side = mixed_array(side ^ _bits(self._columns[reference.name]))
            sides.append(side)
        chosen, rejected = sides
        both = mixed_array(np.minimum(chosen, rejected) * np.uint64(_MIX[1]) ^ np.maximum(*sides))
        return (both & ~np.uint64(1)) | (chosen > rejected)


def _bits(values: Numbers) -> NDArray[np.uint64]:
    return (values + 0.0).view(np.uint64)  # so that -0 is 0


def mixed_array(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's finaliser of each state (see `statistics.hashing`)."""
    found = states.copy()
    held = np.empty(min(_BLOCK, states.size), dtype=np.uint64)
    for first in range(0, states.size, _BLOCK):  # a block stays in the cache of a core
        z = found[first : first + _BLOCK]
        shifted = held[: z.size]
        z += np.uint64(_MIX[0])
        for bits, factor in ((30, _MIX[1]), (27, _MIX[2])):
            z ^= np.right_shift(z, np.uint64(bits), out=shifted)
            z *= np.uint64(factor)
        z ^= np.right_shift(z, np.uint64(31), out=shifted)
    return found


def _counts_of(codes: Whole, n: int, marks: Mapping[str, NDArray[np.bool_]]) -> pl.DataFrame:
    """Return how many rows of each code have each mark."""
    names, found = list(marks), dict[str, Whole]()
    for start in range(0, len(names), _MARKS):
        some = names[start : start + _MARKS]
        n_states = 2 ** len(some)
        if n * n_states > _CELLS:
            found |= {name: np.bincount(codes[marks[name]], minlength=n) for name in some}
            continue
        states = np.zeros(codes.size, dtype=np.uint8)
        for i, name in enumerate(some):
            states |= marks[name].view(np.uint8) << np.uint8(i)
        cells = np.bincount(codes * n_states + states, minlength=n * n_states)
        has = np.arange(n_states)[:, None] >> np.arange(len(some)) & 1
        counts = cells.reshape(n, n_states).astype(np.float64) @ has.astype(np.float64)
        found |= {name: counts[:, i].astype(np.int64) for i, name in enumerate(some)}
    return pl.DataFrame(found, schema=dict.fromkeys(names, pl.Int64))
