"""Student's t, beta and binomial against mpmath at 40 digits, and against scipy."""

from __future__ import annotations

import math

import mpmath
import pytest

from dpo_pipeline.errors import UsageError
from dpo_pipeline.statistics.distributions import (
    beta_density,
    beta_quantile,
    beta_tails,
    binomial_lower,
    binomial_probability,
    normal_quantile,
    normal_upper,
    root_of_rising,
    t_quantile,
    t_two_sided,
    t_upper,
)
from oracle_tools import stats


def incomplete_beta(a, b, low, high):
    with mpmath.workdps(40):
        return float(mpmath.betainc(a, b, mpmath.mpf(low), mpmath.mpf(high), regularized=True))


@pytest.mark.parametrize(
    ("x", "a", "b"),
    [
        pytest.param(0.3, 2.0, 3.0, id="middle"),
        pytest.param(0.5, 0.5, 0.5, id="arcsine"),
        pytest.param(1e-9, 0.5, 25.5, id="near 0"),
        pytest.param(0.999, 25.5, 0.5, id="near 1"),
        pytest.param(0.04, 0.5, 200.5, id="one side, at its tail"),
        pytest.param(0.2, 100.5, 100.5, id="far in a tail"),
        pytest.param(0.75, 3000.25, 1000.75, id="thousands"),
        pytest.param(0.01, 1.5, 0.01, id="tiny parameter"),
    ],
)
def test_both_tails_of_the_beta_distribution(x, a, b):
    lower, upper = beta_tails(x, a, b)
    assert lower == pytest.approx(incomplete_beta(a, b, 0, x), rel=1e-11)
    assert upper == pytest.approx(incomplete_beta(a, b, x, 1), rel=1e-11)
    assert beta_density(x, a, b) == pytest.approx(stats.beta.pdf(x, a, b), rel=1e-10)


@pytest.mark.parametrize(
    ("x", "a", "b", "tails"),
    [
        pytest.param(0.0, 2.0, 3.0, (0.0, 1.0), id="x of 0"),
        pytest.param(1.0, 2.0, 3.0, (1.0, 0.0), id="x of 1"),
        pytest.param(0.5, 0.0, 3.0, (1.0, 0.0), id="all mass at 0"),
        pytest.param(0.5, 3.0, 0.0, (0.0, 1.0), id="all mass at 1"),
    ],
)
def test_ends_of_the_beta_distribution(x, a, b, tails):
    assert beta_tails(x, a, b) == tails


@pytest.mark.parametrize("p", [1e-10, 0.005, 0.025, 0.5, 0.8, 0.975, 1 - 1e-6])
@pytest.mark.parametrize(("a", "b"), [(0.5, 25.5), (1.0, 1.0), (3.5, 97.5), (99.5, 0.5), (1e4, 7)])
def test_quantiles_of_the_beta_distribution(p, a, b):
    assert beta_quantile(p, a, b) == pytest.approx(stats.beta.ppf(p, a, b), rel=1e-9, abs=1e-25)


def t_tail(t, degrees_of_freedom):
    """By its integral, which shares nothing with the beta function."""
    with mpmath.workdps(30):
        v = mpmath.mpf(degrees_of_freedom)
        scale = mpmath.gamma((v + 1) / 2) / mpmath.gamma(v / 2) / mpmath.sqrt(v * mpmath.pi)
        density = lambda u: scale * (1 + u * u / v) ** (-(v + 1) / 2)  # noqa: E731
        return float(mpmath.quad(density, [t, t + 1, t + 4, t + 20, mpmath.inf]))


@pytest.mark.repeats  # each t and each number of degrees once
@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 5, 30, 400])
@pytest.mark.parametrize("t", [0.0, 0.1, 1.0, 2.5, 6.0])
def test_tail_of_t(t, degrees_of_freedom):
    expected = t_tail(t, degrees_of_freedom)
    assert t_upper(t, degrees_of_freedom) == pytest.approx(expected, rel=1e-10)
    assert t_upper(-t, degrees_of_freedom) == pytest.approx(1 - expected, rel=1e-10)
    assert t_two_sided(-t, degrees_of_freedom) == pytest.approx(2 * expected, rel=1e-10)


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 9, 49, 1023, 10**6, 10**9])
@pytest.mark.parametrize("p", [1e-12, 0.025, 0.4, 0.5, 0.8, 0.975, 0.9995])
def test_quantiles_of_t(p, degrees_of_freedom):
    expected = stats.t.ppf(p, degrees_of_freedom)
    assert t_quantile(p, degrees_of_freedom) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_t_of_one_degree_is_the_cauchy_distribution():
    assert t_quantile(0.975, 1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-13)
    assert t_upper(1.0, 1) == pytest.approx(0.25, rel=1e-14)
    assert t_upper(math.inf, 3) == 0.0
    assert t_upper(-math.inf, 3) == 1.0


