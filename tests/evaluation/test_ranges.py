"""Intervals end where a figure does: shares, scores and correlations of few pairs."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_pipeline import StatisticsOptions, evaluate
from dpo_pipeline.sums import FIGURES
from oracle_tools import stats
from page_tools import of_margins

pytestmark = pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")


def test_a_brier_score_of_three_pairs_ends_at_0_and_1():
    margins = [4.5, 4.5, -4.5]
    found = evaluate(of_margins(margins), statistics=True).statistics.figures["brier"]
    squares = (1 - 1 / (1 + np.exp(-np.array(margins)))) ** 2
    low, high = stats.t.interval(0.95, 2, squares.mean(), stats.sem(squares))
    assert low < 0
    assert high > 1
    assert (found.interval.low, found.interval.high) == (0.0, 1.0)


def test_a_log_loss_is_not_below_0():
    margins = [4.5, 4.5, -4.5]
    found = evaluate(of_margins(margins), loss="hinge", statistics=True)
    each, losses = found.statistics.figures["log_loss"], np.logaddexp(0, -np.array(margins))
    assert each.value == pytest.approx(losses.mean())
    assert stats.t.interval(0.95, 2, losses.mean(), stats.sem(losses))[0] < 0
    assert each.interval.low == 0.0


def test_a_mean_over_many_subsets_ends_at_1():
    # Of 40 subsets one has a pair that is wrong: the jackknife's interval reaches beyond 1.
    margins = [-0.3, *[0.3] * 79]
    pairs = of_margins(margins, kind=[i // 2 for i in range(80)], prompt_id=list(range(40)) * 2)
    macro = evaluate(pairs, by="kind", statistics=True).statistics.macro
    assert macro.value == pytest.approx(1 - 1 / 80)
    assert macro.value + 1.96 * macro.standard_error > 1.0
    assert macro.interval.high == 1.0


@pytest.mark.repeats(2)  # sizes, each with or without prompts
@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("per_prompt", [1, 2])
def test_no_figure_of_few_pairs_leaves_its_range(n, per_prompt):
    rng = np.random.default_rng(n)
    tokens = {f"{side}_num_tokens": rng.integers(5, 50, n) for side in ("chosen", "rejected")}
    pairs = of_margins(
        list(rng.normal(0, 1.5, n)),
        judge=rng.normal(0, 1, n),
        kind=["x", "y"] * (n // 2) + ["x"] * (n % 2),
        prompt_id=np.arange(n) // per_prompt,
        **tokens,
    )
    options = StatisticsOptions(judge="judge", weights={"x": 2.0, "y": 1.0})
    rows = evaluate(pairs, by="kind", statistics=options).statistics.rows
    for name, each in rows.items():
        low, high = (0.0, 1.0) if name.startswith("prefer: ") else (-1.0, 1.0)
        low, high = FIGURES[name].range if name in FIGURES else (low, high)
        if each.interval is not None:
            assert low <= each.interval.low <= each.interval.high <= high, name


def test_ranges_are_those_of_the_figures():
    assert {name for name, each in FIGURES.items() if each.range == (0.0, 1.0)} >= {
        *("reward_accuracy", "reward_accuracy_half", "tie_rate", "brier", "macro mean"),
        *("chosen_down", "rejected_down", "both_down", "calibration error", "judge: AUC"),
    }
