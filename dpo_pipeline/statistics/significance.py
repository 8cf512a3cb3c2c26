"""Two models on the same pairs: tests of a difference, and how small a one could be found.

A pair is a gain if only the new model is right, a loss if only the old one is; pairs on which
both agree say nothing about which is better (Q. McNemar, 1947). McNemar's tests take pairs as
independent; where prompts repeat, the tests of clusters are the ones to use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from dpo_pipeline.defaults import (
    CONFIDENCE_LEVEL,
    FLIPS_TOLD_FROM,
    MOST_FLIPS,
    POWER,
)
from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.distributions import (
    binomial_lower,
    binomial_probability,
    checked_probability,
    normal_quantile,
    t_quantile,
    t_two_sided,
)
from dpo_pipeline.statistics.intervals import (
    CLUSTERED,
    Estimate,
    Interval,
    Numbers,
    clusters_of,
    mean_and_freedom,
)

_LEAST_P: Final = 1e-300


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted by Holm's method: the chance of any false alarm is kept.

    Holds whatever the tests have in common (S. Holm, "A simple sequentially rejective multiple
    test procedure", 1979).
    """
    order = _rising(p_values)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted by Benjamini and Hochberg: the share of false alarms is kept.

    Holds for tests that are independent or positively related (Y. Benjamini, Y. Hochberg,
    "Controlling the false discovery rate", 1995).
    """
    order = _rising(p_values)
    adjusted: list[float | None] = [None] * len(p_values)
    smallest = 1.0
    for rank, (p, place) in reversed(list(enumerate(order, start=1))):
        smallest = min(smallest, p * len(order) / rank)
        adjusted[place] = smallest
    return adjusted


def adjusted_for_many(p_values: Sequence[float | None]) -> dict[str, pl.Series]:
    """Return columns `p_holm` and `p_benjamini_hochberg` of Float64; null stays null."""
    return {
        "p_holm": pl.Series(holm(p_values), dtype=pl.Float64),
        "p_benjamini_hochberg": pl.Series(benjamini_hochberg(p_values), dtype=pl.Float64),
    }


def _rising(p_values: Sequence[float | None]) -> list[tuple[float, int]]:
    """Return the p-values that there are with their places, the smallest first."""
    for p in p_values:
        if p is not None and (math.isnan(p) or not 0.0 <= p <= 1.0):
            raise UsageError(f"a p-value must be from 0 to 1, found {p!r}")
    return sorted((p, place) for place, p in enumerate(p_values) if p is not None)


def independent_pairs(
    nets: pl.Series, counts: pl.Series, differing: float
) -> tuple[float, float | None]:
    """Return as how many independent pairs clusters count, and the degrees of freedom of that.

    Clusters that show no spread count as one pair each, without degrees of freedom.
    """
    n = float(counts.sum())
    found = mean_and_freedom(nets, counts, CONFIDENCE_LEVEL)
    error, freedom = (None, 0.0) if found is None else (found[0].standard_error, found[1])
    if not error:
        return float((counts > 0).sum()), None
    difference = float(nets.sum()) / n
    return min(n, (differing / n - difference * difference) / error**2), freedom


BONETT_PRICE: Final = "Bonett-Price"


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceTest:
    """A mean difference between two models and the chance of one as large where there is none."""

    difference: Estimate  # new minus old, in the unit of the values
    t: float | None  # difference over its standard error; None where that is 0 or unknown
    degrees_of_freedom: float  # of Student's t; 0 for a single cluster
    p_value: float | None  # two-sided; None where t is, but for a difference of 0 everywhere


def mcnemar_exact(gains: int, losses: int) -> float:
    """Return the two-sided p-value of the exact test: binomial, each way with chance 1/2.

    At most 5% of tests fall below 5% where there is no difference, and fewer for few pairs.
    1 without gains and losses.
    """
    fewer, total = _discordant(gains, losses)
    return min(1.0, 2.0 * binomial_lower(fewer, total, 0.5))


def mcnemar_mid_p(gains: int, losses: int) -> float:
    """Return the two-sided mid-p-value: the exact one less the chance of this very outcome.

    Nearer to 5% false alarms than the exact test, which it seldom exceeds (M. Fagerland,
    S. Lydersen, P. Laake, "The McNemar test for binary matched-pairs data", 2013).
    """
    fewer, total = _discordant(gains, losses)
    if 2 * fewer == total:
        return 1.0
    return 2.0 * binomial_lower(fewer, total, 0.5) - binomial_probability(fewer, total, 0.5)


def sign_flip_exact(sums: Numbers) -> float | None:
    """Return the two-sided p-value of McNemar's exact test for clusters.

    If the models do not differ, gains less losses of a cluster are as likely to have the other
    sign, all at once (R. Fisher, "The Design of Experiments", 1935, section 21). Never more
    false alarms than the level, where Student's t of few clusters that differ has too many.

    Returns:
        The chance of a total as far from 0 as that of these whole `sums`; `mcnemar_exact` where
        every cluster is one pair. None where they come to more than `MOST_FLIPS` without their
        signs: then `paired_difference` is right and this would be slow.
    """
    values = pl.Series(sums).to_list()
    if any(value is None or not float(value).is_integer() for value in values):
        raise UsageError("gains less losses of a cluster must be a whole number")
    steps = [abs(int(value)) for value in values if value]
    total = sum(steps)
    if total > MOST_FLIPS:
        return None
    # The chance of each sum of the clusters that come out above 0.
    chances = [1.0] + [0.0] * total
    for step in steps:
        moved = [0.0] * step + chances[: total + 1 - step]
        chances = [(stay + move) / 2.0 for stay, move in zip(chances, moved, strict=True)]
    observed = abs(sum(map(int, values)))
    far = (chance for up, chance in enumerate(chances) if abs(2 * up - total) >= observed)
    return min(1.0, math.fsum(far))


def paired_difference(
    sums: Numbers, counts: Numbers, level: float = CONFIDENCE_LEVEL
) -> DifferenceTest | None:
    """Return the mean difference over all pairs, tested by Student's t between clusters.

    `sums` are of what the new model has above the old, cluster by cluster. There is no p-value for
    a single cluster, and where every cluster has the same difference and it is not 0, so that t
    has nothing to measure it by. None without pairs.
    """
    found = mean_and_freedom(sums, counts, level)
    if found is None:
        return None
    mean, freedom = found
    t = p_value = None
    if mean.standard_error:
        t = mean.value / mean.standard_error
        p_value = t_two_sided(t, freedom)
    elif mean.standard_error == 0.0 and mean.value == 0.0:
        p_value = 1.0
    return DifferenceTest(difference=mean, t=t, degrees_of_freedom=freedom, p_value=p_value)


def rate_difference(
    gains: int, losses: int, n: int, level: float = CONFIDENCE_LEVEL
) -> Estimate | None:
    """Return the difference of two rates over the same independent pairs, with its interval.

    The interval is of Wald's form with a pair added to the gains and one to the losses, so that it
    is never of zero width (D. Bonett, R. Price, "Adjusted Wald confidence interval for a
    difference of binomial proportions based on paired data", 2012). The standard error is that
    of the adjusted counts. `n` counts the pairs on which both agree too. None for n = 0.
    """
    _, total = _discordant(gains, losses)
    if total > n:
        raise UsageError(f"gains and losses are {total:,} of n = {n:,} pairs")
    if n == 0:
        return None
    z = normal_quantile((1.0 + checked_probability("level", level)) / 2.0)
    return _adjusted(gains / n, losses / n, float(n), z, level=level, n=n, n_clusters=n)


def rate_difference_of_clusters(
    gains: Numbers, losses: Numbers, counts: Numbers, level: float = CONFIDENCE_LEVEL
) -> Estimate | None:
    """Return the difference of two rates over the same pairs, which come in clusters.

    The interval is that of `rate_difference` for as many independent pairs as would give the
    standard error that the clusters show, never more than there are, by Student's t. Where
    the clusters show no spread each counts as one pair, as does a single cluster.
    `rate_difference` where every cluster is one pair. None without pairs.
    """
    if len(gains) != len(losses):
        raise UsageError(f"{len(gains):,} gains have {len(losses):,} losses")
    up = clusters_of(gains, counts)
    table = up.with_columns(losses=clusters_of(losses, counts)["sum"])
    within = (pl.col("sum") >= 0) & (pl.col("losses") >= 0)
    fits = within & (pl.col("sum") + pl.col("losses") <= pl.col("n"))
    if not table.select(fits.all()).item():
        raise UsageError("the gains and losses of a cluster must be from 0 to its count")
    n_clusters = table.height
    if n_clusters == 0:
        return None
    n, gained, lost = (float(table[name].sum()) for name in ("n", "sum", "losses"))
    if n == n_clusters:
        return rate_difference(int(gained), int(lost), int(n), level)
    tail = (1.0 + checked_probability("level", level)) / 2.0
    nets = table["sum"] - table["losses"]
    effective, freedom = independent_pairs(nets, table["n"], gained + lost)
    quantile = normal_quantile(tail) if freedom is None else t_quantile(tail, freedom)
    return _adjusted(
        gained / n,
        lost / n,
        effective,
        quantile,
        level=level,
        n=int(n),
        n_clusters=n_clusters,
        suffix=CLUSTERED,
    )


def agreeing(estimate: Estimate, p_value: float | None, level: float) -> Estimate:
    """Return a difference whose interval holds 0 if and only if the test does not reject.

    An exact test and an interval of another procedure can disagree where the p-value is near
    1 - level. Then the limit next to 0 becomes that of the test: the value less z of the level
    times an error of value / z of the p-value (O. Miettinen, 1976).
    """
    interval = estimate.interval
    if p_value is None or interval is None or estimate.value == 0.0:
        return estimate
    rejects = p_value < 1.0 - level
    if rejects != (interval.low <= 0.0 <= interval.high):
        return estimate
    z = normal_quantile((1.0 + level) / 2.0)
    z_of_p = -normal_quantile(max(p_value, _LEAST_P) / 2.0)
    limit = estimate.value * (1.0 - z / z_of_p) if z_of_p > 0.0 else -math.inf * estimate.value
    # On the other side of 0 it goes no further than the interval does on this.
    if estimate.value > 0.0:
        moved = replace(interval, low=max(limit, -interval.high))
    else:
        moved = replace(interval, high=min(limit, -interval.low))
    return replace(estimate, interval=moved)


def smallest_effect(
    standard_error: float,
    degrees_of_freedom: float,
    power: float = POWER,
    level: float = 1.0 - CONFIDENCE_LEVEL,
) -> float:
    """Return the smallest true difference that Student's t finds with a chance of `power`.

    In units of the standard error it is the d with d = t + z * sqrt(1 + (t^2 + d^2) / (2 v)), with
    t of the test, z of the power and v degrees of freedom. The second term under the root is
    there because this error and that of the next dataset are both guesses; for many degrees of
    freedom d is t + z (arXiv 2411.00640, section 5). In simulations of two datasets, one to state
    the effect and one to find it, 80% is 78% to 80%, from 1 degree of freedom on.

    Args:
        standard_error: Of the difference; the effect has its unit.
        degrees_of_freedom: Of the standard error; infinite if it is known.
        power: Chance to find the effect.
        level: Of the test: the chance of a false alarm.

    Returns:
        The effect; infinite where the error is too uncertain to state any.
    """
    tail = 1.0 - checked_probability("level", level) / 2.0
    z = normal_quantile(checked_probability("power", power))
    if math.isinf(degrees_of_freedom):
        return (normal_quantile(tail) + z) * standard_error
    t = t_quantile(tail, degrees_of_freedom)
    # (1 - a) d^2 - 2 t d + (1 - a) t^2 - z^2 = 0
    rest = 1.0 - z * z / (2.0 * degrees_of_freedom)
    if rest <= 0.0:
        return math.inf
    root = math.sqrt(t * t - rest * (rest * t * t - z * z))
    return (t + math.copysign(root, z)) / rest * standard_error


def fewest_that_reject(level: float = 1.0 - CONFIDENCE_LEVEL) -> int:
    """Return how many pairs, or clusters, all of one sign, an exact test needs: p = 2 * 2^-n."""
    n = math.floor(1.0 - math.log2(checked_probability("level", level)))
    return n if 2.0 ** (1 - n) < level else n + 1


def smallest_effect_of_flips(
    sums: Numbers,
    *,
    n_clusters: int,
    n: int,
    power: float = POWER,
    level: float = 1.0 - CONFIDENCE_LEVEL,
) -> float | None:
    """Return the smallest true difference that `sign_flip_exact` finds with a chance of `power`.

    Of N pairs: (s + d * sqrt(sum S^2)) / N, where s is the usual size of a sum S that is not 0: the
    test moves by whole steps. d is that of `smallest_effect`: z + z for independent pairs (each
    cluster is one), and for clusters with the degrees of freedom of F. Satterthwaite. It is never
    less than what makes `fewest_that_reject` clusters differ, all in one direction. In
    simulations what is stated for 80% is found in 79% to 97%.

    Args:
        sums: Gains less losses of each cluster, whole numbers; those of 0 can be left out.
        n_clusters: Clusters; `n` if every pair is one.
        n: Pairs.
        power: Chance to find the effect.
        level: Of the test: the chance of a false alarm.

    Returns:
        The effect, in units of the sums a pair. None for fewer clusters than `fewest_that_reject`;
        for repeated prompts also below `FLIPS_TOLD_FROM` clusters, where it depends on how alike
        the pairs of a prompt are; and where no difference would be found so often.
    """
    fewest, is_clustered = fewest_that_reject(level), n > n_clusters
    if n_clusters < (max(FLIPS_TOLD_FROM, fewest) if is_clustered else fewest):
        return None
    squares = [float(value) ** 2 for value in pl.Series(sums).to_list() if value]
    total, step, freedom = math.fsum(squares), n / n_clusters, math.inf
    if squares:
        step = math.sqrt(total / len(squares))
        if is_clustered:
            freedom = 2.0 * total**2 / math.fsum(square**2 for square in squares)
    effect = step + smallest_effect(math.sqrt(total), freedom, power, level)
    # The upper limit of Wilson's interval of a share of fewest - 1/2, one-sided, at this power.
    square, few = normal_quantile(power) ** 2 / n_clusters, (fewest - 0.5) / n_clusters
    share = few + square / 2.0 + math.sqrt(square * (few * (1.0 - few) + square / 4.0))
    effect = max(effect, step * n_clusters * share / (1.0 + square))
    return effect / n if effect <= n else None


def _discordant(gains: int, losses: int) -> tuple[int, int]:
    if gains < 0 or losses < 0:
        raise UsageError(f"gains and losses must be at least 0, found {gains!r} and {losses!r}")
    return min(gains, losses), gains + losses


def _adjusted(
    gained: float,
    lost: float,
    effective: float,
    quantile: float,
    *,
    level: float,
    n: int,
    n_clusters: int,
    suffix: str = "",
) -> Estimate:
    up = (gained * effective + 1.0) / (effective + 2.0)
    down = (lost * effective + 1.0) / (effective + 2.0)
    centre = up - down
    error = math.sqrt((up + down - centre * centre) / (effective + 2.0))
    return Estimate(
        value=gained - lost,
        standard_error=error,
        interval=Interval(
            low=max(-1.0, centre - quantile * error),
            high=min(1.0, centre + quantile * error),
            level=level,
            method=BONETT_PRICE + suffix,
        ),
        n=n,
        n_clusters=n_clusters,
    )
