"""Declared batches, of consecutive rows or of one value, and the table of their means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

import polars as pl

from dpo_pipeline.columns import BATCH, BATCH_MEANS
from dpo_pipeline.defaults import MAX_BATCHES_HELD, SHARD_ROWS
from dpo_pipeline.errors import UsageError
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.storage import GrowingFile
from dpo_pipeline.sums.summary import figures, merge

_KEY: Final = "__dpo_pipeline_batch"
_ROW: Final = "__dpo_pipeline_batch_row"
_FIRST: Final = "min___dpo_pipeline_batch_row"
BATCHES_PER_GROUP: Final = 262_144
"""Rows of a row group of batch means, and batches that a shard gives at most."""
_FASTER_IN_ORDER: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How pairs are put into batches: by `size` consecutive rows, or by the value of `column`."""

    size: int | None = None
    column: str | None = None

    @classmethod
    def of(cls, *, batch_size: int | None, batch_by: str | None, to_file: bool) -> Self | None:
        """Make it from the arguments of a call; None if there are to be no batches.

        Raises:
            UsageError: Both are given, or the size is below 1, or there is a file and no batches.
        """
        if batch_size is not None and batch_by is not None:
            raise UsageError("give batch_size or batch_by, not both")
        if batch_size is None and batch_by is None:
            if to_file:
                raise UsageError("batches is a file for batch means: give batch_size or batch_by")
            return None
        whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
        if batch_size is not None and not (whole and batch_size >= 1):
            raise UsageError(f"batch_size must be a whole number, at least 1, found {batch_size!r}")
        return cls(size=batch_size, column=batch_by)

    @property
    def key(self) -> str:
        """The column that `with_key` adds."""
        return _KEY

    @property
    def columns(self) -> list[str]:
        """All columns that `with_key` adds."""
        return [_KEY, _ROW]

    @property
    def in_order(self) -> bool:
        """Whether the key ascends with the rows."""
        return self.size is not None

    @property
    def are_long(self) -> bool:
        """Whether batches of rows are faster to sum one after the other than by their hash."""
        return self.size is not None and self.size >= _FASTER_IN_ORDER

    @property
    def shard_rows(self) -> int:
        """Rows of a shard that give no more batches than are cheap to hold."""
        return SHARD_ROWS if self.size is None else min(SHARD_ROWS, self.size * BATCHES_PER_GROUP)

    def with_key(self, pairs: pl.LazyFrame, first_row: int) -> pl.LazyFrame:
        """Add the batch of each row, the first row being number `first_row` of the dataset."""
        numbered = pairs.with_row_index(_ROW).with_columns(pl.col(_ROW).cast(pl.Int64))
        if self.column is not None:
            return numbered.with_columns(pl.col(self.column).alias(_KEY), pl.col(_ROW) + first_row)
        if self.size is None:
            raise UsageError("batches have neither a size nor a column")
        # The row index is UInt32: counted within a shard, it cannot end before the dataset does.
        batch = (pl.col(_ROW) + first_row % self.size) // self.size + first_row // self.size
        return numbered.with_columns(batch.alias(_KEY))

    def sums(self) -> list[pl.Expr]:
        """Return what batches add to the partial sums: the first row, where it sets the order."""
        return [pl.col(_ROW).min().alias(_FIRST)] if self.column is not None else []


class BatchTable:
    """Makes batch means from partial sums that come in shard by shard."""

    def __init__(
        self,
        batching: Batching,
        *,
        objective: CheckedObjective,
        n_rows: int | None,
        file: GrowingFile | None,
    ) -> None:
        self._batching = batching
        self._objective = objective
        self._file = file
        self._open: pl.DataFrame | None = None  # sums that rows to come may still change
        self._done: list[pl.DataFrame] = []
        self._n_done = 0
        if file is None and batching.size is not None and n_rows is not None:
            _checked_count(math.ceil(n_rows / batching.size))

    def add(self, sums: pl.DataFrame, *, unique: bool) -> None:
        """Add the sums of some rows; shards must come in the order of the rows.

        Args:
            sums: Partial sums by batch.
            unique: Each batch has one row.
        """
        if not self._batching.in_order:
            self._open = merge([sums] if self._open is None else [self._open, sums], [_KEY])
            _checked_count(self._open.height)
            return
        sums = (sums if unique else merge([sums], [_KEY])).sort(_KEY)
        if self._open is not None:  # of batches in order, only one can lie on both sides of a cut
            border = merge([self._open, sums.head(1)], [_KEY])
            sums = pl.concat([border, sums.slice(1)])
        self._open = sums.tail(1)
        self._emit(sums.head(-1))

    def finish(self) -> pl.DataFrame | None:
        """Return the table; None where it went to a file."""
        if self._open is None:  # no rows, which is an error elsewhere
            return None
        self._emit(self._open if self._batching.in_order else self._open.sort(_FIRST))
        return None if self._file is not None else pl.concat(self._done)

    def _emit(self, sums: pl.DataFrame) -> None:
        means = figures(sums, self._objective, keys=[_KEY]).rename({_KEY: BATCH})
        means = means.select(added.name for added in BATCH_MEANS)
        self._n_done += means.height
        if self._file is not None:
            self._file.append(means)
        else:
            _checked_count(self._n_done)
            self._done.append(means)


def _checked_count(n_batches: int) -> None:
    if n_batches > MAX_BATCHES_HELD:
        raise UsageError(
            f"there are more than {MAX_BATCHES_HELD:,} batches: give a file for their means "
            "(batches=PATH, or --batches, with a batch size), or make larger batches"
        )
