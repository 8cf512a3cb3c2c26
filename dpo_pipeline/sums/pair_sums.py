"""Expressions for the sums and counts of scored pairs: one value for each group of rows."""

from __future__ import annotations

from typing import Final

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_TOKENS,
    N_PAIRS,
    REJECTED_TOKENS,
)
from dpo_pipeline.exact import bin_of, value_at

VALID: Final = "__dpo_pipeline_is_valid"
COARSE: Final = 16
"""Bins of `exact.bin_of` that make one bin of a two-dimensional histogram."""
CELL: Final = "cell"
_HIGH: Final = 2**24
"""More than twice the coarse bin of any finite value, so that a low part never carries over."""
PRECISIONS: Final = {"bf16": 8, "f16": 11, "f32": 24}
"""Number formats that log-probs come from, and the bits of their significands."""


def cell_of(high: pl.Expr, low: pl.Expr) -> pl.Expr:
    """Return two small integers packed into one, which groups rows twice as fast."""
    return (high.cast(pl.Int64) * _HIGH + low.cast(pl.Int64)).alias(CELL)


def split_cells(counts: pl.DataFrame, high: str, low: str) -> pl.DataFrame:
    """Return the unpacked integers of `cell_of` with `n_pairs`, sorted."""
    of_low = (pl.col(CELL) + _HIGH // 2) % _HIGH - _HIGH // 2
    return counts.sort(CELL).select(
        ((pl.col(CELL) - of_low) // _HIGH).cast(pl.Int32).alias(high),
        of_low.cast(pl.Int32).alias(low),
        N_PAIRS,
    )


def pair_count() -> pl.Expr:
    """Return the number of pairs."""
    return pl.len().cast(pl.Int64).alias(N_PAIRS)


def valid_only(values: pl.Expr) -> pl.Expr:
    """Return the values, null for invalid pairs."""
    return pl.when(VALID).then(values)


def longer_by() -> pl.Expr:
    """Return by how many tokens the chosen completion is longer; null where it is not known."""
    return pl.col(CHOSEN_TOKENS.name).cast(pl.Int64) - pl.col(REJECTED_TOKENS.name).cast(pl.Int64)


def coarse_bin(values: pl.Expr) -> pl.Expr:
    """Return bins of `COARSE` times the width of a histogram's, the middle one around zero."""
    return bin_of(values, width=COARSE)


def coarse_middle(bins: pl.Expr) -> pl.Expr:
    """Return the middle of each coarse bin."""
    return value_at(bins.cast(pl.Float64) * COARSE)
