"""Estimates with intervals: rates and means, of independent pairs and of clusters of pairs.

Pairs of one prompt resemble each other, so that a prompt is one cluster and the spread is taken
between clusters (E. Miller, "Adding Error Bars to Evals", arXiv 2411.00640, section 3.2). It is
that of the jackknife, which leaves each cluster out in turn: where a few clusters hold most of the
pairs, the usual residuals are too small, because the mean follows those clusters.

A rate has Wilson's interval (1927) where there are many successes and failures, and Jeffreys'
where there are few of either (the equal-tailed interval of Beta(k + 1/2, n - k + 1/2), closed
by 0 at k = 0 and by 1 at k = n; L. Brown, T. Cai, A. DasGupta, "Interval Estimation for a
Binomial Proportion", 2001). Averaged over rates from 0 to any bound, 95% intervals of Jeffreys
cover 94.6% to 97.2% from n = 2 on; the mid-p interval covers up to 99%, Clopper and Pearson's
more, Wilson's down to 92%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from dpo_pipeline.defaults import CONFIDENCE_LEVEL, WILSON_FROM
from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.distributions import (
    beta_quantile,
    checked_probability,
    normal_quantile,
    t_quantile,
)

WILSON: Final = "Wilson"
JEFFREYS: Final = "Jeffreys"
STUDENT: Final = "Student t"
MOVER: Final = "MOVER"
CLUSTERED: Final = ", clustered"
"""Follows the method of an interval that takes its spread from clusters."""

_ROUNDING: Final = 1e-12
"""Share of the variance of independent pairs up to which a spread is made of rounding errors."""

Numbers = Sequence[float] | pl.Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval, in the unit of the value that it belongs to."""

    low: float
    high: float
    level: float  # share of such intervals that hold the true value, 0.95 for 95%
    method: str  # how it was made


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure of a sample and how far it may be from that of the population."""

    value: float
    standard_error: float | None  # in the unit of the value; None for a single cluster
    interval: Interval | None  # None for a single cluster, unless of a rate
    n: int  # observations
    n_clusters: int  # groups of them that are independent of each other; n if all are


def cut_to(estimate: Estimate, low: float, high: float) -> Estimate:
    """Return the estimate with its interval cut to what the figure can be."""
    interval = estimate.interval
    if interval is None:
        return estimate
    cut = replace(interval, low=max(interval.low, low), high=min(interval.high, high))
    return replace(estimate, interval=cut)


def without_interval(estimate: Estimate) -> Estimate:
    """Return the estimate without error and interval, for a sample that shows no spread."""
    return replace(estimate, standard_error=None, interval=None)


def of_independent(estimate: Estimate) -> Estimate:
    """Return the estimate with a method that does not speak of clusters.

    For pairs that are independent and were put into bags, or that have halves for ties.
    """
    interval = estimate.interval
    if interval is None:
        return estimate
    named = replace(interval, method=interval.method.removesuffix(CLUSTERED))
    return replace(estimate, interval=named)


def limit_columns(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Return the limits of an interval as `name_low` and `name_high`; None without one."""
    return {
        f"{name}_low": None if interval is None else interval.low,
        f"{name}_high": None if interval is None else interval.high,
    }


def rate_of(successes: int, n: int, level: float = CONFIDENCE_LEVEL) -> Estimate | None:
    """Return a rate of independent pairs with its interval, which is never of zero width.

    By Jeffreys where fewer than `WILSON_FROM` succeed or fail, else by Wilson. The standard error
    is sqrt(p (1 - p) / n); at 0 and n, where that is 0, half the interval's width over the normal
    quantile. None for n = 0.
    """
    if not 0 <= successes <= n:
        raise UsageError(f"successes must be from 0 to n = {n:,}, found {successes!r}")
    if n == 0:
        return None
    interval = rate_interval(float(successes), float(n), level)
    return _rate(successes / n, float(n), interval, n=n, n_clusters=n)


