"""The test of one difference in all groups, beside scipy's of Welch."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from dpo_pipeline.statistics import differences_test
from oracle_tools import stats


def groups(nets, counts=None):
    """Return gains, losses and pairs of clusters, by group."""
    return [
        (
            pl.Series(np.maximum(net, 0)),
            pl.Series(np.maximum(-net, 0)),
            pl.Series(np.ones(len(net), dtype=int) if counts is None else counts[i]),
        )
        for i, net in enumerate(nets)
    ]


def drawn(sizes, chances, seed=5):
    rng = np.random.default_rng(seed)
    return [
        rng.choice([1, -1, 0], n, p=[up, down, 1 - up - down])
        for n, (up, down) in zip(sizes, chances, strict=True)
    ]


@pytest.mark.parametrize(
    ("sizes", "chances"),
    [
        pytest.param((40, 300), ((0.3, 0.1), (0.1, 0.1)), id="two"),
        pytest.param((25, 60, 10, 500), ((0.2, 0.1), (0.0, 0.4), (0, 0), (0.1, 0.05)), id="four"),
    ],
)
def test_of_independent_pairs_it_is_welchs_with_a_gain_and_a_loss_more(sizes, chances):
    nets = drawn(sizes, chances)
    found = differences_test(groups(nets), is_independent=False)
    by_scipy = stats.f_oneway(*(np.append(net, [1, -1]) for net in nets), equal_var=False)
    assert found.f == pytest.approx(by_scipy.statistic, rel=1e-10)
    assert found.p_value == pytest.approx(by_scipy.pvalue, rel=1e-9)
    assert (found.degrees_of_freedom, found.n_groups) == (len(sizes) - 1, len(sizes))
    upper = stats.f.sf(found.f, len(sizes) - 1, found.degrees_of_freedom_within)
    assert found.p_value == pytest.approx(upper, rel=1e-9)


def test_independent_pairs_in_bags_are_the_same_pairs():
    nets = drawn((60, 90), ((0.2, 0.1), (0.1, 0.3)))
    bags = [
        tuple(pl.Series(each.to_numpy().reshape(-1, 5).sum(axis=1)) for each in group)
        for group in groups(nets)
    ]
    bagged = differences_test(bags, is_independent=True)
    assert bagged == differences_test(groups(nets), is_independent=True)


def test_clusters_count_as_many_pairs_as_their_spread_says():
    # Each of 20 clusters is one pair five times over: five times the pairs, no more knowledge.
    nets = drawn((20, 30), ((0.4, 0.1), (0.1, 0.3)))
    whole = differences_test(
        groups([5 * net for net in nets], [np.full(len(net), 5) for net in nets]),
        is_independent=False,
    )
    values, errors = [], []
    for net in nets:
        # The jackknife's squared error of a mean is s^2 / n; the pairs that have it, v (1 - v).
        effective = (np.abs(net).mean() - net.mean() ** 2) / stats.sem(net) ** 2
        up, down = (((sign * net > 0).mean() * effective + 1) / (effective + 2) for sign in (1, -1))
        values.append(up - down)
        errors.append((up + down - (up - down) ** 2) / (effective + 1))
    t = (values[0] - values[1]) / np.sqrt(sum(errors))
    assert whole.f == pytest.approx(t**2, rel=1e-9)
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 21 + errors[1] ** 2 / 31)
    assert whole.degrees_of_freedom_within == pytest.approx(freedom, rel=1e-9)


def test_small_groups_are_left_out_and_one_is_not_tested():
    nets = drawn((9, 40, 50), ((0.5, 0.5), (0.2, 0.1), (0.1, 0.2)))
    found = differences_test(groups(nets), is_independent=False)
    assert (found.n_groups, found.n_left_out) == (2, 1)
    assert found.f == differences_test(groups(nets[1:]), is_independent=False).f
    assert differences_test(groups(nets[:2]), is_independent=False) is None
    assert differences_test([], is_independent=False) is None


def test_groups_without_a_difference_have_nothing_to_find():
    found = differences_test(groups([np.zeros(20, dtype=int)] * 2), is_independent=False)
    assert (found.f, found.p_value) == (0.0, 1.0)


@pytest.mark.slow  # simulates, which no default test does
@pytest.mark.parametrize("size", [10, 20, 50])
@pytest.mark.parametrize("ups", [(0.02, 0.25), (0.3, 0.3), (0.1, 0.1)])
@pytest.mark.parametrize("k", [2, 8])
def test_it_raises_no_more_false_alarms_than_its_level(size, ups, k):
    rng = np.random.default_rng(17)
    chances = [(ups[i % 2],) * 2 for i in range(k)]
    p_values = [
        differences_test(
            groups(drawn([size] * k, chances, seed=rng.integers(2**32))), is_independent=False
        ).p_value
        for _ in range(600)
    ]
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
