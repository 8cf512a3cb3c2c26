"""Whether groups of pairs differ: in their accuracy, and in what two models differ by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from dpo_pipeline.defaults import FEWEST_CLUSTERS
from dpo_pipeline.statistics.distributions import beta_tails, chi_square_upper
from dpo_pipeline.statistics.significance import independent_pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Heterogeneity:
    """The chi-square test that several groups of pairs have one and the same accuracy."""

    chi_square: float
    degrees_of_freedom: int  # groups less one
    p_value: float
    smallest_expected: float  # count of a cell; the approximation is rough where it is below 5


def heterogeneity(
    clusters: pl.DataFrame, by: Sequence[str], successes: str, count: str, *, is_independent: bool
) -> Heterogeneity | None:
    """Return K. Pearson's test of one rate in all groups, from one row a cluster and group.

    Where pairs of a cluster are not independent, the counts of a group are divided by its design
    effect, the variance of its rate over that of independent pairs (J. Rao, A. Scott, "A simple
    method for the analysis of clustered binary data", 1992). Clusters that span groups are taken
    as different ones. None for fewer than two groups, or if all pairs agree.
    """
    x, n, m = pl.col(successes).sum(), pl.col(count).sum(), pl.len()
    rate = x / n
    spread = (pl.col(successes) - rate * pl.col(count)).pow(2).sum() * m / (m - 1) / n
    groups = (
        clusters.filter(pl.col(count) > 0)
        .group_by(list(by), maintain_order=True)
        .agg(x=x.cast(pl.Float64), n=n.cast(pl.Float64), effect=spread / (rate * (1.0 - rate)))
    )
    effect = pl.col("effect")
    known = effect.is_finite() & (effect > 0.0)
    effect = pl.lit(1.0) if is_independent else pl.when(known).then(effect).otherwise(1.0)
    groups = groups.select(x=pl.col("x") / effect, n=pl.col("n") / effect)
    total = groups.select(pl.col("x", "n").sum()).row(0)
    if groups.height < 2 or not 0.0 < total[0] < total[1]:  # noqa: PLR2004  two groups
        return None
    p = total[0] / total[1]
    off = (pl.col("x") - pl.col("n") * p).pow(2) / (pl.col("n") * p * (1.0 - p))
    chi_square = float(groups.select(off.sum()).item())
    return Heterogeneity(
        chi_square=chi_square,
        degrees_of_freedom=groups.height - 1,
        p_value=chi_square_upper(chi_square, groups.height - 1),
        smallest_expected=float(groups.select(pl.col("n").min()).item()) * min(p, 1.0 - p),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferencesTest:
    """The test that two models differ by the same in several groups of pairs."""

    f: float
    degrees_of_freedom: int  # groups less one
    degrees_of_freedom_within: float
    p_value: float
    n_groups: int  # that were tested
    n_left_out: int  # groups with too few clusters to show a spread


def differences_test(
    groups: Iterable[tuple[pl.Series, pl.Series, pl.Series]], *, is_independent: bool
) -> DifferencesTest | None:
    """Return B. Welch's test of one difference of two rates in all groups of pairs.

    A group has the gains, losses and pairs of its clusters. It counts as many independent pairs as
    would give the standard error that its clusters show, and a gain and a loss more, so that none
    is without spread (B. Welch, "On the comparison of several mean values", 1951; D. Bonett, R.
    Price, 2012). Clusters that span groups are taken as different ones.

    Groups of fewer than `FEWEST_CLUSTERS` clusters are left out; None if fewer than two remain. In
    simulations a test at 5% rejects in at most 5% where there is nothing to find, and in fewer
    where few pairs of a group differ.
    """
    values, errors, freedoms, n_left_out = list[float](), list[float](), list[float](), 0
    for gains, losses, counts in groups:
        n_clusters = int((counts > 0).sum())
        if n_clusters < FEWEST_CLUSTERS:
            n_left_out += 1
            continue
        n, gained, lost = (float(each.sum()) for each in (counts, gains, losses))
        effective, freedom = n, None
        if not (is_independent or n == n_clusters):
            effective, freedom = independent_pairs(gains - losses, counts, gained + lost)
        up, down = ((each / n * effective + 1.0) / (effective + 2.0) for each in (gained, lost))
        values.append(up - down)
        errors.append((up + down - (up - down) ** 2) / (effective + 1.0))
        freedoms.append((effective - 1.0 if freedom is None else freedom) + 2.0)
    k = len(values)
    if k < 2:  # noqa: PLR2004  two groups
        return None
    weights = [1.0 / error for error in errors]
    total = math.fsum(weights)
    mean = math.fsum(w * value for w, value in zip(weights, values, strict=True)) / total
    off = math.fsum(w * (value - mean) ** 2 for w, value in zip(weights, values, strict=True))
    uncertain = math.fsum(
        (1.0 - w / total) ** 2 / freedom for w, freedom in zip(weights, freedoms, strict=True)
    )
    f = off / (k - 1) / (1.0 + 2.0 * (k - 2) / (k * k - 1.0) * uncertain)
    within = (k * k - 1.0) / (3.0 * uncertain)
    share = (k - 1) * f / ((k - 1) * f + within)
    return DifferencesTest(
        f=f,
        degrees_of_freedom=k - 1,
        degrees_of_freedom_within=within,
        p_value=beta_tails(share, (k - 1) / 2.0, within / 2.0)[1],
        n_groups=k,
        n_left_out=n_left_out,
    )
