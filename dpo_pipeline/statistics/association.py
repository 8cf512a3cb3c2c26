"""The straight line y = intercept + slope * x through pairs, from sums over them.

With x the difference of lengths and y the margin, the intercept is the mean margin at equal
length and the slope what a token more is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import polars as pl

from dpo_pipeline.defaults import CONFIDENCE_LEVEL
from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.intervals import (
    CLUSTERED,
    STUDENT,
    Estimate,
    rate_interval,
    student_interval,
)


def spearman(cells: pl.DataFrame) -> float | None:
    """Return Spearman's rank correlation of margin and gap, ties by their middle rank.

    From -1 to 1. None where there are no pairs, or all margins or all gaps are the same.
    """
    ranked = _there(cells).with_columns(margin=_rank("margin"), gap=_rank("gap"))
    n, x, y = pl.col("n"), pl.col("margin"), pl.col("gap")
    products = {"xy": n * x * y, "xx": n * x * x, "yy": n * y * y}
    xy, xx, yy = ranked.select(**products).sum().row(0)
    return xy / math.sqrt(xx * yy) if xx > 0.0 and yy > 0.0 else None


def area_under_curve(cells: pl.DataFrame) -> float | None:
    """Return the chance that a pair whose chosen answer the judge prefers has the larger margin.

    Of one such pair and one whose rejected answer the judge prefers, both at random; equal
    margins count half (H. Mann, D. Whitney, 1947). From 0 to 1. Pairs with a gap of 0 are left
    out. None where the judge prefers only chosen, or only rejected answers.
    """
    gap, n = pl.col("gap"), pl.col("n")
    by_margin = (
        _there(cells)
        .group_by("margin")
        .agg(up=n.filter(gap > 0).sum(), down=n.filter(gap < 0).sum())
        .sort("margin")
    )
    up, down = pl.col("up"), pl.col("down")
    wins = (up * (down.cum_sum() - down / 2.0)).sum()
    won, ups, downs = by_margin.select(wins, up.sum().alias("ups"), down.sum().alias("downs")).row(
        0
    )
    return won / (ups * downs) if ups and downs else None


def accuracy_by_gap(
    cells: pl.DataFrame, n_groups: int | None = None, level: float = CONFIDENCE_LEVEL
) -> pl.DataFrame:
    """Return the share of pairs with a margin above 0, by the judge's gap, rising.

    Args:
        cells: The table.
        n_groups: Groups of nearly equal size, at most; fewer where many pairs share a gap.
            None makes each gap a group.
        level: Of the intervals, as of independent pairs.

    Returns:
        Columns `gap_low` and `gap_high` (of the pairs in it), `n_pairs`, `n_correct` (margin
        above 0), `n_ties` (margin of 0), `accuracy` (n_correct / n_pairs), `accuracy_low`,
        `accuracy_high`.

    Raises:
        UsageError: `n_groups` is below 1, or the level not between 0 and 1.
    """
    if n_groups is not None and n_groups < 1:
        raise UsageError(f"n_groups must be at least 1, found {n_groups!r}")
    margin, n, gap = pl.col("margin"), pl.col("n"), pl.col("gap")
    gaps = (
        _there(cells)
        .group_by("gap")
        .agg(
            n=n.sum(),
            n_correct=n.filter(margin > 0.0).sum(),
            n_ties=n.filter(margin == 0.0).sum(),
        )
        .sort("gap")
    )
    # A gap belongs where its middle pair does.
    place = gap if n_groups is None else ((n.cum_sum() - n / 2.0) * n_groups / n.sum()).floor()
    counts = pl.col("n", "n_correct", "n_ties").sum().cast(pl.Int64)
    groups = (
        gaps.group_by(place.alias("place"), maintain_order=True)
        .agg(gap.min().alias("gap_low"), gap.max().alias("gap_high"), counts)
        .drop("place")
        .rename({"n": "n_pairs"})
        .with_columns(accuracy=pl.col("n_correct") / pl.col("n_pairs"))
    )
    intervals = [
        rate_interval(float(right), float(size), level)
        for right, size in groups.select("n_correct", "n_pairs").rows()
    ]
    return groups.with_columns(
        accuracy_low=pl.Series([i.low for i in intervals], dtype=pl.Float64),
        accuracy_high=pl.Series([i.high for i in intervals], dtype=pl.Float64),
    )


def _there(cells: pl.DataFrame) -> pl.DataFrame:
    """Return the cells that have pairs and both values, with `n` as Float64."""
    return cells.select("margin", "gap", n=pl.col("n_pairs").cast(pl.Float64)).filter(
        pl.col("margin").is_not_null() & pl.col("gap").is_not_null() & (pl.col("n") > 0)
    )


def _rank(name: str) -> pl.Expr:
    """Return the middle rank of each value, as a share of all pairs and less its mean of 1/2."""
    # Pairs below, and half of those level.
    n = pl.col("n")
    upto = n.sort_by(name).cum_sum().gather(pl.col(name).rank("max").cast(pl.UInt32) - 1)
    return (upto - n.sum().over(name) / 2.0) / n.sum() - 0.5


SUMS: Final = ("n", "sum_x", "sum_y", "sum_xx", "sum_xy", "sum_yy")
"""Columns of a table of sums: the count, then the sums of x, y, x*x, x*y and y*y."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A least-squares line."""

    slope: Estimate  # unit of y per unit of x
    intercept: Estimate  # unit of y: the mean of y where x is 0
    correlation: float | None  # Pearson's, from -1 to 1; None where y does not vary


