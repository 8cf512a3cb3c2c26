"""Tests of two models on the same pairs, and p-values of many, against scipy and statsmodels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dpo_pipeline.defaults import MOST_FLIPS
from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.significance import (
    agreeing,
    benjamini_hochberg,
    fewest_that_reject,
    holm,
    mcnemar_exact,
    mcnemar_mid_p,
    paired_difference,
    rate_difference,
    rate_difference_of_clusters,
    sign_flip_exact,
    smallest_effect,
    smallest_effect_of_flips,
)
from oracle_tools import mcnemar, multipletests, stats

COUNTS = [(0, 1), (1, 5), (6, 6), (30, 23), (7, 0), (1012, 1100), (0, 80)]


@pytest.mark.parametrize(("gains", "losses"), COUNTS)
def test_exact(gains, losses):
    expected = mcnemar([[0, gains], [losses, 0]], exact=True).pvalue
    assert mcnemar_exact(gains, losses) == pytest.approx(expected, rel=1e-10)
    assert mcnemar_exact(losses, gains) == mcnemar_exact(gains, losses)


@pytest.mark.parametrize(("gains", "losses"), COUNTS)
def test_mid_p(gains, losses):
    total, fewer = gains + losses, min(gains, losses)
    binomial = stats.binom(total, 0.5)
    expected = 2 * binomial.cdf(fewer) - binomial.pmf(fewer)
    assert mcnemar_mid_p(gains, losses) == pytest.approx(expected, rel=1e-10)


def test_known_values():
    # reward-bench issue 269, and by hand: 2 (1 + 6) / 2^6 and the same less 6 / 2^6.
    assert mcnemar_exact(30, 23) == pytest.approx(0.4101, abs=5e-5)
    assert mcnemar_exact(1, 5) == pytest.approx(14 / 64, rel=1e-14)
    assert mcnemar_mid_p(1, 5) == pytest.approx(8 / 64, rel=1e-13)
    assert mcnemar_exact(0, 0) == mcnemar_mid_p(0, 0) == 1.0
    assert mcnemar_exact(6, 6) == mcnemar_mid_p(6, 6) == 1.0


def test_a_thousand_million_pairs():
    gains, losses = 500_040_000, 499_960_000
    # Here the normal distribution, with half a pair of continuity, is right to 1e-9.
    z = (gains - losses - 1) / math.sqrt(gains + losses)
    assert mcnemar_exact(gains, losses) == pytest.approx(2 * stats.norm.sf(z), rel=1e-7)
    z = (gains - losses) / math.sqrt(gains + losses)
    assert mcnemar_mid_p(gains, losses) == pytest.approx(2 * stats.norm.sf(z), rel=1e-7)


@pytest.mark.parametrize(
    "sums",
    [
        pytest.param([2, 1, 1, -1, 3, 2, 0], id="mostly gains"),
        pytest.param([-4, 1, 1, 1, 2], id="both"),
        pytest.param([5], id="one cluster"),
    ],
)
def test_sign_flips_are_all_ways_that_signs_could_fall(sums):
    ways = [
        sum(sign * value for sign, value in zip(signs, sums, strict=True))
        for signs in itertools.product([-1, 1], repeat=len(sums))
    ]
    expected = sum(abs(way) >= abs(sum(sums)) for way in ways) / len(ways)
    assert sign_flip_exact(sums) == pytest.approx(expected, rel=1e-14)


def test_sign_flips_of_single_pairs_are_mcnemars_test():
    for gains, losses in COUNTS[:5]:
        sums = [1] * gains + [-1] * losses + [0] * 9
        assert sign_flip_exact(sums) == pytest.approx(mcnemar_exact(gains, losses), rel=1e-12)


def test_sign_flips_without_differences_and_with_too_many():
    assert sign_flip_exact([]) == sign_flip_exact([0, 0]) == 1.0
    assert sign_flip_exact([1] * MOST_FLIPS) == pytest.approx(2.0 ** (1 - MOST_FLIPS), rel=1e-12)
    assert sign_flip_exact([2] * (MOST_FLIPS // 2) + [-1]) is None
    for sums in ([0.5], [None, 1]):
        with pytest.raises(UsageError, match="whole number"):
            sign_flip_exact(sums)


def test_negative_counts_are_refused():
    for call in (mcnemar_exact, mcnemar_mid_p, lambda b, c: rate_difference(b, c, 5)):
        with pytest.raises(UsageError, match="at least 0"):
            call(-1, 3)


def test_difference_of_single_pairs_is_the_t_test():
    differences = np.random.default_rng(7).normal(0.3, 1.0, 25)
    test = paired_difference(differences, [1] * 25)
    expected = stats.ttest_1samp(differences, 0.0)
    assert test.t == pytest.approx(expected.statistic, rel=1e-12)
    assert test.p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert test.degrees_of_freedom == 24
    assert test.difference.value == pytest.approx(differences.mean(), rel=1e-13)


def test_difference_of_clusters_by_hand():
    # Mean 1, residuals 2 - 2, 5 - 2, -1 - 2; SE^2 = 3/2 * 18 / 36, t = 2/sqrt(3);
    # with two degrees p = 1 - t / sqrt(2 + t^2).
    test = paired_difference([2, 5, -1], [2, 2, 2])
    t = 2 / math.sqrt(3)
    assert test.t == pytest.approx(t, rel=1e-14)
    assert test.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-12)


@pytest.mark.parametrize(
    ("sums", "p_value"),
    [
        pytest.param([0, 0, 0], 1.0, id="no difference anywhere"),
        pytest.param([1, 1, 1], None, id="the same difference everywhere"),
        pytest.param([3], None, id="one cluster"),
    ],
)
def test_where_t_has_no_measure(sums, p_value):
    test = paired_difference(sums, [2] * len(sums))
    assert (test.t, test.p_value) == (None, p_value)


def test_no_pairs_have_no_difference():
    assert paired_difference([], []) is None
    assert rate_difference(0, 0, 0) is None
    assert rate_difference_of_clusters([], [], []) is None


def test_rate_difference_by_hand():
    # Of 100 pairs 14 gained and 6 lost: adjusted 15/102 and 7/102, centre 8/102.
    difference = rate_difference(14, 6, 100)
    error = math.sqrt((22 / 102 - (8 / 102) ** 2) / 102)
    assert difference.value == pytest.approx(0.08, rel=1e-14)
    assert difference.standard_error == pytest.approx(error, rel=1e-13)
    assert difference.interval.low == pytest.approx(8 / 102 - 1.959963984540054 * error, rel=1e-9)
    assert difference.interval.high == pytest.approx(8 / 102 + 1.959963984540054 * error, rel=1e-9)
    assert difference.interval.method == "Bonett-Price"


def test_rate_difference_is_never_of_zero_width_nor_out_of_range():
    same, all_gained = rate_difference(0, 0, 10), rate_difference(3, 0, 3)
    assert same.interval.low == pytest.approx(-same.interval.high) != 0.0
    assert all_gained.interval.high == 1.0
    assert all_gained.interval.low < 0.7


def test_rate_difference_refuses_more_discordant_pairs_than_there_are():
    with pytest.raises(UsageError, match="5 of n = 4"):
        rate_difference(3, 2, 4)
    with pytest.raises(UsageError, match="from 0 to its count"):
        rate_difference_of_clusters([3], [2], [4])
    with pytest.raises(UsageError, match="1 gains have 2 losses"):
        rate_difference_of_clusters([3], [2, 2], [4])


def test_rate_difference_of_single_pairs_is_that_of_independent_ones():
    clusters = rate_difference_of_clusters([1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1])
    assert clusters == rate_difference(2, 1, 4)


def test_rate_difference_of_many_clusters_is_the_t_interval():
    rng = np.random.default_rng(8)
    up, down = rng.binomial(4, rng.beta(1, 3, 20_000)), np.zeros(20_000, int)
    difference = rate_difference_of_clusters(up, down, [4] * 20_000)
    test = paired_difference(up - down, [4] * 20_000)
    assert difference.standard_error == pytest.approx(test.difference.standard_error, rel=1e-3)
    for side in ("low", "high"):
        expected = getattr(test.difference.interval, side)
        assert getattr(difference.interval, side) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("gains", "losses"), [(0, 0), (2, 0)])
def test_where_all_clusters_agree_each_counts_as_one_pair(gains, losses):
    clusters = rate_difference_of_clusters([gains] * 12, [losses] * 12, [2] * 12)
    alone = rate_difference(gains * 6, losses * 6, 12)
    assert clusters.interval.low == pytest.approx(alone.interval.low, rel=1e-14)
    assert clusters.standard_error == pytest.approx(alone.standard_error, rel=1e-14)
    assert (clusters.n, clusters.n_clusters) == (24, 12)


def test_smallest_effect_of_a_known_error():
    # 1.959964 + 0.841621
    assert smallest_effect(0.02, math.inf) == pytest.approx(0.02 * 2.801585218, rel=1e-9)
    found = smallest_effect(1.0, math.inf, power=0.9, level=0.1)
    assert found == pytest.approx(1.6448536 + 1.2815516)
    with pytest.raises(UsageError, match="power"):
        smallest_effect(1.0, 5, power=1.0)
    # z = 2.33 of one degree: no difference would be found so often.
    assert smallest_effect(1.0, 1, power=0.99) == math.inf


@pytest.mark.repeats(2)  # one formula, of many and of few pairs
@pytest.mark.parametrize("freedom", [1, 2, 4.5, 30])
def test_smallest_effect_is_found_as_often_as_it_says(freedom):
    """One dataset states the effect, another one has it: 400,000 of each, to 0.1%."""
    rng = np.random.default_rng(9)
    of_first, of_second = np.sqrt(rng.chisquare(freedom, (2, 400_000)) / freedom)
    stated = smallest_effect(1.0, freedom) * of_first
    t = rng.normal(stated, 1.0) / of_second
    found = (np.abs(t) > stats.t.ppf(0.975, freedom)).mean()
    assert 0.77 < found < 0.805


def test_fewest_that_reject():
    for level in (0.2, 0.05, 0.01, 0.3):
        n = fewest_that_reject(level)
        assert mcnemar_exact(n, 0) < level <= mcnemar_exact(n - 1, 0)


def test_too_few_clusters_state_no_effect():
    five = smallest_effect_of_flips([1] * 5, n_clusters=5, n=5)
    assert five is smallest_effect_of_flips([1] * 49, n_clusters=49, n=98) is None
    assert smallest_effect_of_flips([1] * 50, n_clusters=50, n=100) is not None


def chance_to_reject(n, gain, loss):
    """Return how often McNemar's exact test of n pairs is below 5%, over all outcomes."""
    found = 0.0
    for total in range(n + 1):
        ups = np.arange(total + 1)
        rejects = [mcnemar_exact(int(up), int(total - up)) < 0.05 for up in ups]
        share = gain / (gain + loss) if gain + loss else 0.5
        found += stats.binom.pmf(total, n, gain + loss) * (
            stats.binom.pmf(ups, total, share) @ np.array(rejects, dtype=float)
        )
    return found