def rate_with_ties(
    successes: float, n: int, level: float = CONFIDENCE_LEVEL, *, like: Estimate | None = None
) -> Estimate | None:
    """Return `rate_of` for pairs of which some are ties, each half a success.

    A pair that is half a success varies less than one that is a success or none, so that the
    interval is a little too wide, never too narrow. `like` is the rate of the same pairs that
    counts ties as wrong: its standard error says as how many independent pairs they count.
    """
    if n == 0:
        return None
    effective, n_clusters = float(n), n
    if like is not None and like.standard_error and 0.0 < like.value < 1.0:
        effective = min(effective, like.value * (1.0 - like.value) / like.standard_error**2)
        n_clusters = like.n_clusters
    suffix = "" if n_clusters == n else CLUSTERED
    interval = rate_interval(successes / n * effective, effective, level, suffix=suffix)
    return _rate(successes / n, effective, interval, n=n, n_clusters=n_clusters)


def rate_of_clusters(
    successes: Numbers, counts: Numbers, level: float = CONFIDENCE_LEVEL
) -> Estimate | None:
    """Return a rate whose pairs come in clusters, with its interval.

    The interval is that of `rate_of` for as many independent pairs as would give the standard
    error that the clusters show (E. Korn, B. Graubard, "Confidence Intervals for Proportions
    with Small Expected Number of Positive Counts", 1998): never more than there are, and
    fewer again, by Student's t, where few clusters make the spread, though not fewer than if all
    pairs of a cluster were alike. Where all pairs succeed or all fail the clusters show no
    spread: each then counts as one pair, as does a single cluster.

    In simulations 95% intervals cover 94% to 97% where some ten clusters or more hold the rarer
    outcome, and up to 99% where fewer do, which cannot show how alike their pairs are.

    Halves may stand for ties; clusters without pairs are left out. `rate_of` where every cluster
    is one pair. None without pairs.
    """
    table = clusters_of(successes, counts)
    if table.select(((pl.col("sum") < 0) | (pl.col("sum") > pl.col("n"))).any()).item():
        raise UsageError("the successes of a cluster must be from 0 to its count")
    n_clusters, total, n = table.height, float(table["sum"].sum()), float(table["n"].sum())
    if n_clusters == 0:
        return None
    if n == n_clusters and total.is_integer():
        return rate_of(int(total), int(n), level)
    rate = total / n
    if total in {0.0, n} or n_clusters == 1:
        effective = certain = float(n_clusters)
    else:
        error, squares = _spread(table, rate)
        spread = error**2 / (rate * (1.0 - rate))
        is_spread = spread * n > _ROUNDING
        effective = min(n, 1.0 / spread) if is_spread else n
        freedom = _degrees_of_freedom(squares) if is_spread else n_clusters - 1.0
        tail = (1.0 + checked_probability("level", level)) / 2.0
        shrink = (normal_quantile(tail) / t_quantile(tail, freedom)) ** 2
        # Not knowing the spread well cannot be worse than knowing that all of a cluster is alike.
        alike = n * n / float((table["n"] ** 2).sum())
        certain = max(effective * shrink, min(effective, alike))
    interval = rate_interval(rate * certain, certain, level, suffix=CLUSTERED)
    return _rate(rate, effective, interval, n=int(n), n_clusters=n_clusters)


def mean_of_clusters(
    sums: Numbers, counts: Numbers, level: float = CONFIDENCE_LEVEL
) -> Estimate | None:
    """Return the mean over all pairs, x = sum S / sum n, with the spread between clusters.

    SE^2 = (C - 1) / C * sum ((S_c - x n_c) / (N - n_c))^2: the jackknife. Where all clusters
    have one size this is arXiv 2411.00640, Eq. 4, with the factor C / (C - 1); where every cluster
    is one pair, the usual sqrt(s^2 / n). Student's t has C - 1 degrees of freedom where all have
    one size; else those of F. Satterthwaite (1946), as for rates.

    In simulations 95% intervals of values without a long tail cover 93% to 96%, from 5 clusters
    on, for sizes that are equal, 1 to 8, or Pareto's with a tail of 1.5 to 2. The interval is of
    zero width where all clusters have the same mean. NaN propagates. None without pairs.
    """
    found = mean_and_freedom(sums, counts, level)
    return None if found is None else found[0]