def line_of_sums(
    *,
    n: int,
    sum_x: float,
    sum_y: float,
    sum_xx: float,
    sum_xy: float,
    sum_yy: float,
    level: float = CONFIDENCE_LEVEL,
) -> Line | None:
    """Return the least-squares line of independent pairs, by the usual formulas.

    Args:
        n: Pairs.
        sum_x: Sum of x. Here and below: whole numbers of any size are used exactly.
        sum_y: Sum of y.
        sum_xx: Sum of x squared.
        sum_xy: Sum of x times y.
        sum_yy: Sum of y squared.
        level: Of the intervals, which are Student's with n - 2 degrees of freedom.

    Returns:
        The line; without standard errors and intervals for two pairs. None where x does not vary.
    """
    centred = _centred((n, sum_x, sum_y, sum_xx, sum_xy, sum_yy))
    if centred is None:
        return None
    error_of_slope = error_of_intercept = None
    freedom = n - 2
    if freedom > 0:
        residual = max(0.0, centred.yy - centred.slope * centred.xy) / freedom
        error_of_slope = math.sqrt(residual / centred.xx)
        error_of_intercept = math.sqrt(residual * (1.0 / n + centred.x**2 / centred.xx))
    return _line(
        centred,
        error_of_slope,
        error_of_intercept,
        freedom=freedom,
        level=level,
        method=STUDENT,
        n=n,
        n_clusters=n,
    )


def line_of_clusters(clusters: pl.DataFrame, level: float = CONFIDENCE_LEVEL) -> Line | None:
    """Return the least-squares line of pairs in clusters, with the spread between clusters.

    The sandwich variance over clusters times C / (C - 1) * (N - 1) / (N - 2), and Student's t
    with C - 1 degrees of freedom (A. C. Cameron, D. Miller, "A Practitioner's Guide to
    Cluster-Robust Inference", 2015, Eq. 11 and 12).

    Args:
        clusters: The columns of `SUMS`, one row a cluster, in any numeric type.
        level: Of the intervals.

    Returns:
        The line; without standard errors and intervals for one cluster or two pairs. None where
        x does not vary.

    Raises:
        UsageError: A column is missing.
    """
    missing = [name for name in SUMS if name not in clusters.columns]
    if missing:
        raise UsageError(f"no column {', '.join(map(repr, missing))} in the table of sums")
    clusters = clusters.filter(pl.col("n") > 0)
    centred = _centred(clusters.select(pl.col(SUMS).sum()).row(0))
    if centred is None:
        return None
    n, n_clusters = int(clusters["n"].sum()), clusters.height
    error_of_slope = error_of_intercept = None
    if n_clusters > 1 and n > 2:  # noqa: PLR2004  a line has two coefficients
        factor = n_clusters / (n_clusters - 1) * (n - 1) / (n - 2)
        of_slope, of_intercept = (
            clusters.cast(pl.Float64).select(_influences(centred, n)).get_columns()
        )
        error_of_slope = math.sqrt(factor * float((of_slope**2).sum()))
        error_of_intercept = math.sqrt(factor * float((of_intercept**2).sum()))
    return _line(
        centred,
        error_of_slope,
        error_of_intercept,
        freedom=n_clusters - 1,
        level=level,
        method=STUDENT + CLUSTERED,
        n=n,
        n_clusters=n_clusters,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Centred:
    """Means of x and y, and sums of products of the differences from them."""

    x: float
    y: float
    xx: float
    xy: float
    yy: float

    @property
    def slope(self) -> float:
        return self.xy / self.xx


def _centred(sums: Sequence[float]) -> _Centred | None:
    n, x, y, xx, xy, yy = sums
    if n == 0:
        return None
    # Fractions, because these differences are of numbers that may be almost the same.
    count, of_x, of_y = Fraction(n), Fraction(x), Fraction(y)
    spread = Fraction(xx) - of_x * of_x / count
    if spread <= 0:
        return None
    return _Centred(
        x=float(of_x / count),
        y=float(of_y / count),
        xx=float(spread),
        xy=float(Fraction(xy) - of_x * of_y / count),
        yy=float(max(Fraction(0), Fraction(yy) - of_y * of_y / count)),
    )


def _influences(centred: _Centred, n: int) -> list[pl.Expr]:
    """Return what each cluster moves the slope and the intercept by."""
    count, sum_x, sum_y, sum_xx, sum_xy, _ = map(pl.col, SUMS)
    from_x = sum_x - centred.x * count
    from_y = sum_y - centred.y * count
    squares = sum_xx - 2.0 * centred.x * sum_x + centred.x**2 * count
    products = sum_xy - centred.x * sum_y - centred.y * from_x
    residuals = from_y - centred.slope * from_x
    slope = (products - centred.slope * squares) / centred.xx
    return [slope.alias("slope"), (residuals / n - centred.x * slope).alias("intercept")]


def _line(
    centred: _Centred,
    error_of_slope: float | None,
    error_of_intercept: float | None,
    *,
    freedom: int,
    level: float,
    method: str,
    n: int,
    n_clusters: int,
) -> Line:
    def estimate(value: float, error: float | None) -> Estimate:
        return Estimate(
            value=value,
            standard_error=error,
            interval=None
            if error is None
            else student_interval(value, error, freedom, level=level, method=method),
            n=n,
            n_clusters=n_clusters,
        )

    variance = centred.xx * centred.yy
    return Line(
        slope=estimate(centred.slope, error_of_slope),
        intercept=estimate(centred.y - centred.slope * centred.x, error_of_intercept),
        correlation=centred.xy / math.sqrt(variance) if variance > 0.0 else None,
    )
