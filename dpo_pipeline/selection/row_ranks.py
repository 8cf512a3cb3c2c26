"""Ranks of the rows of a dataset, in memory that does not grow with them.

Rows are parted by their values into pieces that fit memory, in a temporary folder if they are
many; the pieces are sorted in turn. Then they are parted by their place, to be read with the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Self

import polars as pl

from dpo_pipeline.defaults import STATISTICS_ROWS
from dpo_pipeline.sources import Partitions

ROW: Final = "__dpo_pipeline_row"
GROUP: Final = "__dpo_pipeline_group"
VALUE: Final = "__dpo_pipeline_value"
TIE: Final = "__dpo_pipeline_tie"
RANK: Final = "__dpo_pipeline_rank"
KEPT: Final = "__dpo_pipeline_kept"

_ORDER: Final = "__dpo_pipeline_order"
_SIGN: Final = 2**63
_ALL: Final = 2**64 - 1
_COARSE: Final = 2**48
_MOST_BYTES: Final = 2**27
_CUTS: Final = 63
_SAMPLED: Final = 4096


def _ordered_bits(value: pl.Expr) -> pl.Expr:
    """Return whole numbers that are in the order of Float64 values, none of which is NaN."""
    one_zero = pl.when(value == 0.0).then(0.0).otherwise(value)
    bits = one_zero.reinterpret(dtype=pl.UInt64)
    is_negative = bits >= pl.lit(_SIGN, pl.UInt64)
    return bits ^ pl.when(is_negative).then(pl.lit(_ALL, pl.UInt64)).otherwise(
        pl.lit(_SIGN, pl.UInt64)
    )


class RowRanks:
    """Takes the values of rows, and gives back their ranks within their groups."""

    def __init__(self, extra: pl.Schema, *, largest_first: bool) -> None:
        """Start without rows; they have the columns `extra` besides."""
        own = {ROW: pl.UInt64(), GROUP: pl.UInt32(), VALUE: pl.Float64(), TIE: pl.UInt64()}
        self._schema = pl.Schema({**own, **extra})
        self._largest_first = largest_first
        self._ordered = pl.Schema({**self._schema, _ORDER: pl.UInt64()})
        self._parts = Partitions({"": self._ordered}, by=pl.col(_ORDER) // _COARSE)
        self._n: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *what: object) -> None:
        self._parts.__exit__(None, None, None)

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows, in any order; their values are numbers."""
        for group, n in rows.group_by(GROUP).len().iter_rows():
            self._n[group] = self._n.get(group, 0) + n
        value = -pl.col(VALUE) if self._largest_first else pl.col(VALUE)
        made = rows.select(*self._schema.names(), _ordered_bits(value).alias(_ORDER))
        self._parts.add("", made.cast(self._ordered))

    @property
    def n_of_groups(self) -> Mapping[int, int]:
        """Rows by group."""
        return self._n

    def ranked(self, keep: Mapping[int, int]) -> Iterator[pl.DataFrame]:
        """Yield the rows in the order of their values, with `RANK` from 1 and `KEPT`.

        `keep` says how many of each group are kept. Equal values are in the order of `TIE`.
        """
        before: dict[int, int] = {}
        groups = list(self._n)
        for rows in _in_order(self._parts, self._ordered):
            earlier = pl.col(GROUP).replace_strict(
                groups, [before.get(group, 0) for group in groups], return_dtype=pl.UInt64
            )
            most = pl.col(GROUP).replace_strict(
                groups, [keep[group] for group in groups], return_dtype=pl.UInt64
            )
            place = pl.int_range(1, pl.len() + 1, dtype=pl.UInt64).over(GROUP)
            ranked = rows.drop(_ORDER).with_columns((earlier + place).alias(RANK))
            yield ranked.with_columns((pl.col(RANK) <= most).alias(KEPT))
            for group, n in rows.group_by(GROUP).len().iter_rows():
                before[group] = before.get(group, 0) + n


def _in_order(parts: Partitions, schema: pl.Schema) -> Iterator[pl.DataFrame]:
    """Yield all rows in the order of their values, of the ties, and of the rows."""
    order = [_ORDER, TIE, ROW]
    for n_bytes, pieces in parts.pieces(""):
        if n_bytes > _MOST_BYTES:
            n = sum(piece.height for piece in pieces())
            few = pl.concat(
                [piece.select(order).gather_every(max(n // _SAMPLED, 1)) for piece in pieces()]
            )
            cuts = few.sort(order).gather_every(max(few.height // _CUTS, 1)).unique()
            if cuts.height > 1:
                with Partitions({"": schema}, by=_number_of(cuts.rows())) as finer:
                    for piece in pieces():
                        finer.add("", piece)
                    yield from _in_order(finer, schema)
                continue
        yield pl.concat(list(pieces())).sort(order)


def _number_of(cuts: list[tuple[int, int, int]]) -> pl.Expr:
    """Return how many of the cuts are not above a row."""
    order, tie, row = pl.col(_ORDER), pl.col(TIE), pl.col(ROW)
    number = pl.lit(0, pl.UInt32)
    for at, tie_at, row_at in cuts:
        is_tie = (tie > tie_at) | ((tie == tie_at) & (row >= row_at))
        number = number + ((order > at) | ((order == at) & is_tie)).cast(pl.UInt32)
    return number


class ByRow:
    """Takes rows of a dataset in any order, and gives them back in the order of the data."""

    def __init__(self, schema: pl.Schema) -> None:
        """Start without rows; `schema` has `ROW`."""
        self._schema = schema
        self._parts = Partitions({"": schema}, by=pl.col(ROW) // STATISTICS_ROWS)
        self._frames: Iterator[pl.DataFrame] | None = None
        self._held = pl.DataFrame(schema=schema)
        self.n_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *what: object) -> None:
        self._parts.__exit__(None, None, None)

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows."""
        self.n_rows += rows.height
        self._parts.add("", rows.select(self._schema.names()))

    def rewind(self) -> None:
        """Start from the first row again."""
        self._frames, self._held = None, self._held.clear()

    def take(self, first: int, n: int) -> pl.DataFrame:
        """Return those of the rows from number `first` on that were added, of `n` rows.

        Calls go on where the one before ended.
        """
        if self._frames is None:
            self._frames = (part[""].sort(ROW) for part in self._parts)
        held, end = self._held, first + n
        while held.is_empty() or held[ROW][-1] < end:
            following = next(self._frames, None)
            if following is None:
                break
            held = pl.concat([held, following])
        at = held[ROW].search_sorted(end)
        self._held = held.slice(at)
        return held.slice(0, at)