@pytest.mark.repeats(1)  # sums over all datasets, each in one way
@pytest.mark.parametrize(
    ("n", "discordant"),
    # The slow ones are between these, and of more terms.
    [
        (8, 0.1),
        *(pytest.param(n, share, marks=pytest.mark.slow) for n, share in ((30, 0.1), (60, 0.2))),
        (30, 0.4),
    ],
)
def test_smallest_effect_of_few_pairs_is_found_as_often_as_it_says(n, discordant):
    """Averaged over what the first dataset can show, exactly; the second has the effect."""
    found = chance = 0.0
    for total in range(n + 1):
        stated = smallest_effect_of_flips([1] * total, n_clusters=n, n=n)
        weight = stats.binom.pmf(total, n, discordant)
        if stated is None or weight < 1e-4:
            continue
        both = max(discordant, stated)
        found += weight * chance_to_reject(n, (both + stated) / 2, (both - stated) / 2)
        chance += weight
    assert chance > 0.95
    assert 0.79 < found / chance < 0.93


@pytest.mark.parametrize("n", [5, 6, 8, 12, 30])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_interval_and_test_agree(n, level):
    """For every outcome the interval holds 0 if and only if McNemar's exact test does not reject.

    Limits that change are those of a normal test: value / z of the p-value is its error.
    """
    changed = 0
    for gains in range(n + 1):
        for losses in range(n + 1 - gains):
            p, plain = mcnemar_exact(gains, losses), rate_difference(gains, losses, n, level)
            found = agreeing(plain, p, level).interval
            assert (p < 1 - level) != (found.low <= 0 <= found.high)
            assert found.low <= (gains - losses) / n <= found.high
            if found == plain.interval:
                continue
            changed += 1
            near = found.low if gains > losses else found.high
            z_of_p = stats.norm.isf(p / 2)
            if z_of_p > 0 and abs(near) < max(abs(found.low), abs(found.high)):
                error = (gains - losses) / n / z_of_p
                by_test = (gains - losses) / n - stats.norm.isf((1 - level) / 2) * error
                assert near == pytest.approx(by_test, rel=1e-9)
    assert changed > 0