def mean_and_freedom(sums: Numbers, counts: Numbers, level: float) -> tuple[Estimate, float] | None:
    """Return `mean_of_clusters` with the degrees of freedom of its Student's t."""
    table = clusters_of(sums, counts)
    n_clusters, n = table.height, float(table["n"].sum())
    if n_clusters == 0:
        return None
    mean = float(table["sum"].sum()) / n
    method = STUDENT if n == n_clusters else STUDENT + CLUSTERED
    error, freedom = None, 0.0
    if n_clusters > 1:
        error, squares = _spread(table, mean)
        is_of_one_size = table["n"].min() == table["n"].max()
        freedom = n_clusters - 1.0 if is_of_one_size else _degrees_of_freedom(squares)
    estimate = student_estimate(
        mean, error, freedom, level=level, method=method, n=int(n), n_clusters=n_clusters
    )
    return estimate, freedom


def macro_mean(
    estimates: Sequence[Estimate], weights: Sequence[float], level: float = CONFIDENCE_LEVEL
) -> Estimate | None:
    """Return the weighted mean of the figures of subsets that share no cluster.

    SE^2 = sum (w / W)^2 SE^2. The limits are put together from those of the subsets, so that
    they stay within what the figure can be and are honest at 0 and 1 (G. Zou, A. Donner,
    "Construction of confidence limits about effect measures", 2008: MOVER). Weights need not
    add up to 1. Standard error and interval are None where that of a subset with a weight is.
    None without subsets.
    """
    if len(weights) != len(estimates):
        raise UsageError(f"{len(estimates)} estimates have {len(weights)} weights")
    if not estimates:
        return None
    total = math.fsum(weights)
    if not (all(weight >= 0.0 for weight in weights) and 0.0 < total < math.inf):
        raise UsageError("weights must be at least 0, finite, and not all 0")
    parts = [(w / total, e) for w, e in zip(weights, estimates, strict=True) if w > 0.0]
    value = math.fsum(share * part.value for share, part in parts)
    errors = [w * e.standard_error for w, e in parts if e.standard_error is not None]
    limits = [(w, e.value, e.interval) for w, e in parts if e.interval is not None]
    if {i.level for _, _, i in limits} - {level}:
        raise UsageError(f"the intervals of the subsets must have level {level:g}")
    interval = None
    if len(limits) == len(parts):
        low = value - math.hypot(*(w * (x - i.low) for w, x, i in limits))
        high = value + math.hypot(*(w * (i.high - x) for w, x, i in limits))
        interval = Interval(low=low, high=high, level=level, method=MOVER)
    return Estimate(
        value=value,
        standard_error=math.hypot(*errors) if len(errors) == len(parts) else None,
        interval=interval,
        n=sum(part.n for _, part in parts),
        n_clusters=sum(part.n_clusters for _, part in parts),
    )


def student_estimate(
    value: float,
    error: float | None,
    degrees_of_freedom: float,
    *,
    level: float,
    method: str,
    n: int,
    n_clusters: int,
) -> Estimate:
    """Return an estimate with value -/+ the t quantile times its standard error, if it has one."""
    interval = None
    if error is not None:
        half = t_quantile((1.0 + checked_probability("level", level)) / 2.0, degrees_of_freedom)
        half *= error
        interval = Interval(low=value - half, high=value + half, level=level, method=method)
    return Estimate(
        value=value, standard_error=error, interval=interval, n=n, n_clusters=n_clusters
    )


def _rate(
    rate: float, effective: float, interval: Interval, *, n: int, n_clusters: int
) -> Estimate:
    if 0.0 < rate < 1.0:
        error = math.sqrt(rate * (1.0 - rate) / effective)
    else:
        z = normal_quantile((1.0 + interval.level) / 2.0)
        error = (interval.high - interval.low) / (2.0 * z)
    return Estimate(value=rate, standard_error=error, interval=interval, n=n, n_clusters=n_clusters)


