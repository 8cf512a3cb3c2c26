"""Rates, means and macro means against hand calculation, scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from dpo_pipeline.defaults import WILSON_FROM
from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.intervals import (
    Estimate,
    Interval,
    macro_mean,
    mean_of_clusters,
    of_independent,
    rate_of,
    rate_of_clusters,
    rate_with_ties,
)
from oracle_tools import proportion_confint, sm, stats


def limits(estimate):
    return pytest.approx((estimate.interval.low, estimate.interval.high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "n"), [(100, 200), (400, 1000), (999_900, 10**6)])
def test_many_successes_and_failures_have_the_interval_of_wilson(successes, n, level):
    rate = rate_of(successes, n, level)
    assert rate.interval.method == "Wilson"
    assert rate.interval.level == level
    expected = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert limits(rate) == tuple(expected)


def test_wilson_by_hand():
    # z = 1.959964, z^2 = 3.841459, n = 400, p = 0.5: centre 0.5, half-width
    # z sqrt(0.25 / 400 + z^2 / 640,000) / (1 + z^2 / 400) = 0.0487655
    rate = rate_of(200, 400)
    assert (rate.interval.low, rate.interval.high) == pytest.approx(
        (0.4512345, 0.5487655), abs=1e-7
    )
    assert rate.standard_error == pytest.approx(0.025, rel=1e-15)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "n"), [(1, 2), (3, 7), (19, 20), (99, 1000), (5, 10**9)])
def test_few_successes_or_failures_have_the_interval_of_jeffreys(successes, n, level):
    rate = rate_of(successes, n, level)
    assert rate.interval.method == "Jeffreys"
    alpha = 1 - level
    expected = proportion_confint(successes, n, alpha=alpha, method="jeffreys")
    assert limits(rate) == expected


@pytest.mark.parametrize("n", [1, 5, 1000])
def test_none_and_all_have_an_interval_that_is_closed_by_the_end(n):
    none, every = rate_of(0, n), rate_of(n, n)
    bound = stats.beta.ppf(0.975, 0.5, n + 0.5)
    assert limits(none) == (0.0, bound)
    assert limits(every) == (1.0 - bound, 1.0)
    assert (none.interval.low, every.interval.high) == (0.0, 1.0)
    # Half a width over 1.96: never 0.
    assert none.standard_error == pytest.approx(bound / 2 / stats.norm.ppf(0.975), rel=1e-9)


def test_the_method_changes_where_the_default_says():
    n = 10 * WILSON_FROM
    assert rate_of(WILSON_FROM - 1, n).interval.method == "Jeffreys"
    assert rate_of(WILSON_FROM, n).interval.method == "Wilson"
    assert rate_of(n - WILSON_FROM + 1, n).interval.method == "Jeffreys"


def test_rates_of_successes_and_of_failures_mirror_each_other():
    for successes, n in ((3, 20), (400, 1000)):
        one, other = rate_of(successes, n), rate_of(n - successes, n)
        assert one.interval.low == pytest.approx(1 - other.interval.high, rel=1e-10)
        assert one.standard_error == pytest.approx(other.standard_error, rel=1e-12)


def test_no_pairs_have_no_estimate():
    assert rate_of(0, 0) is None
    assert rate_of_clusters([], []) is None
    assert rate_of_clusters([0], [0]) is None
    assert mean_of_clusters([], []) is None
    assert macro_mean([], []) is None


def test_what_a_rate_cannot_be():
    for successes, n in ((-1, 3), (4, 3)):
        with pytest.raises(UsageError, match="from 0 to n"):
            rate_of(successes, n)
    with pytest.raises(UsageError, match="level must be above 0 and below 1"):
        rate_of(1, 3, 1.0)
    with pytest.raises(UsageError, match="from 0 to its count"):
        rate_of_clusters([3], [2])
    for function in (rate_of_clusters, mean_of_clusters):
        with pytest.raises(UsageError, match="1 sums have 2 counts"):
            function([1], [1, 1])
        with pytest.raises(UsageError, match="null"):
            function(pl.Series([1, None]), pl.Series([1, 1]))
        with pytest.raises(UsageError, match="negative"):
            function([0, 1], [-1, 1])


@pytest.fixture(scope="module")
def rows():
    """Values with an effect of their cluster; clusters of 1 to 8 rows."""
    rng = np.random.default_rng(5)
    cluster = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    values = rng.normal(3.0, 1.0, 40)[cluster] + rng.normal(0.0, 0.5, len(cluster))
    return pl.DataFrame({"cluster": cluster, "value": values})


def by_cluster(rows):
    return rows.group_by("cluster").agg(pl.col("value").sum(), n=pl.len()).sort("cluster")


def without_each(rows):
    """Return what leaving out each cluster moves the mean of the rows by."""
    mean = rows["value"].mean()
    clusters = rows["cluster"].unique()
    return np.array([rows.filter(pl.col("cluster") != c)["value"].mean() - mean for c in clusters])


def satterthwaite(squares):
    return 2 * squares.sum() ** 2 / (squares**2).sum()


def test_mean_of_clusters_of_one_size_is_that_of_statsmodels():
    rng = np.random.default_rng(11)
    cluster = np.repeat(np.arange(25), 3)
    values = rng.normal(3.0, 1.0, 25)[cluster] + rng.normal(0.0, 0.5, 75)
    sums = by_cluster(pl.DataFrame({"cluster": cluster, "value": values}))
    mean = mean_of_clusters(sums["value"], sums["n"])
    # With its correction statsmodels multiplies by C / (C - 1) * (N - 1) / (N - 1).
    fitted = sm.OLS(values, np.ones(75)).fit(
        cov_type="cluster", cov_kwds={"groups": cluster}, use_t=True
    )
    assert mean.value == pytest.approx(fitted.params[0], rel=1e-12)
    assert mean.standard_error == pytest.approx(fitted.bse[0], rel=1e-12)
    assert limits(mean) == tuple(fitted.conf_int()[0])


def test_mean_of_unequal_clusters_has_the_spread_of_leaving_each_out(rows):
    sums = by_cluster(rows)
    mean = mean_of_clusters(sums["value"], sums["n"])
    squares = without_each(rows) ** 2
    error = math.sqrt(39 / 40 * squares.sum())
    assert mean.value == pytest.approx(rows["value"].mean(), rel=1e-12)
    assert mean.standard_error == pytest.approx(error, rel=1e-9)
    freedom = satterthwaite(squares)
    assert 15 < freedom < 35
    half = stats.t.ppf(0.975, freedom) * error
    assert limits(mean) == (mean.value - half, mean.value + half)
    assert (mean.n, mean.n_clusters) == (rows.height, 40)
    assert mean.interval.method == "Student t, clustered"


def test_a_mean_of_single_rows_has_the_usual_interval(rows):
    values = rows["value"].to_list()
    mean = mean_of_clusters(values, [1] * len(values))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    assert limits(mean) == tuple(expected)
    assert mean.standard_error == pytest.approx(stats.sem(values), rel=1e-12)
    assert mean.interval.method == "Student t"


def test_a_mean_by_hand():
    # Clusters of (2 rows, sum 2), (1 row, sum 4): mean 2, without the first 4, without the second
    # 1; SE^2 = 1/2 * (4 + 1); t of one degree, 12.7062.
    mean = mean_of_clusters([2, 4], [2, 1])
    assert (mean.value, mean.standard_error) == pytest.approx((2.0, math.sqrt(2.5)), rel=1e-14)
    assert mean.interval.high == pytest.approx(2 + 12.706204736174698 * math.sqrt(2.5), rel=1e-12)


def test_independent_pairs_are_not_called_clustered():
    mean = mean_of_clusters([2.0, 4.0], [2, 1])
    named = of_independent(mean)
    assert (mean.interval.method, named.interval.method) == ("Student t, clustered", "Student t")
    assert (named.value, named.interval.low) == (mean.value, mean.interval.low)
    single = mean_of_clusters([6.0], [3])
    assert of_independent(single) == single


def test_a_mean_far_from_zero_keeps_its_spread(rows):
    sums = by_cluster(rows)
    near = mean_of_clusters(sums["value"], sums["n"])
    far = mean_of_clusters(sums["value"] + 2.0**30 * sums["n"], sums["n"])
    # Values near 1e9 are rounded to 1e-7 themselves.
    assert far.standard_error == pytest.approx(near.standard_error, rel=1e-6)


def test_clusters_of_no_pairs_do_not_count(rows):
    sums = by_cluster(rows)
    some = mean_of_clusters(sums["value"], sums["n"])
    more = mean_of_clusters([*sums["value"], 0.0, 0.0], [*sums["n"], 0, 0])
    assert more == some


def test_one_cluster_has_no_spread():
    mean = mean_of_clusters([6.0], [3])
    assert mean == Estimate(value=2.0, standard_error=None, interval=None, n=3, n_clusters=1)


def test_sums_may_be_wide_integers():
    sums = pl.Series([2**80, 2**81], dtype=pl.Int128)
    assert mean_of_clusters(sums, [1, 2]).value == 2.0**80


def test_not_a_number_propagates():
    assert math.isnan(mean_of_clusters([1.0, math.nan], [1, 1]).standard_error)


def test_rate_of_single_pairs_is_that_of_independent_ones():
    assert rate_of_clusters([1, 0, 1, 1], [1, 1, 1, 1]) == rate_of(3, 4)


@pytest.fixture(scope="module")
def answers():
    """Right answers of 300 prompts of 1 to 5 pairs, that resemble each other."""
    rng = np.random.default_rng(6)
    counts = rng.integers(1, 6, 300)
    return rng.binomial(counts, rng.beta(1.2, 0.8, 300)), counts


def test_rate_of_clusters_has_the_standard_error_of_the_mean(answers):
    rate, mean = rate_of_clusters(*answers), mean_of_clusters(*answers)
    assert rate.value == pytest.approx(mean.value, rel=1e-14)
    assert rate.standard_error == pytest.approx(mean.standard_error, rel=1e-12)
    assert (rate.n, rate.n_clusters) == (mean.n, 300)


def test_rate_of_clusters_is_wilsons_for_the_effective_number_of_pairs(answers):
    rate = rate_of_clusters(*answers)
    assert rate.interval.method == "Wilson, clustered"
    right, of = answers
    moved = (right.sum() - right) / (of.sum() - of) - right.sum() / of.sum()
    pairs = rate.value * (1 - rate.value) / (299 / 300 * (moved**2).sum())
    freedom = satterthwaite(moved**2)
    assert 150 < freedom < 299
    pairs *= (stats.norm.ppf(0.975) / stats.t.ppf(0.975, freedom)) ** 2
    expected = proportion_confint(rate.value * pairs, pairs, method="wilson")
    assert pairs < answers[1].sum()
    assert limits(rate) == expected


def test_pairs_that_repel_each_other_count_once():
    # One right and one wrong in every cluster: no spread at all between clusters.
    rate = rate_of_clusters([1] * 300, [2] * 300)
    shrink = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 299)) ** 2
    expected = proportion_confint(300 * shrink, 600 * shrink, method="wilson")
    assert limits(rate) == expected
    assert rate.standard_error == pytest.approx(math.sqrt(0.25 / 600), rel=1e-14)


def test_a_spread_that_few_clusters_make_is_little_known():
    # 3 of 100 clusters of 10 hold 2 right answers each, so that the spread has some 6 degrees.
    right = np.array([2] * 3 + [0] * 97)
    rate = rate_of_clusters(right, [10] * 100)
    squares = (right - 0.06) ** 2
    pairs = 0.006 * 0.994 / (100 / 99 * squares.sum() / 1000**2)
    freedom = 2 * squares.sum() ** 2 / (squares**2).sum()
    assert freedom == pytest.approx(6.3, abs=0.3)
    pairs *= (stats.norm.ppf(0.975) / stats.t.ppf(0.975, freedom)) ** 2
    assert limits(rate) == proportion_confint(0.006 * pairs, pairs, method="jeffreys")


def test_a_spread_of_rounding_errors_is_none():
    # 1/49 of 49 is 1 but for the last bit, and 1/49 of 245 is 5: three clusters seem to differ.
    assert (1 - 1 / 49 * 49, 5 - 1 / 49 * 245) == (2.0**-53, 0.0)
    rate = rate_of_clusters([1] * 3 + [5] * 600, [49] * 3 + [245] * 600)
    shrink = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 602)) ** 2
    expected = proportion_confint(3003 * shrink, 147_147 * shrink, method="wilson")
    assert limits(rate) == expected


def test_pairs_that_repel_each_other_a_little_less_count_once_too():
    # The spread of 10 pairs where that of independent ones is of 150; 20 degrees of freedom.
    rate = rate_of_clusters([1] * 290 + [2] * 5 + [0] * 5, [2] * 300)
    shrink = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 20)) ** 2
    expected = proportion_confint(300 * shrink, 600 * shrink, method="wilson")
    assert limits(rate) == expected
    assert rate.standard_error == pytest.approx(math.sqrt(0.25 / 600), rel=1e-14)


def test_clusters_that_are_all_alike_count_as_one_pair_each():
    # 12 of 40 clusters of 4 all right: the spread is that of 39 pairs, and 39 < 160 / 4.
    rate = rate_of_clusters([4] * 12 + [0] * 28, [4] * 40)
    assert rate.interval.method == "Jeffreys, clustered"
    assert limits(rate) == proportion_confint(0.3 * 39, 39, method="jeffreys")


@pytest.mark.parametrize("successes", [0, 4])
def test_where_all_clusters_agree_each_counts_as_one_pair(successes):
    rate = rate_of_clusters([successes] * 30, [4] * 30)
    alone = rate_of(30 * successes // 4, 30)
    assert (rate.interval.low, rate.interval.high) == (alone.interval.low, alone.interval.high)
    assert rate.standard_error == alone.standard_error
    assert rate.n == 120


def test_one_cluster_counts_as_one_pair():
    rate = rate_of_clusters([3], [6])
    # Jeffreys for half a success in one pair is Beta(1, 1): the uniform distribution.
    assert limits(rate) == (0.025, 0.975)


def test_halves_stand_for_ties():
    assert rate_of_clusters([0.5, 1.0, 0.0], [1, 1, 1]).value == pytest.approx(0.5)


def test_macro_mean_by_hand():
    def part(value, error, low, high):
        interval = Interval(low=low, high=high, level=0.95, method="")
        return Estimate(value=value, standard_error=error, interval=interval, n=10, n_clusters=5)

    # Weights 3/4 and 1/4.
    mean = macro_mean([part(0.6, 0.04, 0.5, 0.7), part(1.0, 0.08, 0.6, 1.0)], [3, 1])
    assert mean.value == pytest.approx(0.7, rel=1e-15)
    assert mean.standard_error == pytest.approx(math.sqrt(0.03**2 + 0.02**2), rel=1e-14)
    # 0.7 - sqrt((0.75 * 0.1)^2 + (0.25 * 0.4)^2) = 0.7 - 0.125, and above only the first.
    assert limits(mean) == (0.575, 0.775)
    assert (mean.n, mean.n_clusters, mean.interval.method) == (20, 10, "MOVER")


def test_macro_mean_of_one_is_itself():
    rate = rate_of(30, 40)
    mean = macro_mean([rate, rate_of(1, 2)], [2.0, 0.0])
    assert (mean.value, mean.standard_error) == (rate.value, rate.standard_error)
    assert limits(mean) == (rate.interval.low, rate.interval.high)
    assert mean.n == 40


def test_macro_mean_without_a_spread_of_a_part_has_none():
    mean = macro_mean([rate_of(1, 2), mean_of_clusters([1.5], [2])], [1, 1])
    assert (mean.value, mean.standard_error, mean.interval) == (0.625, None, None)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, math.inf], [1, math.nan]])
def test_weights_that_make_no_mean(weights):
    with pytest.raises(UsageError, match="weights"):
        macro_mean([rate_of(1, 2), rate_of(1, 2)], weights)


def test_intervals_of_another_level_are_not_put_together():
    with pytest.raises(UsageError, match="must have level 0.95"):
        macro_mean([rate_of(1, 2, 0.9)], [1])


def test_ties_are_half_a_success_of_as_many_pairs_as_the_strict_rate_counts():
    # Beta quantiles for 62.5 of 100 independent pairs; then of prompts of three like pairs each.
    alone = rate_with_ties(62.5, 100)
    wanted = stats.beta(63.0, 38.0).ppf([0.025, 0.975])
    assert [alone.interval.low, alone.interval.high] == pytest.approx(wanted, abs=1e-9)
    strict = rate_of_clusters([3] * 18 + [0] * 12, [3] * 30)
    found = rate_with_ties(57.0, 90, like=strict)
    # Thirty prompts of which all or none are right have the spread of 29 independent pairs.
    wanted = stats.beta(29 * 57 / 90 + 0.5, 29 * 33 / 90 + 0.5).ppf([0.025, 0.975])
    assert [found.interval.low, found.interval.high] == pytest.approx(wanted, abs=1e-9)
    assert (found.n, found.n_clusters) == (90, 30)
    assert rate_with_ties(0.0, 0) is None