def test_an_interval_that_agrees_stays():
    plain = rate_difference(14, 6, 100)
    assert agreeing(plain, 0.115, 0.95) == agreeing(plain, None, 0.95) == plain
    assert agreeing(plain, 0.049, 0.95).interval.low > 0.0


P_VALUES = [
    pytest.param([0.01, 0.04, 0.03, 0.005], id="four"),
    pytest.param([0.5], id="one"),
    pytest.param([0.2, 0.2, 0.001, 1.0, 0.0, 0.9], id="ties and ends"),
    pytest.param(list(np.random.default_rng(10).uniform(size=200) ** 3), id="many"),
]


@pytest.mark.parametrize("p_values", P_VALUES)
@pytest.mark.parametrize(("function", "method"), [(holm, "holm"), (benjamini_hochberg, "fdr_bh")])
def test_adjusted(p_values, function, method):
    expected = multipletests(p_values, method=method)[1]
    assert function(p_values) == pytest.approx(list(expected), rel=1e-12)


@pytest.mark.parametrize("function", [holm, benjamini_hochberg])
def test_tests_that_could_not_be_made_do_not_count(function):
    adjusted = function([None, 0.01, None, 0.03])
    assert [adjusted[0], adjusted[2]] == [None, None]
    assert [adjusted[1], adjusted[3]] == function([0.01, 0.03])
    assert function([]) == []
    assert function([None]) == [None]


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_only_probabilities_are_adjusted(p):
    with pytest.raises(UsageError, match="from 0 to 1"):
        holm([0.5, p])