@pytest.mark.parametrize(
    ("k", "n", "p"),
    [
        pytest.param(0, 10, 0.3, id="none"),
        pytest.param(10, 10, 0.3, id="all"),
        pytest.param(3, 10, 0.3, id="ten"),
        pytest.param(120, 1000, 0.2, id="far below"),
        pytest.param(23, 53, 0.5, id="half"),
        pytest.param(1, 10**6, 1e-6, id="rare"),
    ],
)
def test_binomial(k, n, p):
    assert binomial_probability(k, n, p) == pytest.approx(stats.binom.pmf(k, n, p), rel=1e-10)
    assert binomial_lower(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), rel=1e-10)


def test_binomial_tails_are_sums_of_its_probabilities():
    assert math.fsum(binomial_probability(k, 40, 0.3) for k in range(41)) == pytest.approx(1.0)
    for k in (0, 7, 12, 40):
        below = math.fsum(binomial_probability(i, 40, 0.3) for i in range(k + 1))
        assert binomial_lower(k, 40, 0.3) == pytest.approx(below, rel=1e-12)


@pytest.mark.repeats(2)  # the tail and the middle
@pytest.mark.parametrize("k", [499_900_000, 499_980_000, 499_999_990, 500_000_000])
def test_binomial_of_a_thousand_million(k):
    n = 10**9
    with mpmath.workdps(40):
        log_choices = mpmath.loggamma(n + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)
        point = mpmath.exp(log_choices - n * mpmath.log(2))
        # Each term below is the one above it times k / (n - k + 1).
        total, term, i = mpmath.mpf(0), point, k
        while k == 499_900_000 and term > total * mpmath.mpf(10) ** -13:
            total, term = total + term, term * i / (n - i + 1)
            i -= 1
            if i < k - 20_000:
                break
    assert binomial_probability(k, n, 0.5) == pytest.approx(float(point), rel=1e-10)
    if k == 499_900_000:  # 6.3 deviations out, where the terms fall fast enough to add them all
        assert binomial_lower(k, n, 0.5) == pytest.approx(float(total), rel=1e-9)
    assert binomial_lower(k, n, 0.5) == pytest.approx(stats.binom.cdf(k, n, 0.5), rel=1e-9)


@pytest.mark.parametrize("p", [-0.1, 0.0, 1.0, math.nan])
def test_probabilities_are_between_0_and_1(p):
    for quantile in (normal_quantile, lambda p: t_quantile(p, 3), lambda p: beta_quantile(p, 1, 1)):
        with pytest.raises(UsageError, match="above 0 and below 1"):
            quantile(p)


def test_normal():
    assert normal_upper(10.0) == pytest.approx(7.619853024160527e-24, rel=1e-12)
    assert normal_quantile(0.975) == pytest.approx(1.959963984540054, rel=1e-15)


@pytest.mark.parametrize(
    ("function", "low", "high", "zero"),
    [
        pytest.param(lambda x: (x**3 - 2.0, 3 * x * x), 0.0, 10.0, 2 ** (1 / 3), id="cube"),
        pytest.param(lambda x: (x**9, 9 * x**8), -1.0, 3.0, 0.0, id="flat at its zero"),
        pytest.param(lambda x: (math.copysign(1.0, x - 0.3), 0.0), 0.0, 1.0, 0.3, id="a step"),
        pytest.param(lambda x: (math.atan(x - 2), 1e-9), -1e6, 1e6, 2.0, id="a wrong slope"),
        pytest.param(lambda x: (1.0 + 0 * x, 0.0), 0.0, 1.0, 0.0, id="at the lower end"),
    ],
)
def test_root(function, low, high, zero):
    assert root_of_rising(function, low, high, start=0.5) == pytest.approx(zero, abs=1e-12)
