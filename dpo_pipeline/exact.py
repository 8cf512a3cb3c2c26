"""Sums that do not depend on the order of their terms, and the means made from them.

A value is counted in whole quanta of 2**-40 nats, so that a sum is a sum of integers: the
same to the last bit for any split of the rows into threads, row groups, files or machines,
and for any order of merging. Each quantised value fits Int64 because its magnitude is at most
2**22 (`defaults.LOGP_LIMIT`; rows beyond it are invalid before they get here), and the sums are
Int128, which 2**64 rows could not overflow. Squared losses are larger, and have a sum of their own
(to `defaults.WIDE_LIMIT`).

Error of a mean: at most half a quantum, 2**-41 = 4.6e-13, plus the rounding of the final
division; none at all from the summation. Values that are multiples of the quantum, such as
any Float32 of magnitude 2**-17 or more, are summed without error.
"""

from __future__ import annotations

import math
from typing import Final

import polars as pl

SCALE: Final = 0.01
"""Where bins turn from linear to proportional, in the unit of the values (nats)."""

GROWTH: Final = 0.005
"""Width of a bin: in units of SCALE near zero, relative to the value far from it."""


def bin_of(values: pl.Expr) -> pl.Expr:
    """Return the bin of each finite value as Int32; null stays null."""
    return ((values / SCALE).arcsinh() / GROWTH).round().cast(pl.Int32)


def lower_edge(bins: pl.Expr) -> pl.Expr:
    """Return the lower edge of each bin, which is the upper edge of the bin before it."""
    return SCALE * ((bins.cast(pl.Float64) - 0.5) * GROWTH).sinh()


def middle(bin_number: int) -> float:
    """Return the value that stands for a bin; 0 for the bin around zero."""
    return SCALE * math.sinh(bin_number * GROWTH)


def value_error(x: float) -> float:
    """Return the largest distance between x and the middle of its bin."""
    # asinh has slope 1 / sqrt(SCALE^2 + x^2), and half a bin is GROWTH / 2 of it.
    outermost = SCALE * math.sinh(abs(math.asinh(x / SCALE)) + GROWTH / 2)
    return math.hypot(SCALE, outermost) * GROWTH / 2


def quantile(histogram: pl.DataFrame, q: float) -> float | None:
    """Return the q-quantile of binned values: the smallest x with at least q of them up to it.

    Args:
        histogram: Columns `bin` and `n_pairs`, in any order, bins possibly repeated.
        q: From 0 to 1.

    Returns:
        The middle of the bin that holds that order statistic, so within `value_error` of it;
        None for no values.
    """
    counts = histogram.group_by("bin").agg(pl.col("n_pairs").sum()).sort("bin")
    total = int(counts["n_pairs"].sum())
    if total == 0:
        return None
    rank = max(math.ceil(q * total), 1)
    reached = counts.filter(pl.col("n_pairs").cum_sum() >= rank)
    return middle(int(reached["bin"][0]))


QUANTA_PER_NAT: Final = 2.0**40
_ALMOST_HALF: Final = math.nextafter(0.5, 0.0)
"""Added before `floor`, to round. Adding 0.5 would change integers beyond 2**52."""


def quanta(values: pl.Expr) -> pl.Expr:
    """Return each value as Int128 quanta. Magnitudes must be at most 2**22."""
    # Scaling by a power of two is exact. Polars' round costs five times floor, a checked cast
    # twice a wrapping one (nothing here can wrap), a cast to Int128 more than one by Int64.
    whole = (values * QUANTA_PER_NAT + _ALMOST_HALF).floor()
    return whole.cast(pl.Int64, wrap_numerical=True).cast(pl.Int128)


def exact_sum(values: pl.Expr) -> pl.Expr:
    """Return the sum as Int128 quanta. Nulls are left out; magnitudes must be at most 2**22."""
    return quanta(values).sum()


def exact_sum_of_wide(values: pl.Expr) -> pl.Expr:
    """Return the sum as Int128 quanta of values of a magnitude up to 2**50, a little slower."""
    # 2**32 rows of 2**90 quanta are within 2**127.
    whole = (values * QUANTA_PER_NAT + _ALMOST_HALF).floor()
    return whole.cast(pl.Int128, wrap_numerical=True).sum()


def mean_of(quanta: pl.Expr, count: pl.Expr) -> pl.Expr:
    """Return quanta / count in nats as Float64, null where the count is 0."""
    count = pl.when(count > 0).then(count.cast(pl.Float64))
    return quanta.cast(pl.Float64) / (count * QUANTA_PER_NAT)
