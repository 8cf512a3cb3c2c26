"""The charts of an evaluation with statistics, each with its words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import polars as pl

from dpo_pipeline.columns import REWARD_ACCURACY
from dpo_pipeline.evaluation import Evaluation, Statistics
from dpo_pipeline.report.chart_data import (
    BARS,
    density,
    ends_of,
    grid_over,
    histogram_bars,
    interval_rows,
    subset_rows,
    with_sizes,
)
from dpo_pipeline.report.charts import Figure, Palette, intervals, plane, signed_histogram
from dpo_pipeline.report.detail_charts import detail_figures
from dpo_pipeline.statistics import counted, number, share
from dpo_pipeline.sums import Summary

_COIN: Final = 0.5
"""Accuracy of a coin toss."""
BASELINE_WORDS: Final = {
    "longer": "longer completion",
    "shorter": "shorter completion",
    "reference": "reference's log-probs",
    "policy": "policy's log-probs",
}


def figures_of(
    evaluation: Evaluation, statistics: Statistics, palette: Palette
) -> Iterator[Figure]:
    """Yield the charts for which there is something to draw, in the order of the report."""
    if evaluation.summary.n_valid == 0:
        return
    yield _margins(evaluation, statistics, palette)
    yield _accuracy(statistics, palette)
    if statistics.subsets is not None:
        yield _subsets(statistics.subsets, statistics, palette)
    if statistics.tie_rate < 1.0:
        yield _rewards(evaluation.summary, statistics, palette)
    yield from detail_figures(evaluation, statistics, palette)


def _margins(evaluation: Evaluation, statistics: Statistics, palette: Palette) -> Figure:
    summary, margins = evaluation.summary, statistics.gathered.margins
    grid = grid_over(margins, BARS)
    right = summary.reward_accuracy or 0.0
    ties = summary.n_ties / summary.n_valid
    wrong = 1.0 - right - ties
    mean = summary.reward_margin or 0.0
    tied = f"{share(ties)} ties, " if summary.n_ties else ""
    said = (
        f"Margins of {counted(summary.n_valid, 'valid pair')}: {share(wrong)} below zero, "
        f"{tied}{share(right)} above; mean {number(mean)} nats."
    )
    return Figure(
        name="margins",
        title="Margins",
        caption=f"The margin is the chosen less the rejected reward. {said} Bars are "
        f"{number(grid.step, 2)} nats wide; the outermost hold what lies beyond.",
        opening="Histogram. ",
        description=said,
        chart=signed_histogram(
            histogram_bars(margins, grid, summary.n_ties),
            palette,
            axis="margin (nats)",
            below=f"rejected preferred: {share(wrong)}",
            above=f"chosen preferred: {share(right)}",
            mean=mean,
            ties=summary.n_ties,
        ),
    )


def _accuracy(statistics: Statistics, palette: Palette) -> Figure:
    named = {"implicit rewards": statistics.figures[REWARD_ACCURACY]}
    named |= {BASELINE_WORDS[name]: each for name, each in statistics.baselines.items()}
    said = "; ".join(f"{name} {share(each.value)}" for name, each in named.items())
    return Figure(
        name="accuracy",
        title="Accuracy against simple rules",
        caption="The share of pairs in which each rule prefers the chosen completion, with its "
        f"{level_of(statistics)} interval; a tie prefers nothing. Blue is above a coin toss, "
        "orange below it, grey not told apart from it. A policy is worth what it does better than "
        "the rules below it.",
        description=f"Share of pairs in which each rule prefers the chosen completion: {said}.",
        chart=intervals(
            interval_rows(named),
            palette,
            axis="share of pairs that prefer the chosen completion",
            chance=_COIN,
        ),
    )


def _subsets(subsets: pl.DataFrame, statistics: Statistics, palette: Palette) -> Figure:
    by = statistics.gathered.by
    names = {end: f"{REWARD_ACCURACY}_{end}" for end in ("low", "high")}
    drawn, note = subset_rows(subsets, by, value=REWARD_ACCURACY, **names)
    least, most = ends_of(drawn, "value")
    return Figure(
        name="subsets",
        title="Accuracy by subset",
        caption=f"The share of pairs with the chosen reward above the rejected one, with its "
        f"{level_of(statistics)} interval, by {', '.join(by)} (pairs in brackets).{note} Intervals "
        "are of each subset by itself: of many, some miss. The table has p-values that allow "
        "for their number.",
        description=f"Accuracy of {counted(drawn.height, 'subset')}, from {share(least)} to "
        f"{share(most)}.",
        chart=intervals(with_sizes(drawn), palette, axis="accuracy", chance=_COIN),
    )


def _rewards(summary: Summary, statistics: Statistics, palette: Palette) -> Figure:
    down = {name: share(each.value) for name, each in statistics.displacement.items()}
    moved = (
        f" The chosen completion became less likely than under the reference in "
        f"{down['chosen_down']} of the pairs, the rejected one in {down['rejected_down']}, both in "
        f"{down['both_down']}."
        if down
        else ""
    )
    said = (
        f"Mean rewards are {number(summary.chosen_reward)} nats (chosen) and "
        f"{number(summary.rejected_reward)} (rejected).{moved}"
    )
    return Figure(
        name="rewards",
        title="Chosen against rejected reward",
        caption=f"The stronger its colour, the more of the {counted(summary.n_valid, 'pair')} a "
        "cell holds. Above the dashed line the chosen completion has the higher reward. The "
        f"outermost cells hold what lies beyond. {said}",
        opening="Density of chosen against rejected rewards. ",
        description=said,
        chart=plane(
            density(statistics.gathered.rewards, x="rejected", y="chosen"),
            palette,
            x="rejected",
            y="chosen",
            title="{} reward (nats)",
            above="chosen higher",
            below="rejected higher",
        ),
    )


def level_of(statistics: Statistics) -> str:
    """Return the level of the intervals in words."""
    return f"{100.0 * statistics.level:g}%"
