"""Rankings within prompts, against brute force over all subsets and scipy."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from dpo_pipeline.statistics import best_of, ranked
from oracle_tools import stats


def prompts(seed, n_prompts=12):
    """Return prompts of 1 to 6 completions, as (reward, how good), with ties of both."""
    draw = random.Random(seed)
    return [
        [(draw.randint(0, 4) / 2, draw.randint(0, 3)) for _ in range(draw.randint(1, 6))]
        for _ in range(n_prompts)
    ]


def arrays(made):
    numbers = [i for i, rows in enumerate(made) for _ in rows]
    flat = [row for rows in made for row in rows]
    return np.array(numbers), *(np.array([row[k] for row in flat], dtype=float) for k in (0, 1))


def drawn_by_hand(rows, n):
    """The mean over all subsets of n, equal ones at the top each taken alike."""
    means = []
    for some in combinations(rows, n):
        top = max(reward for reward, _ in some)
        values = [value for reward, value in some if reward == top]
        means.append(sum(values) / len(values))
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(6))
def test_best_of_n_is_the_mean_over_all_subsets(seed):
    made = prompts(seed)
    found = best_of(*arrays(made), [1, 2, 3, 6])
    for n, values in zip([1, 2, 3, 6], found, strict=True):
        for rows, value in zip(made, values, strict=True):
            if len(rows) < n:
                assert np.isnan(value)
            else:
                assert value == pytest.approx(drawn_by_hand(rows, n), abs=1e-12)


def test_best_of_n_by_hand():
    # Of rewards 1, 2, 2 with labels 1, 0, 1: drawn alone 2/3, of two the top is one of the two
    # 2s in each of three draws, 1/2 on average, of three too.
    rows = [[(1.0, 1.0), (2.0, 0.0), (2.0, 1.0)]]
    found = [values[0] for values in best_of(*arrays(rows), [1, 2, 3])]
    assert found == pytest.approx([2 / 3, 1 / 2, 1 / 2], abs=1e-15)


@pytest.mark.parametrize("seed", range(6))
def test_kendalls_tau_is_that_of_scipy(seed):
    made = prompts(seed)
    for rows, tau in zip(made, ranked(*arrays(made)).tau, strict=True):
        if len(rows) == 1:
            assert np.isnan(tau)
            continue
        expected = stats.kendalltau([r for r, _ in rows], [v for _, v in rows]).statistic
        assert np.isnan(tau) if np.isnan(expected) else tau == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_pairs_credit_and_variance_are_those_of_plain_python(seed):
    made = prompts(seed)
    found = ranked(*arrays(made))
    for i, rows in enumerate(made):
        pairs = [(a, b) for a, b in combinations(rows, 2) if a[1] != b[1]]
        right = sum((a[0] > b[0]) == (a[1] > b[1]) and a[0] != b[0] for a, b in pairs)
        assert (found.n_right[i], found.n_pairs[i], found.n[i]) == (right, len(pairs), len(rows))
        top = [value for reward, value in rows if reward == max(r for r, _ in rows)]
        best = max(value for _, value in rows)
        assert found.credit[i] == pytest.approx(top.count(best) / len(top), abs=1e-15)
        assert found.is_decided[i] == (len({value for _, value in rows}) > 1)
        rewards = [reward for reward, _ in rows]
        if len(rows) > 1:
            assert found.variance[i] == pytest.approx(np.var(rewards, ddof=1), abs=1e-12)
        else:
            assert np.isnan(found.variance[i])


def test_a_tie_at_the_top_gives_a_share_and_no_whole():
    rows = [[(1.0, 1.0), (1.0, 0.0), (1.0, 0.0), (0.0, 0.0)], [(1.0, 1.0), (0.0, 0.0)]]
    assert ranked(*arrays(rows)).credit.tolist() == pytest.approx([1 / 3, 1.0])
