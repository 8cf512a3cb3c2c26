"""Counts and exact sums by small whole numbers, on arrays: several times as fast as grouping rows.

This is the only file that needs numpy when it is imported: without statistics nothing imports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from dpo_pipeline.columns import N_PAIRS
from dpo_pipeline.defaults import BAGS
from dpo_pipeline.exact import (
    BITS_OF_NATS,
    QUANTA_PER_NAT,
    SCALE,
    SCALE_BITS,
    SHIFT,
    SHIFT_BITS,
    SHIFT_OF_NATS,
    SMALL,
    STEP,
)
from dpo_pipeline.sums.roll_ups import CLUSTER

Whole = NDArray[np.int64]
Numbers = NDArray[np.float64]

BLOCK: Final = 32_768
"""Rows whose columns stay in the cache of a core from one step to the next."""
_LIMB: Final = 2.0**24
_LIMBS: Final = 4
MOST: Final = 2.0**63
_WIDE: Final = 2.0**50
_SLOT_BITS: Final = 17
_CELLS: Final = 2**22
"""Most cells of codes and states."""
_MARGIN: Final = 64
"""Cells that a grid has beyond the values so far."""
MIX: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def blocks(n: int) -> Iterator[slice]:
    """Yield slices of so many rows."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def blocks_of(table: pl.DataFrame) -> Iterator[tuple[slice, dict[str, Numbers]]]:
    """Yield runs of rows of a table of numbers, without a copy where its chunks are long."""
    lengths = {tuple(map(len, each.get_chunks())) for each in table}
    if len(lengths) != 1 or table.n_chunks() > 2 + 2 * table.height // BLOCK:
        table = table.rechunk()
    chunks = {each.name: [part.to_numpy() for part in each.get_chunks()] for each in table}
    first = 0
    for arrays in zip(*chunks.values(), strict=True):
        n = arrays[0].size
        size = -(-n // max(1, round(n / BLOCK)))
        for start in range(0, n, max(size, 1)):
            end = min(start + size, n)
            named = zip(chunks, arrays, strict=True)
            yield slice(first + start, first + end), {k: each[start:end] for k, each in named}
        first += n


def whole_quanta(values: Numbers) -> Numbers:
    """Return values in quanta as whole Float64, rounded half to even as by `exact_sum`."""
    return np.rint(values * QUANTA_PER_NAT)


def exact_sums(codes: Whole, n: int, whole: Numbers, most: int) -> pl.Series:
    """Return the sums of whole numbers by code, from 0 to n - 1, as Int128.

    `most` is the largest number of rows with one code. Magnitudes are at most 2**96.
    """
    largest = float(np.abs(whole).max(initial=0.0))
    if largest * max(most, 1) < MOST:
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
    hashes: NDArray[np.uint64], keys: pl.DataFrame, held: int, bags: int = BAGS
) -> tuple[pl.DataFrame, Whole, bool]:
    """Number the clusters of rows, which are known by hashes, in each of the subsets of `keys`.

    Returns:
        The clusters (the columns of `keys`, and `CLUSTER`), the place of each row among them, and
        whether each has its own: more than `held` are put into bags.
    """
    # Most rows are told to have many by the first of them.
    are_many = not held or numbered_up_to(hashes[: 4 * held], held) is None
    found = None if are_many else numbered_up_to(hashes, held)
    if found is None:
        clusters = pl.DataFrame({CLUSTER: np.arange(bags, dtype=np.uint64)})
        codes = (hashes & np.uint64(bags - 1)).view(np.int64)  # bags are a power of two
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Counts by two whole numbers; `counts[i, j]` is of `low[0] + i` and `low[1] + j`."""

    low: tuple[int, int]
    counts: NDArray[np.signedinteger[Any]]

    @classmethod
    def empty(cls) -> Grid:
        """Make one without rows."""
        return cls(low=(0, 0), counts=np.zeros((0, 0), dtype=np.int32))

    def with_rows(self, high: Whole, low: Whole) -> Grid:
        """Count rows, in these cells or in more of them; in small cells, as long as it has few."""
        if not high.size:
            return self
        first = int(high.min()), int(low.min())
        last = int(high.max()), int(low.max())
        ends = [self.low[k] + self.counts.shape[k] for k in (0, 1)]
        if any(first[k] < self.low[k] or last[k] >= ends[k] for k in (0, 1)):
            shape = last[0] - first[0] + 1, last[1] - first[1] + 1 + 2 * _MARGIN
            more = np.zeros(shape, dtype=self.counts.dtype)
            wider = Grid(low=(first[0], first[1] - _MARGIN), counts=more)
            return Grid.merged([self, wider], dtype=self.counts.dtype).with_rows(high, low)
        cells = high * self.counts.shape[1]
        cells += low
        cells -= self.low[0] * self.counts.shape[1] + self.low[1]
        np.add.at(self.counts.reshape(-1), cells, self.counts.dtype.type(1))
        return self

    @staticmethod
    def merged(grids: Sequence[Grid], dtype: Any = np.int64) -> Grid:
        """Add up grids."""
        known = [each for each in grids if each.counts.size]
        if not known:
            return grids[0]
        low = tuple(min(each.low[k] for each in known) for k in (0, 1))
        shape = [max(each.low[k] + each.counts.shape[k] for each in known) - low[k] for k in (0, 1)]
        counts = np.zeros(shape, dtype=dtype)
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


class ExactSums:
    """Sums by code, from 0 to n - 1, of values that come block by block, in quanta.

    Sums of `whole` are of whole numbers. Each block is added in the form that is cheapest for it.
    `most` is the largest number of values with one code, if that is known.
    """

    def __init__(
        self, n: int, names: Sequence[str], whole: Sequence[str] = (), most: float = math.inf
    ) -> None:
        """Start without rows."""
        self._n, self._whole = n, whole
        self._nats, self._quanta = ({name: WholeSums(n, most) for name in names} for _ in range(2))
        self._others: dict[str, pl.Series] = {}

    def add(self, name: str, codes: Whole, values: Numbers) -> None:
        """Add the values of a block."""
        size = size_of(values)
        if size > _WIDE:
            sums = exact_sums(codes, self._n, whole_quanta(values), values.size)
            known = self._others.get(name)
            self._others[name] = sums if known is None else known + sums
            return
        if size > SMALL or name in self._whole:
            nats = values + SHIFT_OF_NATS
            self._nats[name].add(codes, nats.view(np.int64) - BITS_OF_NATS, size)
            if name in self._whole:
                return
            values, size = values - (nats - SHIFT_OF_NATS), 1.0
        self._quanta[name].add(codes, quanta_of(values), size * QUANTA_PER_NAT)

    def table(self) -> pl.DataFrame:
        """Return the columns `sum_...`."""
        columns = []
        for name, quanta in self._quanta.items():
            sums = self._nats[name].sums() * pl.Series([2**40], dtype=pl.Int128) + quanta.sums()
            sums = sums + self._others[name] if name in self._others else sums
            columns.append(sums.alias(f"sum_{name}"))
        return pl.DataFrame(columns)


class WholeSums:
    """Sums of whole numbers by code, in Int64 as long as they surely fit it."""

    def __init__(self, n: int, most: float) -> None:
        """Start without rows; `most` is the largest number of values with one code."""
        self._sums = np.zeros(n, dtype=np.int64)
        self._most, self._size, self._bound = most, 0.0, 0.0
        self._before: pl.Series | None = None

    def add(self, codes: Whole, values: Whole, size: float) -> None:
        """Add values of a magnitude up to `size`."""
        self._size, bound = max(self._size, size), size * values.size
        if self._size * self._most >= MOST:  # the sum of a code may not fit
            if bound >= MOST:
                half = values.size // 2
                self.add(codes[:half], values[:half], size)
                self.add(codes[half:], values[half:], size)
                return
            if self._bound + bound >= MOST:
                self._before, self._bound = self.sums(), 0.0
                self._sums[:] = 0
        self._bound += bound
        np.add.at(self._sums, codes, values)

    def sums(self) -> pl.Series:
        """Return the sums as Int128."""
        sums = pl.Series(self._sums).cast(pl.Int128)
        return sums if self._before is None else sums + self._before


def size_of(values: Numbers) -> float:
    """Return the largest magnitude."""
    return max(-float(values.min(initial=0.0)), float(values.max(initial=0.0)))


def quanta_of(values: Numbers) -> Whole:
    """Return values of a magnitude up to `SMALL` in quanta."""
    bits = (values + SHIFT).view(np.int64)
    bits -= SHIFT_BITS
    return bits


class Marked:
    """Counts of the marks of rows by code; the marks of a row are one small number, its state."""

    def __init__(self, n: int, figures: Mapping[str, Sequence[str]]) -> None:
        """Start without rows; a figure is counted where a row has all of its marks."""
        self._n, self._figures = n, figures
        self._marks = list(dict.fromkeys(mark for marks in figures.values() for mark in marks))
        self._n_states = 1 << len(self._marks)
        self._is_held = n * self._n_states <= _CELLS
        size = n * (self._n_states if self._is_held else len(figures))
        self._counts = np.zeros(size, dtype=np.int64)

    def add(self, codes: Whole, marks: Mapping[str, NDArray[np.bool_]]) -> None:
        """Count the marks of some rows."""
        if not self._is_held:
            for i, names in enumerate(self._figures.values()):
                there = codes[np.logical_and.reduce([marks[name] for name in names])]
                self._counts[i * self._n : (i + 1) * self._n] += np.bincount(
                    there, minlength=self._n
                )
            return
        states = np.zeros(codes.size, dtype=np.uint8)
        for name in reversed(self._marks):
            np.add(states, states, out=states)
            np.add(states, marks[name].view(np.uint8), out=states)
        # Few states are common: the counts of one lie together.
        cells = states.astype(np.int64)
        cells *= self._n
        cells += codes
        np.add.at(self._counts, cells, 1)

    def table(self) -> pl.DataFrame:
        """Return the counts of the figures."""
        counts = self._counts.reshape(-1, self._n)
        if self._is_held:
            by_mark = self._counts.reshape(*[2] * len(self._marks), self._n)
            counts = np.array([self._of(by_mark, marks) for marks in self._figures.values()])
        return pl.DataFrame(dict(zip(self._figures, counts, strict=True))).cast(pl.Int64)

    def _of(self, by_mark: Whole, marks: Sequence[str]) -> Whole:
        """Add up the states that have some marks; the first mark has the last of their axes."""
        places = [self._marks.index(mark) for mark in marks]
        has: list[Any] = [slice(None)] * by_mark.ndim
        for place in places:
            has[by_mark.ndim - 2 - place] = 1
        counts: Whole = by_mark[tuple(has)].reshape(-1, self._n).sum(axis=0)
        return counts


def bins_of(values: Numbers, width: int = 1, into: tuple[Numbers, Whole] | None = None) -> Whole:
    """Return the bins of `exact.bin_of`, in the first of `into` where that is given."""
    shift = STEP + width.bit_length() - 1
    sizes, negative = into or (np.empty(values.size), np.empty(values.size, dtype=np.int64))
    sizes = np.abs(values, out=sizes[: values.size])
    sizes += SCALE
    bits = sizes.view(np.int64)
    bits += (1 << shift - 1) - SCALE_BITS
    bits >>= shift
    negative = np.right_shift(values.view(np.int64), 63, out=negative[: values.size])
    bits ^= negative
    bits -= negative
    return bits


def mixed_array(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's finaliser of each state (see `statistics.hashing`)."""
    mixed, shifted = np.empty_like(states), np.empty(BLOCK, dtype=np.uint64)
    for at in blocks(states.size):
        z = np.add(states[at], np.uint64(MIX[0]), out=mixed[at])
        right = shifted[: z.size]
        for bits, factor in ((30, MIX[1]), (27, MIX[2]), (31, 1)):
            z ^= np.right_shift(z, np.uint64(bits), out=right)
            if factor > 1:
                z *= np.uint64(factor)
    return mixed