def rate_interval(successes: float, n: float, level: float, *, suffix: str = "") -> Interval:
    """Return the interval of a rate of n > 0 independent pairs; neither number need be whole."""
    tail = (1.0 - checked_probability("level", level)) / 2.0
    failures = n - successes
    if min(successes, failures) < WILSON_FROM:
        a, b = successes + 0.5, failures + 0.5
        return Interval(
            low=beta_quantile(tail, a, b) if successes > 0.0 else 0.0,
            high=beta_quantile(1.0 - tail, a, b) if failures > 0.0 else 1.0,
            level=level,
            method=JEFFREYS + suffix,
        )
    rate = successes / n
    square = normal_quantile(tail) ** 2 / n
    centre = (rate + square / 2.0) / (1.0 + square)
    half = math.sqrt(square * (rate * (1.0 - rate) + square / 4.0)) / (1.0 + square)
    return Interval(low=centre - half, high=centre + half, level=level, method=WILSON + suffix)


def with_rate_limits(
    rates: pl.DataFrame, successes: pl.Expr, n: pl.Expr, level: float
) -> pl.DataFrame:
    """Add `accuracy_low` and `accuracy_high`, for a rate of independent pairs in each row."""
    counts = rates.select(successes.cast(pl.Float64).alias("k"), n.cast(pl.Float64).alias("n"))
    limits = [limit_columns("accuracy", rate_interval(k, of, level)) for k, of in counts.rows()]
    schema = {"accuracy_low": pl.Float64, "accuracy_high": pl.Float64}
    return rates.hstack(pl.DataFrame(limits, schema=schema))


def group_of_equal_mass(n_groups: int) -> pl.Expr:
    """Return which of `n_groups` groups of nearly equal size a sorted row with `n` pairs is in.

    A row is never divided: it belongs where its middle pair does.
    """
    n = pl.col("n")
    return ((n.cum_sum() - n / 2.0) * n_groups / n.sum()).floor()


def clusters_of(sums: Numbers, counts: Numbers) -> pl.DataFrame:
    """Return the clusters that have pairs, as columns `sum` and `n` of Float64."""
    if len(sums) != len(counts):
        raise UsageError(f"{len(sums):,} sums have {len(counts):,} counts")
    columns = {"sum": pl.Series(sums), "n": pl.Series(counts)}
    table = pl.DataFrame({name: each.cast(pl.Float64) for name, each in columns.items()})
    if table["sum"].null_count() or table["n"].null_count():
        raise UsageError("the sum or count of a cluster is null")
    if table.select((pl.col("n") < 0).any()).item():
        raise UsageError("the count of a cluster is negative")
    return table.filter(pl.col("n") > 0)


def _spread(table: pl.DataFrame, mean: float) -> tuple[float, pl.Series]:
    """Return the standard error of a ratio mean, and the squares that it is made from.

    A square is of what leaving out a cluster moves the mean by; there must be two or more.
    """
    # Residuals first: the difference of large sums of squares would lose the digits.
    residual = pl.col("sum") - mean * pl.col("n")
    moved = residual / (pl.col("n").sum() - pl.col("n"))
    squares = table.select((moved * moved).alias("square"))["square"]
    share = (table.height - 1) / table.height
    return math.sqrt(share * float(squares.sum())), squares


def _degrees_of_freedom(squares: pl.Series) -> float:
    """Return how well the spread of clusters is known: C - 1, or fewer if few of them make it.

    By the mean and the variance of a sum of squares (F. Satterthwaite, 1946), from the squares
    themselves; at least 1.
    """
    total, of_squares = float(squares.sum()), float((squares * squares).sum())
    most = squares.len() - 1.0
    return max(1.0, min(most, 2.0 * total**2 / of_squares)) if of_squares > 0.0 else most
