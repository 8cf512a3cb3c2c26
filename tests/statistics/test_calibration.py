"""Calibration and label noise against rows: numpy and scipy on each pair, by itself."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from dpo_pipeline.errors import UsageError
from dpo_pipeline.exact import bin_of, middle, value_at, value_error
from dpo_pipeline.statistics.calibration import (
    best_beta,
    best_scale,
    calibration_error,
    label_noise,
    log_loss,
    margins_of,
    reliability,
)
from oracle_tools import expit, optimize, proportion_confint, stats


def histogram_of(margins):
    rows = pl.DataFrame({"margin": margins}, schema={"margin": pl.Float64})
    return rows.group_by(bin=bin_of(pl.col("margin"))).agg(n_pairs=pl.len())


@pytest.fixture(scope="module")
def margins():
    return np.random.default_rng(15).normal(0.8, 2.0, 30_000)


@pytest.fixture(scope="module")
def binned(margins):
    """The same, each moved to the middle of its bin, so that binning costs nothing."""
    return pl.select(value_at(bin_of(pl.lit(pl.Series(margins))))).to_series().to_numpy()


def test_margins_are_the_middles_of_bins():
    histogram = pl.DataFrame({"bin": [3, -700, 0, 3, None, 9], "n_pairs": [1, 2, 3, 4, 5, 0]})
    found = margins_of(histogram)
    assert found["n"].to_list() == [2.0, 3.0, 5.0]
    assert found["margin"].to_list() == pytest.approx(
        [middle(-700), 0.0, middle(3)], rel=1e-14, abs=0.0
    )


def softplus(x):
    return np.logaddexp(0.0, x)


def test_log_loss(margins, binned):
    histogram = histogram_of(margins)
    assert log_loss(histogram) == pytest.approx(softplus(-binned).mean(), rel=1e-12)
    # Against the rows: within the error stated, by far.
    bound = np.mean([value_error(m) for m in margins])
    assert abs(log_loss(histogram) - softplus(-margins).mean()) < bound / 20


def test_what_a_bin_costs_is_what_the_module_says():
    x = np.linspace(-60, 60, 240_001)
    errors = np.array([value_error(m) for m in x])
    confidence = expit(np.abs(x)) * (1 - expit(np.abs(x)))
    assert (confidence * errors).max() < 6e-4
    assert (2 * expit(-x) * confidence * errors).max() < 1e-3
    assert (errors <= 2.501e-5 + 0.00251 * np.abs(x)).all()


def folded_by_hand(margins, n_bins):
    """Return size, confidence and accuracy of groups of equal size of the rows themselves."""
    order = np.argsort(np.abs(margins), kind="stable")
    right = (margins > 0) + 0.5 * (margins == 0)
    return [
        (len(part), expit(np.abs(margins[part])).mean(), right[part].mean())
        for part in np.array_split(order, n_bins)
    ]


def error_by_hand(margins, n_bins):
    parts = folded_by_hand(margins, n_bins)
    return sum(n * abs(accuracy - confidence) for n, confidence, accuracy in parts) / len(margins)


def measured(histogram, n_bins=15):
    table = histogram.with_columns(group=0)
    return calibration_error(table, group="group", n_bins=n_bins).measured


@pytest.mark.parametrize("n_bins", [1, 5, 15, 40])
def test_calibration_error_is_that_of_the_rows(margins, n_bins):
    histogram = histogram_of(margins)
    found = measured(histogram, n_bins)
    # A bin holds some 60 of 30,000 pairs at most, and both its edges may cut one.
    assert found == pytest.approx(error_by_hand(margins, n_bins), abs=6e-4 + n_bins * 60 / 30_000)
    table = reliability(histogram, n_bins)
    assert table["n_pairs"].sum() == 30_000
    assert table.height == n_bins
    for row, (n, confidence, accuracy) in zip(
        table.iter_rows(named=True), folded_by_hand(margins, n_bins), strict=True
    ):
        assert row["n_pairs"] == pytest.approx(n, abs=100)
        assert row["confidence"] == pytest.approx(confidence, abs=3e-3)
        assert row["accuracy"] == pytest.approx(accuracy, abs=0.03)


def test_calibration_error_by_hand():
    # Two confident pairs, both right; two of 1/2, one right; and a tie: in groups of their own.
    high, low = 1000, 100
    histogram = pl.DataFrame({"bin": [high, low, -low, 0], "n_pairs": [2, 2, 2, 1]})
    table = reliability(histogram, 7)
    sure, unsure = expit(middle(high)), expit(middle(low))
    assert table["confidence"].to_list() == pytest.approx([0.5, unsure, sure], rel=1e-13)
    assert table["accuracy"].to_list() == [0.5, 0.5, 1.0]
    assert table["n_pairs"].to_list() == [1, 4, 2]
    expected = (4 * (unsure - 0.5) + 2 * (1 - sure)) / 7
    assert measured(histogram, 7) == pytest.approx(expected, rel=1e-12)
    low_end, high_end = proportion_confint(2, 4, method="jeffreys")
    assert table["accuracy_low"][1] == pytest.approx(low_end, rel=1e-9)
    assert table["accuracy_high"][1] == pytest.approx(high_end, rel=1e-9)


def by_group(margins, groups, *, is_right=None):
    """Return binned margins of groups of clusters; a wrong pair has a margin below 0."""
    signed = margins if is_right is None else np.where(is_right, margins, -margins)
    rows = pl.DataFrame({"group": groups, "margin": signed})
    return rows.group_by("group", bin=bin_of(pl.col("margin"))).agg(n_pairs=pl.len())


def test_calibration_error_less_chance_against_scipy():
    """Two groups of equal mass, 20 groups of clusters: all of it by numpy and scipy."""
    rng = np.random.default_rng(21)
    groups = np.repeat(np.arange(20), 25)
    bins = np.where(rng.random(500) < 0.5, 900, 300) + np.arange(500) % 3
    confidence = expit([middle(int(b)) for b in bins])
    is_right = rng.random(500) < confidence - 0.08
    table = pl.DataFrame({"group": groups, "bin": np.where(is_right, bins, -bins)})
    table = table.group_by("group", "bin").agg(n_pairs=pl.len())
    found = calibration_error(table, group="group", n_bins=2)
    values, counts = np.unique(bins, return_counts=True)
    # A bin belongs where its middle pair does.
    place = np.isin(bins, values[counts.cumsum() - counts / 2 >= 250])
    off, error, weight, moved = [], [], [], np.zeros(20)
    for part in (place, ~place):
        gap = is_right[part] - confidence[part]
        mean, n = gap.mean(), part.sum()
        by_cluster = np.array([(gap - mean)[groups[part] == g].sum() for g in range(20)])
        binomial = math.sqrt((confidence * (1 - confidence))[part].sum()) / n
        off.append(abs(mean))
        error.append(max(binomial, math.sqrt(20 / 19 * (by_cluster**2).sum()) / n))
        weight.append(n / 500)
        moved += np.sign(mean) * by_cluster
    off, error, weight = map(np.array, (off, error, weight))

    def added(m):
        return weight @ (stats.foldnorm.mean(m / error, scale=error) - m)

    assert found.measured == pytest.approx(weight @ off, rel=1e-9)
    assert found.by_chance == pytest.approx(added(0 * off), rel=1e-9)
    value = optimize.brentq(lambda e: e + added(e + 0 * off) - weight @ off, 0, 1, xtol=1e-14)
    assert found.estimate.value == pytest.approx(value, rel=1e-8)
    half = stats.t.ppf(0.975, 19) * math.sqrt(20 / 19 * (moved**2).sum()) / 500
    low = weight @ off - added(np.maximum(0, off - error)) - half
    high = weight @ off - added(off + error / 2) + half
    assert limits_of(found) == pytest.approx((max(0, min(value, low)), high), rel=1e-8)
    assert found.estimate.interval.method == "jackknife, debiased"


def limits_of(found):
    return found.estimate.interval.low, found.estimate.interval.high


@pytest.mark.slow  # a simulation; the figure itself is compared with scipy
def test_calibration_error_of_calibrated_margins_holds_0():
    """What is measured excludes it: 100 samples, of which 5 may fail by chance, 12 hardly."""
    rng = np.random.default_rng(22)
    excluded = zero = 0
    for _ in range(100):
        size = np.abs(rng.normal(0, 2, 500))
        is_right = rng.random(500) < expit(size)
        table = by_group(size, np.arange(500) % 64, is_right=is_right)
        found = calibration_error(table, group="group")
        excluded += found.estimate.interval.low > 0.0
        zero += found.estimate.value < 0.01
        assert found.measured > 0.015
        assert found.by_chance == pytest.approx(0.052, abs=0.01)
    assert excluded <= 12
    assert zero >= 35


def test_calibration_error_of_few_groups_has_no_interval():
    found = calibration_error(by_group(np.array([1.0, 2.0, -1.0]), [0, 1, 2]), group="group")
    assert found.estimate.interval is found.estimate.standard_error is None
    assert found.estimate.n_clusters == 3


def test_a_bin_belongs_where_its_middle_pair_does():
    # Of 10 pairs in two groups the bin of 5 lies from the 4th to the 8th: its middle is above 5.
    histogram = pl.DataFrame({"bin": [100, 200, 300], "n_pairs": [3, 5, 2]})
    assert reliability(histogram, 2)["n_pairs"].to_list() == [3, 7]


def test_perfectly_calibrated_margins_have_a_small_error():
    rng = np.random.default_rng(16)
    size = np.abs(rng.normal(0, 1.5, 200_000))
    margins = np.where(rng.random(200_000) < expit(size), size, -size)
    assert measured(histogram_of(margins)) < 0.006
    assert measured(histogram_of(3 * margins)) > 0.1


def test_best_scale_is_the_smallest_loss_of_the_rows(margins, binned):
    found = best_scale(histogram_of(margins))
    expected = optimize.minimize_scalar(
        lambda s: softplus(-s * binned).mean(), bracket=(0.1, 1.0), tol=1e-12
    )
    # A minimum is found by its values to the root of their precision only.
    assert found.value == pytest.approx(expected.x, rel=1e-6)
    assert found.log_loss == pytest.approx(expected.fun, rel=1e-12)
    slope = optimize.brentq(lambda s: (binned * expit(-s * binned)).mean(), 0.1, 1.0, xtol=1e-15)
    assert found.value == pytest.approx(slope, rel=1e-10)
    exact = optimize.brentq(lambda s: (margins * expit(-s * margins)).mean(), 0.1, 1.0)
    assert found.value == pytest.approx(exact, rel=1e-4)
    assert best_beta(histogram_of(margins), 0.1).value == pytest.approx(0.1 * slope, rel=1e-10)


@pytest.mark.parametrize("factor", [1e-4, 1e-2, 50.0, 1e4])
def test_best_scale_over_all_sizes(binned, factor):
    histogram = histogram_of(factor * binned)
    moved = np.repeat(margins_of(histogram)["margin"], margins_of(histogram)["n"].cast(int))
    found = best_scale(histogram)
    zero = lambda s: (moved * expit(-s * moved)).mean()  # noqa: E731
    expected = optimize.brentq(zero, 0.01 / factor, 10 / factor, xtol=1e-300, rtol=1e-14)
    assert found.value == pytest.approx(expected, rel=1e-9)


def test_margins_that_point_the_wrong_way(margins):
    right, wrong = histogram_of(margins), histogram_of(-margins)
    assert best_scale(wrong).value == pytest.approx(-best_scale(right).value, rel=1e-12)
    found = best_beta(wrong, 0.1)
    assert found.value is None
    assert "as beta nears 0" in found.reason


def test_balanced_margins_have_a_scale_of_0():
    found = best_scale(pl.DataFrame({"bin": [-50, 50], "n_pairs": [3, 3]}))
    assert (found.value, found.log_loss) == (0.0, math.log(2.0))


@pytest.mark.parametrize(
    ("bins", "reason"),
    [
        pytest.param([], "there are no pairs", id="none"),
        pytest.param([0], "all margins are 0", id="ties"),
        pytest.param([0, 5, 9], "no margin is below 0", id="all above"),
        pytest.param([-5, 0], "no margin is above 0", id="all below"),
    ],
)
def test_why_there_is_no_best_scale(bins, reason):
    schema = {"bin": pl.Int32, "n_pairs": pl.Int64}
    histogram = pl.DataFrame({"bin": bins, "n_pairs": [2] * len(bins)}, schema=schema)
    for found in (best_scale(histogram), best_beta(histogram, 0.5)):
        assert (found.value, found.log_loss) == (None, None)
        assert reason in found.reason


def test_one_wrong_pair_of_very_many_has_a_scale():
    found = best_scale(pl.DataFrame({"bin": [-1, 1], "n_pairs": [1, 10**9]}))
    # sigmoid(s m) is then the share that is right.
    assert found.value * middle(1) == pytest.approx(math.log(1e9), rel=1e-9)


def test_no_pairs_have_no_calibration():
    nothing = histogram_of([])
    assert log_loss(nothing) is None
    assert calibration_error(nothing.with_columns(group=0), group="group") is None
    assert label_noise(nothing) is None
    assert reliability(nothing).height == 0
    assert reliability(nothing).columns == reliability(histogram_of([1.0])).columns


def test_arguments_that_say_nothing(binned):
    for function in (reliability, measured):
        with pytest.raises(UsageError, match="n_bins"):
            function(histogram_of(binned), 0)
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="beta"):
            best_beta(histogram_of(binned), beta)


def likelihood(rate, margins):
    return np.log((1 - rate) * expit(margins) + rate * expit(-margins)).sum()


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3, 0.45])
def test_label_noise_is_the_largest_likelihood(noise):
    rng = np.random.default_rng(17)
    size = rng.normal(0, 3, 20_000)
    margins = np.where(rng.random(20_000) < expit(size), size, -size)
    margins = np.where(rng.random(20_000) < noise, -margins, margins)
    histogram = histogram_of(margins)
    moved = np.repeat(margins_of(histogram)["margin"], margins_of(histogram)["n"].cast(int))
    found = label_noise(histogram)
    best = optimize.minimize_scalar(
        lambda e: -likelihood(e, moved), bounds=(0, 0.5), method="bounded", options={"xatol": 1e-9}
    )
    assert found.flip_rate == pytest.approx(best.x, abs=1e-7)
    ratio = 2 * (likelihood(found.flip_rate, moved) - likelihood(0.0, moved))
    assert found.likelihood_ratio == pytest.approx(ratio, rel=1e-9)
    assert found.p_value == pytest.approx(stats.chi2.sf(ratio, 1) / 2, rel=1e-6, abs=1e-300)
    assert found.flip_rate == pytest.approx(noise, abs=0.02)
    assert found.n == 20_000


def test_label_noise_of_the_slope_is_zero(margins):
    histogram = histogram_of(margins)
    m = margins_of(histogram)
    middles, n = m["margin"].to_numpy(), m["n"].to_numpy()
    right, wrong = expit(middles), expit(-middles)

    def slope(rate):
        return (n * (wrong - right) / ((1 - rate) * right + rate * wrong)).sum()

    expected = optimize.brentq(slope, 0.0, 0.5, xtol=1e-15)
    assert label_noise(histogram).flip_rate == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("bins", "counts", "rate"),
    [
        pytest.param([500], [7], 0.0, id="all as the margins say"),
        pytest.param([-500], [7], 0.5, id="none as the margins say"),
        pytest.param([0], [7], 0.0, id="margins that say nothing"),
    ],
)
def test_label_noise_at_its_ends(bins, counts, rate):
    found = label_noise(pl.DataFrame({"bin": bins, "n_pairs": counts}))
    assert found.flip_rate == rate
    if rate == 0.0:
        assert (found.likelihood_ratio, found.p_value) == (0.0, 1.0)
    else:
        # At 1/2 each label is a toss.
        expected = 2 * 7 * (math.log(0.5) - math.log(expit(middle(-500))))
        assert found.likelihood_ratio == pytest.approx(expected, rel=1e-12)


def test_label_noise_of_huge_margins_by_hand():
    # Margins of +/-1e6 nats: e is the share of the wrong ones, and the likelihood ratio
    # 2 (3 (1e6 + log e) + 7 log(1 - e)).
    bins = [-7000, 7000]
    assert abs(middle(bins[0])) > 1e6
    found = label_noise(pl.DataFrame({"bin": bins, "n_pairs": [3, 7]}))
    assert found.flip_rate == pytest.approx(0.3, rel=1e-9)
    expected = 2 * (3 * (middle(7000) + math.log(0.3)) + 7 * math.log(0.7))
    assert found.likelihood_ratio == pytest.approx(expected, rel=1e-12)
    assert found.p_value == 0.0
