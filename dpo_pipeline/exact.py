"""Sums that do not depend on the order of their terms, and the means made from them.

A value is counted in whole quanta of 2**-40 nats, half to even, so that a sum is a sum of integers:
the same to the last bit for any split of the rows into threads, row groups, files or machines, and
for any order of merging. Adding 1.5 * 2**12 to a value of magnitude up to 2**11 leaves its quanta
in the low bits of the Float64, which are summed as they are. Larger ones, to
`defaults.WIDE_LIMIT`, are summed in two parts; 2**32 rows of them cannot overflow Int128.

Error of a mean: at most half a quantum, 2**-41 = 4.6e-13, plus the rounding of the final
division; none at all from the summation. Values that are multiples of the quantum, such as
any Float32 of magnitude 2**-17 or more, are summed without error.
"""

from __future__ import annotations

import math
from typing import Final

import polars as pl

SCALE: Final = 2.0**-7
"""Where bins turn from linear to proportional, in the unit of the values (nats)."""

STEP: Final = 44
"""Low bits of a Float64 that bins do not tell apart: so there are 256 from one power of two to the
next, and each is at most 0.2% to both sides of its middle."""

SCALE_BITS: Final = 0x3F80000000000000
"""The bits of `SCALE`."""


def bin_of(values: pl.Expr, *, width: int = 1) -> pl.Expr:
    """Return the bin of each Float64 as Int32; null stays null.

    The bits of |x| + `SCALE` rise with it, so that a bin is a run of them. A bin as wide as `width`
    of these, a power of two, is in the middle of them.
    """
    step = width << STEP
    bits = (values.abs() + SCALE).reinterpret(dtype=pl.Int64) - (SCALE_BITS - step // 2)
    sign = pl.when(values < 0.0).then(-1).otherwise(1)
    return ((bits // step) * sign).cast(pl.Int32)


def value_at(bins: pl.Expr) -> pl.Expr:
    """Return the middle of each bin; for n + 1/2 what lies between two."""
    place = bins.cast(pl.Float64)
    bits = (place.abs() * 2.0**STEP).cast(pl.Int64) + SCALE_BITS
    return place.sign() * (bits.reinterpret(dtype=pl.Float64) - SCALE)


def lower_edge(bins: pl.Expr) -> pl.Expr:
    """Return the lower edge of each bin, which is the upper edge of the bin before it."""
    return value_at(bins.cast(pl.Float64) - 0.5)


def middle(bin_number: int) -> float:
    """Return the value that stands for a bin; 0 for the bin around zero."""
    return float(pl.select(value_at(pl.lit(bin_number))).item())


def value_error(x: float) -> float:
    """Return the largest distance between x and the middle of its bin."""
    _, exponent = math.frexp(abs(x) + SCALE)
    return math.ldexp(1.0, exponent - 54 + STEP)


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
SMALL: Final = 2.0**11
"""Largest magnitude of a value that `exact_sum_of_small` sums, in nats."""
FEW: Final = 2**12
"""So many rows of small values, less one, have a sum that fits Int64."""

SHIFT: Final = 1.5 * 2.0**12
"""Added to a small number, it leaves the number in quanta in the low bits."""
SHIFT_BITS: Final = 0x40B8000000000000
"""The bits of `SHIFT`."""
SHIFT_OF_NATS: Final = 1.5 * 2.0**52
"""Added to a number of a magnitude up to 2**51, it leaves it in whole nats in the low bits."""
BITS_OF_NATS: Final = 0x4338000000000000
"""The bits of `SHIFT_OF_NATS`."""


BITS: Final = "__dpo_pipeline_bits"
"""The end of the name of a sum of bits."""


def exact_sum(values: pl.Expr) -> pl.Expr:
    """Return the sum as Int128 quanta. Nulls are left out; magnitudes must be at most 2**50."""
    nats = values + SHIFT_OF_NATS
    # What is left is exact, at most half a nat, and rounds to even like the whole: a nat is an
    # even number of quanta.
    left = values - (nats - SHIFT_OF_NATS)
    count = values.count().cast(pl.Int128)
    whole = _sum_of_bits(nats) - count * BITS_OF_NATS
    quanta = _sum_of_bits(left + SHIFT) - count * SHIFT_BITS
    return whole * pl.lit(2**40, dtype=pl.Int128) + quanta


def exact_sum_of_small(values: pl.Expr, count: pl.Expr, *, few: bool = False) -> pl.Expr:
    """Return the same sum by group of values of a magnitude up to `SMALL`.

    Args:
        values: The values; the sum is meaningless if one is larger or not finite.
        count: How many of them are not null: to count them for each sum costs as much as a sum.
        few: Whether there are less than `FEW` rows.
    """
    if not few:
        return _sum_of_bits(values + SHIFT) - count.cast(pl.Int128) * SHIFT_BITS
    # Integers wrap, so that the bits of the shift come off again.
    bits = (values + SHIFT).reinterpret(dtype=pl.Int64).sum()
    return (bits - count.cast(pl.Int64) * SHIFT_BITS).cast(pl.Int128)


def float_and_bits(values: pl.Expr, name: str) -> list[pl.Expr]:
    """Return two sums of all values, of which `sum_of_bits` makes that of `exact_sum_of_small`.

    They cost as much as a sum of floats. An aggregate that stands twice in a plan is made twice,
    and so the rest is done on the row of sums.
    """
    bits = (values + SHIFT).reinterpret(dtype=pl.Int64).sum()
    return [values.sum().alias(name), bits.alias(f"{name}{BITS}")]


def sum_of_bits(name: str, count: pl.Expr) -> pl.Expr:
    """Return the sum of as many small values as `count` says, from `float_and_bits`."""
    # Integers wrap, so that the bits of the shift come off again.
    wrapped = pl.col(f"{name}{BITS}") - count * SHIFT_BITS
    # The float sum of up to 2**32 small values is off by less than half of 2**64 quanta in any
    # order, and so tells how often the integers wrapped.
    missing = pl.col(name) * QUANTA_PER_NAT - wrapped.cast(pl.Float64)
    turns = (missing * 2.0**-64).round().cast(pl.Int128, strict=False)
    return (wrapped.cast(pl.Int128) + turns * pl.lit(2**64, dtype=pl.Int128)).alias(name)


def _sum_of_bits(values: pl.Expr) -> pl.Expr:
    return values.reinterpret(dtype=pl.Int64).cast(pl.Int128).sum()


def mean_of(quanta: pl.Expr, count: pl.Expr) -> pl.Expr:
    """Return quanta / count in nats as Float64, null where the count is 0."""
    count = pl.when(count > 0).then(count.cast(pl.Float64))
    return quanta.cast(pl.Float64) / (count * QUANTA_PER_NAT)
