"""A histogram of any range as one expression; sketches of parts merge by adding their counts.

Bin b holds the values with round(asinh(x / SCALE) / GROWTH) = b. Bins are linear near zero and
grow in proportion to the value further out (the idea of DDSketch, arXiv 1908.10693, with asinh
for the logarithm, so that zero and both signs fit). Counting is exact, so a quantile's bin is the
right one, and only the place within the bin is unknown:

- rank: no error. The order statistic asked for lies in the bin that is found.
- value: at most `value_error(x)`, which is 2.5e-5 near zero and 0.25% of x far from it.

The same rows give the same bins for one Polars build and libm; a value within a rounding error
of an edge may fall on its other side elsewhere.
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
