"""The charts of an evaluation with statistics, each with its words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import altair as alt
import polars as pl

from dpo_pipeline.columns import LOSS, N_PAIRS, REWARD_ACCURACY
from dpo_pipeline.evaluation import Agreement, Evaluation, Statistics
from dpo_pipeline.losses import unit_of_loss
from dpo_pipeline.report import chart_data, charts
from dpo_pipeline.report.charts import COUNT, DASHED, Figure, Palette, Tip, rows_of, tips
from dpo_pipeline.report.page_tables import RELIABILITY, all_as, percent, three_digits
from dpo_pipeline.statistics import (
    Estimate,
    Line,
    between,
    counted,
    normal_quantile,
    number,
    p_equation,
    share,
    share_within,
    with_interval,
)
from dpo_pipeline.sums import Summary

_HEIGHT: Final = 240
_DOT: Final[dict[str, Any]] = {"filled": True, "size": 60, "opacity": 1}
_PAIRS: Final = {N_PAIRS: ("pairs", COUNT)}
_MAY_FALL_OUTSIDE: Final = 0.05
"""Share of the points of a course that lie outside its band if the order means nothing."""
FEWEST_EXPECTED: Final = 5.0
"""Pairs expected of a cell from which the chi-square test holds (W. Cochran, 1954)."""
COIN: Final = 0.5
"""Accuracy of a coin toss."""


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
    points = chart_data.course(statistics.gathered)
    if points.height > 1:
        yield _course(points, statistics.figures[LOSS], palette, unit_of(evaluation))
    yield _calibration(statistics, palette)
    if statistics.length is not None:
        groups = chart_data.by_length(statistics.gathered.lengths)
        yield _lengths(statistics.length, groups, palette)
    if statistics.calibration.best is not None:
        yield _betas(evaluation.beta, statistics, palette)
    if statistics.judge is not None:
        yield _judge(statistics.judge, palette)


def unit_of(evaluation: Evaluation) -> str:
    """Return the unit of the loss; empty if it has none."""
    return unit_of_loss(term.loss.name for term in evaluation.objective.terms)


def _margins(evaluation: Evaluation, statistics: Statistics, palette: Palette) -> Figure:
    summary, margins = evaluation.summary, statistics.gathered.margins
    grid = chart_data.grid_over(margins, chart_data.BARS)
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
        chart=charts.signed_histogram(
            chart_data.histogram_bars(margins, grid, summary.n_ties),
            palette,
            axis="margin (nats)",
            below=f"rejected preferred: {share(wrong)}",
            above=f"chosen preferred: {share(right)}",
            mean=mean,
            ties=summary.n_ties,
        ),
    )


def _accuracy(statistics: Statistics, palette: Palette) -> Figure:
    named = {"reward accuracy": statistics.figures[REWARD_ACCURACY]}
    named |= {f"prefer: {name}": each for name, each in statistics.baselines.items()}
    said = "; ".join(f"{name} {share(each.value)}" for name, each in named.items())
    return Figure(
        name="accuracy",
        title="Accuracy against simple rules",
        caption="The share of pairs in which each rule prefers the chosen completion, with its "
        f"{percent(statistics.level)} interval; a tie prefers nothing. Blue is above a coin toss, "
        "orange below it, grey not told apart from it. A policy is worth what it does better than "
        "the rules below it.",
        description=f"Share of pairs in which each rule prefers the chosen completion: {said}.",
        chart=charts.intervals(
            chart_data.interval_rows(named),
            palette,
            axis="share of pairs it has right",
            chance=COIN,
        ),
    )


def _subsets(subsets: pl.DataFrame, statistics: Statistics, palette: Palette) -> Figure:
    by = statistics.gathered.by
    names = {end: f"{REWARD_ACCURACY}_{end}" for end in ("low", "high")}
    drawn, note = chart_data.subset_rows(
        subsets, by, value=REWARD_ACCURACY, **names, chance=COIN, level=statistics.level
    )
    least, most = chart_data.ends_of(drawn, "value")
    return Figure(
        name="subsets",
        title="Accuracy by subset",
        caption=f"The share of pairs with the chosen reward above the rejected one, with its "
        f"{percent(statistics.level)} interval, by {', '.join(by)} (pairs in brackets).{note} "
        "The largest accuracy is first. Blue is above a coin toss, orange below it, where the "
        "p-value that allows for the number of subsets (Holm) says so; grey is not told apart. "
        f"Intervals are of each subset by itself.{heterogeneity_words(statistics)}",
        description=f"Accuracy of {counted(drawn.height, 'subset')}, from {share(least)} to "
        f"{share(most)}.",
        chart=charts.intervals(chart_data.with_sizes(drawn), palette, axis="accuracy", chance=COIN),
    )


def heterogeneity_words(statistics: Statistics) -> str:
    """Return what the test of one accuracy in all subsets says; empty without one."""
    found = statistics.heterogeneity
    if found is None:
        return ""
    rough = (
        " The test is rough: a subset has fewer than 5 pairs expected right or wrong."
        if found.smallest_expected < FEWEST_EXPECTED
        else ""
    )
    return (
        f" Test that all subsets have the same accuracy: chi-square {round(found.chi_square, 2):g} "
        f"with {counted(found.degrees_of_freedom, 'degree')} of freedom, "
        f"{p_equation(found.p_value)}.{rough}"
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
        is_square=True,
        title="Chosen against rejected reward",
        caption=f"The stronger its colour, the more of the {counted(summary.n_valid, 'pair')} a "
        "cell holds. Above the dashed line the chosen completion has the higher reward. The "
        f"outermost cells hold what lies beyond. {said}",
        opening="Density of chosen against rejected rewards. ",
        description=said,
        chart=charts.plane(
            chart_data.density(statistics.gathered.rewards, x="rejected", y="chosen"),
            palette,
            x="rejected",
            y="chosen",
            title="{} reward (nats)",
            above="chosen higher",
            below="rejected higher",
        ),
    )


def _course(points: pl.DataFrame, loss: Estimate, palette: Palette, unit: str) -> Figure:
    row = alt.X("first_row:Q").axis(title="row of the input", tickCount=6).scale(nice=False)
    title = f"mean loss ({unit})" if unit else "mean loss"
    low, mean = (
        alt.Y(f"{name}:Q").scale(zero=False).axis(title=title, tickCount=5)
        for name in ("low", LOSS)
    )
    layers: list[Any] = []
    band = ""
    if loss.standard_error is not None:
        spread = loss.standard_error * loss.n**0.5
        z = normal_quantile(1.0 - _MAY_FALL_OUTSIDE / 2.0)
        half = z * spread / pl.col(N_PAIRS).sqrt()
        data = points.with_columns(low=loss.value - half, high=loss.value + half)
        layers.append(
            alt.Chart(rows_of(data))
            .mark_area(color=palette.neutral, opacity=0.18, interpolate="step-after")
            .encode(x=row, y=low, y2="high:Q")
        )
        band = (
            f" If the order of the rows means nothing, about {percent(1 - _MAY_FALL_OUTSIDE)} of "
            "the points lie in the grey band."
        )
    dots = alt.OverlayMarkDef(color=palette.chosen, size=22, filled=True, opacity=1)
    tooltip = {
        **all_as(COUNT, first_row="rows from", last_row="to", n_pairs="valid pairs"),
        LOSS: ("mean loss", ".4g"),
        "reward_accuracy": ("accuracy", ".1%"),
    }
    layers += [
        charts.rule_at(palette, y=alt.YDatum(loss.value), colour=palette.mark),
        alt.Chart(rows_of(points))
        .mark_line(color=palette.chosen, strokeWidth=1.5, point=dots)
        .encode(x=row, y=mean, tooltip=tips(tooltip)),
    ]
    each = int(points["last_row"][0] - points["first_row"][0] + 1)
    least, most = chart_data.ends_of(points, LOSS)
    return Figure.of(
        "course",
        "Loss over the rows",
        f"Mean loss of {counted(points.height, 'run')} of {counted(each, 'consecutive row')} each: "
        f"from {number(least)} to {number(most)}{unit and ' ' + unit}, "
        f"{number(loss.value)} over all.",
        f"{band} A trend or a step says that the dataset is not of one kind.",
        charts.framed(layers, palette, height=_HEIGHT),
    )


def _calibration(statistics: Statistics, palette: Palette) -> Figure:
    table = statistics.calibration.reliability
    ends = pl.DataFrame({"confidence": [0.5, 1.0], "accuracy": [0.5, 1.0]})
    claimed, found = "confidence: mean of sigmoid(|margin|)", "accuracy"
    percent: dict[str, Any] = {"format": ".0%", "tickCount": 6}
    # One scale for both axes, so that the diagonal is one of 45 degrees.
    lowest = min(0.5, chart_data.ends_of(table, "accuracy_low")[0])
    scale = alt.Scale(domain=[max(0.0, lowest - 0.02), 1.0], nice=False)
    x = alt.X("confidence:Q", scale=scale).axis(title=claimed, **percent)
    y = alt.Y("accuracy:Q", scale=scale).axis(title=found, **percent)
    tooltip = all_as(".1%", **RELIABILITY) | _PAIRS
    layers = [
        alt.Chart(rows_of(ends))
        .mark_line(color=palette.neutral, strokeDash=DASHED["strokeDash"])
        .encode(x=x, y=y),
        _accuracy_intervals(table, palette, x, alt.Y("accuracy_low:Q", scale=scale, title=found)),
        _dots(table, palette, x, y, tooltip),
        *charts.corners(
            "under-confident", "over-confident", palette, margin=8, colour=palette.muted
        ),
    ]
    error = statistics.calibration.error
    biased = ""
    if error is not None:
        is_off = with_interval(error, share_within(error.interval))
        biased = f" The calibration error is {is_off}, less what chance adds to it."
    return Figure.of(
        "calibration",
        "Reliability diagram",
        f"Accuracy of {counted(table.height, 'group')} of pairs by the confidence of "
        f"their margins.{biased}",
        " Groups are of nearly equal size, each with the interval of its accuracy. "
        "On the dashed line margins are calibrated log-odds; below it they are over-confident, "
        "above it under-confident.",
        charts.framed(layers, palette, height=charts.SQUARE, width=charts.SQUARE),
        is_square=True,
    )


def _lengths(line: Line, points: pl.DataFrame, palette: Palette) -> Figure:
    ends = chart_data.ends_of(points, "tokens")
    fitted = [line.intercept.value + line.slope.value * each for each in ends]
    x = alt.X("tokens:Q").axis(title="chosen less rejected length (tokens)", tickCount=7)
    y = alt.Y("reward_margin:Q").axis(title="mean margin (nats)", tickCount=6)
    tooltip = {
        "tokens": ("tokens longer", ".3~g"),
        "reward_margin": ("mean margin", ".4~g"),
        "reward_accuracy": ("accuracy", ".1%"),
        **_PAIRS,
    }
    layers = [
        charts.rule_at(palette, x=alt.XDatum(0.0)),
        charts.rule_at(palette, y=alt.YDatum(0.0)),
        alt.Chart(rows_of(pl.DataFrame({"tokens": ends, "reward_margin": fitted})))
        .mark_line(color=palette.mark, strokeWidth=1.5)
        .encode(x=x, y=y),
        _dots(points, palette, x, y, tooltip),
    ]
    r = "" if line.correlation is None else f" Their correlation is {number(line.correlation, 2)}."
    n = int(points[N_PAIRS].sum())
    return Figure.of(
        "lengths",
        "Margin and length",
        f"A token more is worth {with_interval(line.slope, three_digits)} nats of margin; at equal "
        f"length the mean margin is {with_interval(line.intercept, three_digits)} nats.{r}",
        " Each point is the mean of a group of nearly equal size of the "
        f"{counted(n, 'pair')} with token counts; the line is fitted to all of them.",
        charts.framed(layers, palette, height=_HEIGHT),
    )


def _betas(used: float, statistics: Statistics, palette: Palette) -> Figure:
    best, estimate = statistics.calibration.best, statistics.calibration.best_beta
    margins, at_used = statistics.gathered.margins, statistics.figures["log_loss"].value
    interval = None if estimate is None else estimate.interval
    found = None if best is None else best.value
    curve = chart_data.loss_by_beta(margins, used, shown=[used] if found is None else [used, found])
    x = alt.X("beta:Q").axis(title="beta (logarithmic)", tickCount=6, grid=False)
    x = x.scale(type="log", nice=False)
    y = alt.Y("loss:Q").axis(title="mean DPO loss (nats)", tickCount=5)
    y = y.scale(zero=False, padding=12)
    layers: list[Any] = []
    low, high = float(curve["beta"][0]), float(curve["beta"][-1])
    if interval is not None and interval.high > low and interval.low < high:
        band = charts.one_row(beta=max(interval.low, low), to=min(interval.high, high))
        layers.append(
            alt.Chart(band)
            .mark_rect(color=palette.neutral, opacity=0.2)
            .encode(x=x, x2="to:Q", tooltip=alt.value(None))
        )
    tooltip = [alt.Tooltip("beta:Q", format=".4~g"), *tips({"loss": ("mean loss", ".4f")})]
    layers.append(
        alt.Chart(rows_of(curve))
        .mark_line(color=palette.chosen, strokeWidth=2)
        .encode(x=x, y=y, tooltip=tooltip)
    )
    if found is not None:
        align, shift = ("left", 6) if used < found else ("right", -6)
        place: dict[str, Any] = {"x": alt.XDatum(found), "y": charts.AT_Y(12)}
        bold: dict[str, Any] = {"align": align, "dx": shift, "fontWeight": "bold"}
        layers += [
            charts.rule_at(palette, x=alt.XDatum(found), colour=palette.mark),
            *charts.haloed(f"best {three_digits(found)}", palette, **place, **bold),
        ]
    place = {"x": alt.XDatum(used), "y": alt.YDatum(at_used)}
    layers += [
        alt.Chart(charts.one_row(beta=used, loss=at_used))
        .mark_point(color=palette.rejected, **_DOT)
        .encode(x=x, y=y),
        *charts.haloed(f"used {used:g}", palette, **place, align="center", dy=-16),
    ]
    if found is None or best is None:
        said = f"No beta is best: {_why_none(margins)}."
    else:
        limits = "" if interval is None else f" (interval {between(interval, three_digits)})"
        said = (
            f"Beta {three_digits(found)}{limits} has the smallest DPO loss on these pairs, "
            f"{number(best.log_loss)} nats; {used:g} was used, with {number(at_used)}."
        )
    return Figure.of(
        "betas",
        "Loss by beta",
        said,
        " All from one reading: the log-probs stay as they are, so this says which "
        "beta fits this policy's margins, not which one to train with.",
        charts.framed(layers, palette, height=_HEIGHT),
    )


def _why_none(margins: pl.DataFrame) -> str:
    low, high = chart_data.ends_of(margins, "bin")
    if low == high == 0.0:
        return "all margins are 0, so beta changes nothing"
    if low < 0.0:
        which = "every margin is below 0" if high < 0.0 else "no margin is above 0"
        which = "margins are below 0 on the whole" if high > 0.0 else which
        return f"{which}, so the loss keeps falling as beta nears 0"
    which = "every margin is above 0" if low > 0.0 else "no margin is below 0"
    return f"{which}, so the loss keeps falling as beta grows"


def _judge(judge: Agreement, palette: Palette) -> Figure:
    table = judge.by_gap.with_columns(gap=(pl.col("gap_low") + pl.col("gap_high")) / 2.0)
    share = "margin above 0"
    x = alt.X("gap:Q").axis(title=f"judge's preference ({' less '.join(judge.columns)})")
    y = alt.Y("accuracy:Q").axis(title=share, format=".0%", tickCount=6)
    y = y.scale(domain=[0.0, 1.0])
    tooltip = {
        "gap_low": ("preference from", ".3~g"),
        "gap_high": ("to", ".3~g"),
        "accuracy": (share, ".1%"),
        **_PAIRS,
    }
    layers = [
        charts.rule_at(palette, y=alt.YDatum(0.5)),
        charts.rule_at(palette, x=alt.XDatum(0.0)),
        _accuracy_intervals(table, palette, x, alt.Y("accuracy_low:Q", title=share)),
        _dots(table, palette, x, y, tooltip),
    ]
    figures = {"rank correlation": judge.spearman, "AUC": judge.auc}
    said = "; ".join(
        f"{name} {with_interval(each, three_digits)}"
        for name, each in figures.items()
        if each is not None
    )
    said = f"Agreement with the judge's scores: {said}." if said else "Agreement with the judge."
    n = int(table[N_PAIRS].sum())
    return Figure.of(
        "judge",
        "Agreement with the judge",
        said,
        f" Each point is a group of the {counted(n, 'pair')} with a score, "
        "with the interval of its share; agreement rises from the lower left to the upper right.",
        charts.framed(layers, palette, height=_HEIGHT),
    )


def _dots(
    table: pl.DataFrame, palette: Palette, x: alt.X, y: alt.Y, tooltip: Mapping[str, Tip]
) -> Any:
    mark = alt.Chart(rows_of(table)).mark_point(color=palette.chosen, **_DOT)
    return mark.encode(x=x, y=y, tooltip=tips(tooltip))


def _accuracy_intervals(table: pl.DataFrame, palette: Palette, x: alt.X, low: alt.Y) -> Any:
    """Return the intervals of accuracies; `low` is the channel of their lower ends."""
    mark = alt.Chart(rows_of(table)).mark_rule(color=palette.chosen, strokeWidth=2, opacity=0.6)
    return mark.encode(x=x, y=low, y2="accuracy_high:Q")
