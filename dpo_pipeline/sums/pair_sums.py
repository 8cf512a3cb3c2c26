"""Expressions for the sums and counts of scored pairs: one value for each group of rows."""

from __future__ import annotations

from typing import Final

import polars as pl

from dpo_pipeline.columns import (
    CHOSEN_LOGRATIO,
    CHOSEN_TOKENS,
    N_PAIRS,
    N_VALID,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_LOGRATIO,
    REJECTED_TOKENS,
    REWARD_MARGIN,
    Needs,
)
from dpo_pipeline.exact import GROWTH, QUANTA_PER_NAT, SCALE, exact_sum
from dpo_pipeline.losses import is_correct, sigmoid, sigmoid_loss

VALID: Final = "__dpo_pipeline_is_valid"
COARSE: Final = 10
"""Bins of `exact.bin_of` that make one bin of a two-dimensional histogram."""
CELL: Final = "cell"
_HIGH: Final = 2**24
"""More than twice the coarse bin of any finite value, so that a low part never carries over."""
_SQUARED_LIMIT: Final = 2.0**25
"""Largest margin, in nats, whose square fits `exact_sum`."""
PRECISIONS: Final = {"bf16": 8, "f16": 11, "f32": 24}
"""Number formats that log-probs come from, and the bits of their significands."""


def cluster_sums(needs: Needs, *, has_lengths: bool) -> list[pl.Expr]:
    """Return the sums behind baselines, calibration and displacement."""
    margin = pl.col(REWARD_MARGIN)
    shortfall = sigmoid(-margin)
    counts: dict[str, pl.Expr] = {"n_chosen_down": pl.col(CHOSEN_LOGRATIO) < 0}
    counts["n_rejected_down"] = pl.col(REJECTED_LOGRATIO) < 0
    counts["n_both_down"] = counts["n_chosen_down"] & counts["n_rejected_down"]
    by_policy = pl.col(POLICY_CHOSEN.name) > pl.col(POLICY_REJECTED.name)
    counts["n_policy_prefers"] = by_policy
    if needs.reference:
        by_reference = pl.col(REF_CHOSEN.name) > pl.col(REF_REJECTED.name)
        counts["n_reference_prefers"] = by_reference
        counts["n_both_prefer"] = by_policy & by_reference
    if has_lengths:
        counts["n_sized"] = longer_by().is_not_null()
        counts["n_longer"] = longer_by() > 0
        counts["n_shorter"] = longer_by() < 0
        counts["n_correct_sized"] = is_correct(margin) & longer_by().is_not_null()
    return [
        exact_sum(valid_only(shortfall * shortfall)).alias("sum_brier"),
        exact_sum(valid_only(sigmoid_loss(margin))).alias("sum_log_loss"),
        *(
            (where & pl.col(VALID)).sum().cast(pl.Int64).alias(name)
            for name, where in counts.items()
        ),
    ]


def group_sums(needs: Needs, *, has_lengths: bool) -> list[pl.Expr]:
    """Return the sums for the regression on length, and counts of log-probs by number format."""
    logps = {name: pl.col(name) for name in needs.logps}
    largest = pl.max_horizontal(each.abs() for each in logps.values())
    difference = (pl.col(CHOSEN_LOGRATIO) - pl.col(REJECTED_LOGRATIO)).abs()
    sums = [pl.len().cast(pl.Int64).alias(N_VALID)]
    for name, bits in PRECISIONS.items():
        for model in ("policy", "ref") if needs.reference else ("policy",):
            sides = [each for column, each in logps.items() if column.startswith(model)]
            is_exact = pl.all_horizontal(rounded_to(each, bits) == each for each in sides)
            sums.append(is_exact.sum().cast(pl.Int64).alias(f"n_{model}_{name}"))
        below = difference < largest * 2.0**-bits
        sums.append(below.sum().cast(pl.Int64).alias(f"n_below_{name}"))
    if has_lengths:
        fits = pl.col(REWARD_MARGIN).abs() <= _SQUARED_LIMIT
        x = pl.when(fits).then(longer_by()).cast(pl.Float64)
        y = pl.when(x.is_not_null()).then(pl.col(REWARD_MARGIN))
        sums += [
            x.count().cast(pl.Int64).alias("n_sized"),
            exact_sum(x).alias("sum_x"),
            exact_sum(y).alias("sum_y"),
            exact_sum(x * x).alias("sum_xx"),
            exact_sum(x * y).alias("sum_xy"),
            exact_sum(y * y).alias("sum_yy"),
        ]
    return sums


def steps_of(values: pl.Expr) -> pl.Expr:
    """Return log-probs as UInt64, in steps of 2**-40 nats: equal ones stay equal."""
    whole = (values * QUANTA_PER_NAT).cast(pl.Int64, wrap_numerical=True)
    return whole.cast(pl.UInt64, wrap_numerical=True)


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


def course_sums() -> list[pl.Expr]:
    """Return how many margins are above 0, and their sum."""
    margin = pl.col(REWARD_MARGIN)
    return [
        (margin > 0.0).sum().cast(pl.Int64).alias("n_correct"),
        exact_sum(margin).alias(f"sum_{REWARD_MARGIN}"),
    ]


def coarse_bin(values: pl.Expr) -> pl.Expr:
    """Return bins of `COARSE` times the width of a histogram's, the middle one around zero."""
    return ((values / SCALE).arcsinh() / (GROWTH * COARSE)).round().cast(pl.Int32)


def coarse_middle(bins: pl.Expr) -> pl.Expr:
    """Return the middle of each coarse bin."""
    return SCALE * (bins.cast(pl.Float64) * GROWTH * COARSE).sinh()


def rounded_to(values: pl.Expr, bits: int) -> pl.Expr:
    """Return values rounded to `bits` bits of significand (Dekker's splitting; 1971)."""
    scaled = values * (2.0 ** (53 - bits) + 1.0)
    return scaled - (scaled - values)
