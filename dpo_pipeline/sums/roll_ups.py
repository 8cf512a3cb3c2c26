"""Running sums of a dataset: the totals and, if wanted, by subset, batch and bin; repeated keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from dpo_pipeline.columns import N_CHOSEN, N_PAIRS, N_VALID
from dpo_pipeline.defaults import KEYS_HELD
from dpo_pipeline.errors import UsageError
from dpo_pipeline.sums.batches import BatchTable
from dpo_pipeline.sums.growing_tables import ClusterCounts
from dpo_pipeline.sums.moments import square_columns
from dpo_pipeline.sums.summary import BIN, merge


def hashed_ids(pairs: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    """Return the hash of each id, which is in the last column; a row without one has null.

    Ids are unique among the rows with the same values in the other columns.
    """
    name = columns[-1]
    key = pl.col(name) if len(columns) == 1 else pl.struct(columns)
    return pairs.select(pl.when(pl.col(name).is_not_null()).then(key.hash()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Rows whose key an earlier row has.

    Attributes:
        n_looked_at: Keys that were compared.
        n_repeated: Those of them that were there before.
        is_exact: Whether all keys of the rows read were compared; otherwise a sample of the keys,
            with all rows of each, so that the share is estimated.
        is_of_all: Whether all rows were read; otherwise a sample, and copies elsewhere are not
            counted.
    """

    n_looked_at: int
    n_repeated: int
    is_exact: bool
    is_of_all: bool = True


class RepeatedKeys:
    """Holds hashes of keys: all of up to `KEYS_HELD`, and of more a share that halves."""

    def __init__(self, n_rows: int | None = None, *, is_of_all: bool = True) -> None:
        """Start without keys; `n_rows` tells how many to keep from the start."""
        self._is_of_all = is_of_all
        self._held: list[pl.Series] = []
        self._thinning = 1
        while n_rows is not None and n_rows > KEYS_HELD * self._thinning:
            self._thinning *= 2

    def add(self, hashes: pl.Series) -> None:
        """Add the hashes of the keys of some rows; null where a row has no key."""
        self._held.append(self._kept(hashes.drop_nulls()))
        while sum(map(len, self._held)) > KEYS_HELD:
            self._thinning *= 2
            self._held = [self._kept(each) for each in self._held]

    def _kept(self, hashes: pl.Series) -> pl.Series:
        return hashes if self._thinning == 1 else hashes.filter(hashes % self._thinning == 0)

    @property
    def found(self) -> Repeats:
        """What the keys so far amount to."""
        held = pl.concat(self._held) if self._held else pl.Series([], dtype=pl.UInt64)
        return Repeats(
            n_looked_at=len(held),
            n_repeated=len(held) - held.n_unique(),
            is_exact=self._thinning == 1,
            is_of_all=self._is_of_all,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """Sums of some rows, by key if there are keys; those of `sense`, if looked at; hashed ids.

    `prompts` are counts by prompt, where the interval of the accuracy needs them; `squares` are
    sums of squares, if they are not among the sums.
    """

    sums: pl.DataFrame
    sense: pl.DataFrame | None
    ids: pl.Series | None
    prompts: ClusterCounts | None = None
    squares: pl.DataFrame | None = None


class RollUps:
    """Adds up the partial sums of a dataset.

    Attributes:
        totals: One row of sums over all pairs; None before the first rows.
        subsets: Sums by subset.
        bins: Pairs by subset and bin of the margin.
        squares: One row of `square_sums`; None without them.
        prompts: Counts by prompt; None without them.
        n_invalid: Pairs that break a rule.
    """

    def __init__(
        self,
        *,
        by: Sequence[str],
        subset_keys: Sequence[str],
        batch_keys: Sequence[str],
        has_bins: bool,
        most_subsets: int,
        batches: BatchTable | None,
        unique_batches: bool,
    ) -> None:
        """Start without rows.

        Args:
            by: Columns of the subsets, as errors call them.
            subset_keys: Their names in the sums.
            batch_keys: The column of the batches in the sums, if there are batches.
            has_bins: Whether sums are by bin.
            most_subsets: How many there may be.
            batches: The table of batch means.
            unique_batches: Whether a batch has one row in the sums of a shard.
        """
        self.totals: pl.DataFrame | None = None
        self.subsets: pl.DataFrame | None = None
        self.bins: pl.DataFrame | None = None
        self.squares: pl.DataFrame | None = None
        self.prompts: ClusterCounts | None = None
        self.n_invalid = 0
        self._sense: pl.DataFrame | None = None
        self._ids = RepeatedKeys()
        self._by = by
        self._subset_keys = list(subset_keys)
        self._batch_keys = list(batch_keys)
        self._has_bins = has_bins
        self._most_subsets = most_subsets
        self._batches = batches
        self._unique_batches = unique_batches

    @property
    def n_pairs(self) -> int:
        """Rows so far."""
        return 0 if self.totals is None else int(self.totals[N_PAIRS].item())

    @property
    def sense_row(self) -> dict[str, Any]:
        """The sums that `Sense` is made from."""
        found = {N_VALID: 0} if self.totals is None else self.totals.row(0, named=True)
        return ({} if self._sense is None else self._sense.row(0, named=True)) | found

    @property
    def repeats(self) -> Repeats:
        """What the ids so far amount to."""
        return self._ids.found

    def add(self, partial: Partial) -> None:
        """Add the sums of some rows."""
        part = partial.sums
        if partial.sense is not None:
            self._sense = _merged(self._sense, partial.sense, ())
        if partial.ids is not None:
            self._ids.add(partial.ids)
        if partial.prompts is not None:
            known = self.prompts
            self.prompts = partial.prompts if known is None else known.merged(partial.prompts)
        squares = partial.squares
        if names := square_columns(part.columns):
            squares, part = part.select(names), part.drop(names)
        if squares is not None:
            self.squares = _merged(self.squares, squares, ())
        self.n_invalid += int((part[N_PAIRS] - part[N_VALID]).sum())
        if self._has_bins:
            keys = [*self._subset_keys, BIN]
            counts = [name for name in (N_PAIRS, N_CHOSEN) if name in part.columns]
            self.bins = _merged(self.bins, part.select(*keys, *counts), keys)
            part = part.drop(BIN)
        if self._subset_keys:
            of_subsets = part.drop(self._batch_keys)
            self.subsets = _merged(self.subsets, of_subsets, self._subset_keys)
            if self.subsets.height > self._most_subsets:
                raise UsageError(
                    f"by: {', '.join(self._by)} has more than {self._most_subsets:,} subsets; "
                    "choose a coarser column, or score the pairs and group the output"
                )
        if self._batches is not None:
            self._batches.add(part.drop(self._subset_keys), unique=self._unique_batches)
        self.totals = _merged(self.totals, part.drop(self._batch_keys, self._subset_keys), ())

    def finished_batches(self) -> pl.DataFrame | None:
        """Return the table of batch means; None without one, or where it went to a file."""
        return None if self._batches is None else self._batches.finish()


def _merged(old: pl.DataFrame | None, new: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    return merge([new] if old is None else [old, new], keys)
