"""How margins go with something else: a judge's score, or the difference of lengths.

Functions of `cells` take a table with columns `margin`, `gap` (the judge's score for the chosen
completion less that for the rejected one) and `n_pairs`; rows with a null are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import polars as pl

from dpo_pipeline.defaults import CONFIDENCE_LEVEL
from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.distributions import normal_quantile, t_quantile, t_two_sided
from dpo_pipeline.statistics.intervals import (
    CLUSTERED,
    STUDENT,
    Estimate,
    Interval,
    cut_to,
    group_of_equal_mass,
    student_estimate,
    with_rate_limits,
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
    sums = {"up": n.filter(gap > 0).sum(), "down": n.filter(gap < 0).sum()}
    by_margin = _there(cells).group_by("margin").agg(**sums).sort("margin")
    up, down = pl.col("up"), pl.col("down")
    wins = up * (down.cum_sum() - down / 2.0)
    won, ups, downs = by_margin.select(wins=wins, up=up, down=down).sum().row(0)
    return won / (ups * downs) if ups and downs else None


def area_of_counts(
    counts: pl.DataFrame, level: float = CONFIDENCE_LEVEL
) -> tuple[Estimate, float] | None:
    """Return the chance that one of the `up` is above one of the `down`, and how far it may be off.

    `counts` has a row for each value or bin of values, rising, with how many of either kind it
    holds. Those in one bin count as tied, half, and so the second number is half of their share
    of all pairs. The interval is DeLong's (1988) on the logit scale, all observations taken as
    independent; None where the area is 0 or 1. None without both kinds.
    """
    up, down = pl.col("up").cast(pl.Float64), pl.col("down").cast(pl.Float64)
    placed = counts.with_columns(
        # The share of the other kind that an observation of the bin is above, or below.
        above=(down.cum_sum() - down / 2.0) / down.sum(),
        below=(up.sum() - up.cum_sum() + up / 2.0) / up.sum(),
    )
    ups, downs = (int(n) for n in counts.select(pl.col("up", "down").sum()).row(0))
    if not ups or not downs:
        return None
    above, below = pl.col("above"), pl.col("below")
    area, tied = placed.select(area=(up * above).sum() / ups, tied=(up * down).sum()).row(0)
    spreads = placed.select(
        ups=(up * (above - area).pow(2)).sum(), downs=(down * (below - area).pow(2)).sum()
    ).row(0)
    variance = sum(
        spread / (n - 1) / n for spread, n in zip(spreads, (ups, downs), strict=True) if n > 1
    )
    error = math.sqrt(variance) if min(ups, downs) > 1 else None
    interval = None
    if error is not None and 0.0 < area < 1.0:
        logit, spread = math.log(area / (1.0 - area)), error / (area * (1.0 - area))
        half = normal_quantile(0.5 + level / 2.0) * spread
        low, high = (1.0 / (1.0 + math.exp(-x)) for x in (logit - half, logit + half))
        interval = Interval(low=low, high=high, level=level, method="DeLong, logit")
    n = ups + downs
    made = Estimate(value=area, standard_error=error, interval=interval, n=n, n_clusters=n)
    return made, tied / (2.0 * ups * downs)


_DELONG: Final = "DeLong by prompt"


def area_of_clusters(
    above: pl.Series,
    below: pl.Series,
    up: pl.Series,
    down: pl.Series,
    level: float = CONFIDENCE_LEVEL,
) -> Estimate | None:
    """Return the chance that one of the `up` is above one of the `down`, from sums by cluster.

    Args:
        above: Sum over a cluster's `up` of the share of all `down` that each is above, ties half.
        below: Sum over its `down` of the share of all `up` that each is below.
        up: How many of the `up` it has.
        down: How many of the `down`.
        level: Confidence level.

    The standard error is that of clusters (N. Obuchowski, "Nonparametric analysis of clustered ROC
    curve data", 1997, Eq. 3 to 6), the interval Student's on the logit scale; none with less than
    two clusters that have the one kind or the other, or where the area is 0 or 1. None without both
    kinds.
    """
    ups, downs = float(up.sum()), float(down.sum())
    if not ups or not downs:
        return None
    area, interval = float(above.sum()) / ups, None
    error, freedom = _clustered_error(above - up * area, below - down * area, up, down)
    if error is not None and error > 0.0 and 0.0 < area < 1.0:
        logit, spread = math.log(area / (1.0 - area)), error / (area * (1.0 - area))
        half = t_quantile(0.5 + level / 2.0, freedom) * spread
        low, high = (1.0 / (1.0 + math.exp(-x)) for x in (logit - half, logit + half))
        interval = Interval(low=low, high=high, level=level, method=f"{_DELONG}, logit, {STUDENT}")
    return Estimate(
        value=area,
        standard_error=error,
        interval=interval,
        n=int(ups + downs),
        n_clusters=len(up),
    )


def area_difference(
    above: pl.Series,
    below: pl.Series,
    up: pl.Series,
    down: pl.Series,
    level: float = CONFIDENCE_LEVEL,
) -> tuple[Estimate, float | None] | None:
    """Return the difference of two areas over the same observations, and its two-sided p-value.

    `above` and `below` are those of `area_of_clusters` for the new score less those for the old.
    The p-value is Student's; None where the difference has no spread.
    """
    ups, downs = float(up.sum()), float(down.sum())
    if not ups or not downs:
        return None
    value = float(above.sum()) / ups
    error, freedom = _clustered_error(above - up * value, below - down * value, up, down)
    made, p_value = _tested(
        value,
        error,
        freedom,
        level=level,
        method=f"{_DELONG}, {STUDENT}",
        n=int(ups + downs),
        n_clusters=len(up),
    )
    return cut_to(made, -1.0, 1.0), p_value


def difference_of_means(
    ups: pl.Series, downs: pl.Series, up: pl.Series, down: pl.Series, level: float
) -> tuple[Estimate, float | None] | None:
    """Return the mean of one kind less that of another, which share clusters, and its p-value.

    `ups` and `downs` are sums by cluster, of the `up` and `down` observations that it has.
    """
    n_up, n_down = float(up.sum()), float(down.sum())
    if not n_up or not n_down:
        return None
    mean_up, mean_down = float(ups.sum()) / n_up, float(downs.sum()) / n_down
    error = _clustered_error(ups - up * mean_up, down * mean_down - downs, up, down)
    n, method = int(n_up + n_down), STUDENT + CLUSTERED
    return _tested(mean_up - mean_down, *error, level=level, n=n, n_clusters=len(up), method=method)


def _tested(
    value: float, error: float | None, freedom: float, *, level: float, **about: Any
) -> tuple[Estimate, float | None]:
    """Return a difference with its interval, and the p-value of none; neither without a spread."""
    made = student_estimate(value, error or None, freedom, level=level, **about)
    if error:
        return made, t_two_sided(value / error, freedom)
    return made, 1.0 if error == value == 0.0 else None


def _clustered_error(
    above: pl.Series, below: pl.Series, up: pl.Series, down: pl.Series
) -> tuple[float | None, float]:
    """Return the standard error, from centred sums by cluster, and its degrees of freedom."""
    ups, downs, n = float(up.sum()), float(down.sum()), len(up)
    with_up, with_down = int((up > 0).sum()), int((down > 0).sum())
    fewest = min(with_up, with_down)
    if fewest < 2:  # noqa: PLR2004  one shows no spread
        return None, 0.0
    variance = float((above**2).sum()) * with_up / (with_up - 1) / ups**2
    variance += float((below**2).sum()) * with_down / (with_down - 1) / downs**2
    variance += 2.0 * float((above * below).sum()) * n / (n - 1) / (ups * downs)
    return math.sqrt(max(variance, 0.0)), fewest - 1.0


def accuracy_by_gap(
    cells: pl.DataFrame, n_groups: int | None = None, level: float = CONFIDENCE_LEVEL
) -> pl.DataFrame:
    """Return the share of pairs with a margin above 0, by the judge's gap, rising.

    `n_groups` is the most groups of nearly equal size, fewer where many pairs share a gap; None
    makes each gap a group. Columns: `gap_low`, `gap_high`, `n_pairs`, `n_correct` (margin above
    0), `n_ties` (margin of 0), `accuracy` (n_correct / n_pairs), and the limits `accuracy_low`,
    `accuracy_high`, as of independent pairs.
    """
    if n_groups is not None and n_groups < 1:
        raise UsageError(f"n_groups must be at least 1, found {n_groups!r}")
    margin, n, gap = pl.col("margin"), pl.col("n"), pl.col("gap")
    correct, ties = n.filter(margin > 0.0).sum(), n.filter(margin == 0.0).sum()
    by_gap = _there(cells).group_by("gap").agg(n=n.sum(), n_correct=correct, n_ties=ties)
    gaps = by_gap.sort("gap")
    place = gap if n_groups is None else group_of_equal_mass(n_groups)
    counts = pl.col("n", "n_correct", "n_ties").sum().cast(pl.Int64)
    groups = (
        gaps.group_by(place.alias("place"), maintain_order=True)
        .agg(gap.min().alias("gap_low"), gap.max().alias("gap_high"), counts)
        .drop("place")
        .rename({"n": "n_pairs"})
        .with_columns(accuracy=pl.col("n_correct") / pl.col("n_pairs"))
    )
    return with_rate_limits(groups, pl.col("n_correct"), pl.col("n_pairs"), level)


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
    """The least-squares line y = intercept + slope * x."""

    slope: Estimate  # unit of y per unit of x
    intercept: Estimate  # unit of y: the mean of y where x is 0
    correlation: float | None  # Pearson's, from -1 to 1; None where y does not vary


def line_of_clusters(clusters: pl.DataFrame, level: float = CONFIDENCE_LEVEL) -> Line | None:
    """Return the least-squares line of pairs in clusters, with the spread between clusters.

    The sandwich variance over clusters times C / (C - 1) * (N - 1) / (N - 2), and Student's t
    with C - 1 degrees of freedom (A. C. Cameron, D. Miller, "A Practitioner's Guide to
    Cluster-Robust Inference", 2015, Eq. 11 and 12). `clusters` has the columns of `SUMS`, one
    row a cluster; whole numbers of any size are used exactly. Without standard errors and
    intervals for one cluster or two pairs. None where x does not vary.
    """
    missing = [name for name in SUMS if name not in clusters.columns]
    if missing:
        raise UsageError(f"no column {', '.join(map(repr, missing))} in the table of sums")
    clusters = clusters.filter(pl.col("n") > 0)
    n, n_clusters = int(clusters["n"].sum()), clusters.height
    if n == 0:
        return None
    # Fractions, because these differences are of numbers that may be almost the same.
    count, sum_x, sum_y, sum_xx, sum_xy, sum_yy = map(
        Fraction, clusters.select(pl.col(SUMS).sum()).row(0)
    )
    spread = sum_xx - sum_x * sum_x / count
    if spread <= 0:
        return None
    x, y, xx = float(sum_x / count), float(sum_y / count), float(spread)
    xy = float(sum_xy - sum_x * sum_y / count)
    yy = float(max(Fraction(0), sum_yy - sum_y * sum_y / count))
    slope = xy / xx
    errors: list[float | None] = [None, None]
    if n_clusters > 1 and n > 2:  # noqa: PLR2004  a line has two coefficients
        factor = n_clusters / (n_clusters - 1) * (n - 1) / (n - 2)
        moved = clusters.cast(pl.Float64).select(_influences(n, x=x, y=y, xx=xx, slope=slope))
        errors = [math.sqrt(factor * float((each**2).sum())) for each in moved]
    of_slope, of_intercept = (
        student_estimate(
            value,
            error,
            n_clusters - 1,
            level=level,
            method=STUDENT + CLUSTERED,
            n=n,
            n_clusters=n_clusters,
        )
        for value, error in zip((slope, y - slope * x), errors, strict=True)
    )
    variance = xx * yy
    correlation = xy / math.sqrt(variance) if variance > 0.0 else None
    return Line(slope=of_slope, intercept=of_intercept, correlation=correlation)


def _influences(n: int, *, x: float, y: float, xx: float, slope: float) -> list[pl.Expr]:
    """Return what each cluster moves the slope and the intercept by."""
    count, sum_x, sum_y, sum_xx, sum_xy, _ = map(pl.col, SUMS)
    from_x = sum_x - x * count
    from_y = sum_y - y * count
    squares = sum_xx - 2.0 * x * sum_x + x**2 * count
    products = sum_xy - x * sum_y - y * from_x
    residuals = from_y - slope * from_x
    by_slope = (products - slope * squares) / xx
    return [by_slope.alias("slope"), (residuals / n - x * by_slope).alias("intercept")]
