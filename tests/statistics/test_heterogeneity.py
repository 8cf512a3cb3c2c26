"""The test of one accuracy in all groups, beside scipy and Rao and Scott's counts by numpy."""

from __future__ import annotations

import mpmath
import numpy as np
import polars as pl
import pytest

from dpo_pipeline.statistics import heterogeneity
from dpo_pipeline.statistics.distributions import chi_square_upper
from oracle_tools import stats


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 40, 255])
@pytest.mark.parametrize("x", [1e-9, 0.3, 3.8, 41.0, 300.0])
def test_the_upper_tail_is_that_of_mpmath(x, freedom):
    with mpmath.workdps(40):
        exact = mpmath.gammainc(mpmath.mpf(freedom) / 2, mpmath.mpf(x) / 2, regularized=True)
    assert chi_square_upper(x, freedom) == pytest.approx(float(exact), rel=1e-10)


def rows(kinds, right, sizes):
    return pl.DataFrame({"kind": kinds, "right": right, "n": sizes})


def test_of_independent_pairs_it_is_pearsons():
    counts = {"a": (30, 50), "b": (12, 40), "c": (70, 90)}
    table = rows(*zip(*((kind, x, n) for kind, (x, n) in counts.items()), strict=True))
    found = heterogeneity(table, ["kind"], "right", "n", is_independent=True)
    by_scipy = stats.chi2_contingency([[x, n - x] for x, n in counts.values()], correction=False)
    assert found.chi_square == pytest.approx(by_scipy.statistic, rel=1e-12)
    assert found.degrees_of_freedom == by_scipy.dof == 2
    assert found.p_value == pytest.approx(by_scipy.pvalue, rel=1e-10)
    assert found.smallest_expected == pytest.approx(by_scipy.expected_freq.min())


def test_of_clusters_the_counts_are_those_of_rao_and_scott():
    generator = np.random.default_rng(3)
    sizes = generator.integers(1, 6, 90)
    kinds = np.repeat(["a", "b", "c"], 30)
    right = generator.binomial(sizes, generator.beta(2, 1.5, 90))
    found = heterogeneity(rows(kinds, right, sizes), ["kind"], "right", "n", is_independent=False)
    adjusted = []
    for kind in "abc":
        x, n = right[kinds == kind], sizes[kinds == kind]
        p, m = x.sum() / n.sum(), len(x)
        variance = m / (m - 1) * ((x - p * n) ** 2).sum() / n.sum() ** 2
        effect = variance / (p * (1 - p) / n.sum())
        assert effect > 1.2
        adjusted.append([x.sum() / effect, (n.sum() - x.sum()) / effect])
    by_scipy = stats.chi2_contingency(adjusted, correction=False)
    assert found.chi_square == pytest.approx(by_scipy.statistic, rel=1e-10)
    assert found.p_value == pytest.approx(by_scipy.pvalue, rel=1e-9)


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(rows(["a"], [3], [5]), id="one group"),
        pytest.param(rows(["a", "b"], [3, 0], [5, 0]), id="one group with pairs"),
        pytest.param(rows(["a", "b"], [5, 2], [5, 2]), id="all are right"),
        pytest.param(rows(["a", "b"], [0, 0], [5, 2]), id="none is right"),
    ],
)
def test_without_a_difference_to_find_there_is_no_test(table):
    assert heterogeneity(table, ["kind"], "right", "n", is_independent=True) is None


def test_a_group_whose_pairs_agree_counts_as_independent():
    table = rows(["a", "a", "b", "b"], [2, 3, 1, 2], [2, 3, 4, 2])
    found = heterogeneity(table.head(3), ["kind"], "right", "n", is_independent=False)
    by_scipy = stats.chi2_contingency([[5, 0], [1, 3]], correction=False)
    assert found.chi_square == pytest.approx(by_scipy.statistic)
