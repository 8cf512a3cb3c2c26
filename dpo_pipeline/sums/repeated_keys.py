"""Keys that stand in more than one row, counted in memory that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from dpo_pipeline.defaults import KEYS_HELD


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
