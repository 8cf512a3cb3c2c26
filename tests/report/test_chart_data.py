"""Numbers of the charts against the rows by numpy."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from dpo_pipeline.exact import bin_of
from dpo_pipeline.report import chart_data
from page_tools import values_of


def binned(values):
    return pl.DataFrame({"x": values}).group_by(bin=bin_of(pl.col("x"))).agg(n_pairs=pl.len())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e5])
def test_bars_hold_the_pairs_that_numpy_counts(scale):
    values = np.random.default_rng(0).normal(0.3, 1.0, 4_000) * scale
    grid = chart_data.grid_over(binned(values), 40)
    bars = chart_data.histogram_bars(binned(values), grid, 0)
    edges = [*bars["lower"], bars["upper"][-1]]
    assert 0.0 in edges
    assert 20 <= grid.n <= 84
    assert np.diff(edges) == pytest.approx(np.full(grid.n, grid.step))
    assert bars["n_pairs"].sum() == pytest.approx(4_000)
    inner, open_ended = edges[1:-1], [-np.inf, *edges[1:-1], np.inf]
    counted, _ = np.histogram(values, open_ended)
    # A bin of the sketch that an edge cuts is within this of the edge.
    off = [0.006 * abs(edge) + 6e-5 for edge in inner]
    unsure = [np.sum(abs(values - e) < d) for e, d in zip(inner, off, strict=True)]
    allowed = np.add([0, *unsure], [*unsure, 0]) + 1e-6
    assert np.all(abs(bars["n_pairs"].to_numpy() - counted) <= allowed)


def test_bars_of_smooth_margins_are_smooth():
    # Far out a bin is nearly as wide as a bar: put where their middles are, they make a comb.
    edges = np.linspace(100.0, 200.0, 400_001)
    grid = chart_data.Grid(step=0.4, first=0, n=500)
    bars = chart_data.histogram_bars(binned((edges[1:] + edges[:-1]) / 2), grid, 0)
    inside = bars.filter(pl.col("lower").is_between(102.0, 197.0))["n_pairs"]
    assert inside.min() == pytest.approx(1_600, rel=0.02)
    assert inside.max() == pytest.approx(1_600, rel=0.02)


def test_few_pairs_are_drawn_whole():
    # 0.1 and 0.102 are in bins that the edge at 0.1 would cut.
    values = [-0.1, 0.1, 0.102, 0.3, 3.0]
    grid = chart_data.Grid(step=0.1, first=-2, n=8)
    bars = chart_data.histogram_bars(binned(values), grid, 0)["n_pairs"].to_list()
    assert all(n == int(n) for n in bars)
    assert sum(bars) == 5
    assert bars[-1] == 1
    assert sum(bars[:2]) == 1


def test_ties_are_in_no_bar():
    bars = pl.DataFrame({"bin": [0, 0, 1, -400], "n_pairs": [3, 4, 5, 6]})
    grid = chart_data.Grid(step=0.01, first=-10, n=20)
    made = chart_data.histogram_bars(bars, grid, 5)
    assert made["n_pairs"].sum() == pytest.approx(13)
    assert made.filter(pl.col("lower") == 0.0)["n_pairs"].item() == pytest.approx(5 + 1)
    assert made.filter(pl.col("upper") == 0.0)["n_pairs"].item() == pytest.approx(1)


@pytest.mark.parametrize("bins", [{0: 7}, {400: 3}, {-400: 3}, {0: 1, 1: 1}])
def test_a_grid_of_few_values_has_zero_and_width(bins):
    table = pl.DataFrame({"bin": list(bins), "n_pairs": list(bins.values())})
    grid = chart_data.grid_over(table, 40)
    assert grid.first <= 0 <= grid.first + grid.n
    assert grid.n >= 2
    bars = chart_data.histogram_bars(table, grid, 0)
    assert bars["n_pairs"].sum() == pytest.approx(sum(bins.values()))


def test_cells_hold_the_pairs_of_both_rewards(evaluation, rows):
    cells = chart_data.density(evaluation.statistics.gathered.rewards, x="rejected", y="chosen")
    assert cells["n_pairs"].sum() == pytest.approx(698)
    assert cells.height < 60 * 60
    for side in ("rejected", "chosen"):
        below = cells.filter(pl.col(f"{side}_high") <= 1e-12)["n_pairs"].sum()
        unsure = np.sum(abs(rows[side]) < 2.6e-4)
        assert below == pytest.approx(np.sum(rows[side] < 0.0), abs=unsure + 1e-6)
    low, high = cells["rejected_low"].min(), cells["chosen_high"].max()
    assert low <= 0.0 <= high
    both = cells.filter((pl.col("rejected_high") <= 1e-12) & (pl.col("chosen_low") >= -1e-12))
    expected = np.sum((rows["rejected"] < 0) & (rows["chosen"] > 0))
    assert both["n_pairs"].sum() == pytest.approx(expected, abs=3)


def test_the_course_is_that_of_the_rows(evaluation, rows):
    course = chart_data.course(evaluation.statistics.gathered)
    assert course["n_pairs"].min() > 0
    assert 10 <= course.height <= 100
    for first, last, n, loss, margin, accuracy in course.rows():
        part = slice(first - 1, last)
        assert n == len(rows["loss"][part])
        assert loss == pytest.approx(rows["loss"][part].mean(), abs=1e-9)
        assert margin == pytest.approx(rows["margin"][part].mean(), abs=1e-9)
        assert accuracy == np.mean(rows["margin"][part] > 0)
    assert course["n_pairs"].sum() == 698


def test_groups_of_lengths_are_those_of_the_rows(evaluation, rows):
    groups = chart_data.by_length(evaluation.statistics.gathered.lengths)
    assert groups["n_pairs"].sum() == 698
    assert groups.height > 15
    order = np.argsort(rows["tokens"], kind="stable")
    at = 0
    for tokens, n, margin, accuracy in groups.rows():
        part = order[at : at + n]
        at += n
        assert tokens == pytest.approx(rows["tokens"][part].mean(), rel=0.026, abs=1e-9)
        assert margin == pytest.approx(rows["margin"][part].mean(), abs=1e-9)
        assert accuracy == pytest.approx(np.mean(rows["margin"][part] > 0))


def test_the_loss_of_each_beta_is_that_of_the_rows(evaluation, rows):
    curve = chart_data.loss_by_beta(evaluation.statistics.gathered.margins, 0.1, shown=[0.1, 0.2])
    betas = curve["beta"].to_numpy()
    assert (betas[0], betas[-1]) == (pytest.approx(0.025), pytest.approx(0.8))
    assert np.diff(np.log(betas)) == pytest.approx(np.full(80, math.log(32) / 80))
    for beta, loss in curve.rows():
        expected = np.logaddexp(0.0, -rows["margin"] * beta / 0.1).mean()
        assert loss == pytest.approx(expected, abs=2e-4)


def test_charts_draw_these_numbers(page, evaluation, rows):
    specs = page.specs()
    bars = values_of(specs["margins"], "lower", "n_pairs")
    assert sum(bar["n_pairs"] for bar in bars) == pytest.approx(698, rel=1e-4)
    right = sum(bar["n_pairs"] for bar in bars if bar["side"] == "above")
    assert right == pytest.approx(np.sum(rows["margin"] > 0), abs=0.1)
    own, *rules = values_of(specs["accuracy"], "label", "low")
    assert own["label"] == "reward accuracy"
    assert own["value"] == pytest.approx(np.mean(rows["margin"] > 0), rel=1e-5)
    longer = next(rule for rule in rules if rule["label"] == "prefer: longer")
    assert longer["value"] == pytest.approx(np.mean(rows["tokens"] > 0), rel=1e-5)
    subsets = values_of(specs["subsets"], "label", "low")
    # The largest accuracy is first.
    expected = evaluation.subsets.sort("reward_accuracy", descending=True, maintain_order=True)
    assert [row["label"] for row in subsets] == [
        f"{turns} ({n})" for turns, n in expected.select("turns", "n_valid").rows()
    ]
    assert [row["value"] for row in subsets] == pytest.approx(
        expected["reward_accuracy"].to_list(), rel=1e-5
    )
    assert values_of(specs["betas"], "beta", "loss")[0]["beta"] < 0.1
