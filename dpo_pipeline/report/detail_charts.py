"""The charts that explain an evaluation: course, calibration, length, beta, judge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import altair as alt
import polars as pl

from dpo_pipeline.columns import LOSS
from dpo_pipeline.evaluation import Agreement, Evaluation, Statistics
from dpo_pipeline.losses import unit_of_loss
from dpo_pipeline.report.chart_data import by_length, course, ends_of, loss_by_beta
from dpo_pipeline.report.charts import Figure, Palette, framed, label, one_row, rows_of, rule_at
from dpo_pipeline.statistics import (
    Line,
    between,
    counted,
    normal_quantile,
    number,
    with_interval,
)

_HEIGHT: Final = 240
_DOT: Final[dict[str, Any]] = {"filled": True, "size": 60, "opacity": 1}
_MAY_FALL_OUTSIDE: Final = 0.05
"""Share of the points of a course that lie outside its band if the order means nothing."""


def _short(value: float | None) -> str:
    return number(value, 3)


def detail_figures(
    evaluation: Evaluation, statistics: Statistics, palette: Palette
) -> Iterator[Figure]:
    """Yield the charts for which there is something to draw."""
    points = course(statistics.gathered)
    if points.height > 1:
        unit = unit_of_loss(term.loss.name for term in evaluation.objective.terms)
        yield _course(points, statistics, palette, unit)
    yield _calibration(statistics, palette)
    if statistics.length is not None:
        yield _lengths(statistics.length, statistics, palette)
    if statistics.calibration.best is not None:
        yield _betas(evaluation, statistics, palette)
    if statistics.judge is not None:
        yield _judge(statistics.judge, palette)


def _course(points: pl.DataFrame, statistics: Statistics, palette: Palette, unit: str) -> Figure:
    loss = statistics.figures[LOSS]
    spread = None if loss.standard_error is None else loss.standard_error * loss.n**0.5
    layers: list[Any] = []
    row = alt.X(
        "first_row:Q",
        axis=alt.Axis(title="row of the input", tickCount=6),
        scale=alt.Scale(nice=False),
    )
    title = alt.Axis(title=f"mean loss ({unit})" if unit else "mean loss", tickCount=5)
    scale = alt.Scale(zero=False)
    band = ""
    if spread is not None:
        z = normal_quantile(1.0 - _MAY_FALL_OUTSIDE / 2.0)
        half = z * spread / pl.col("n_pairs").sqrt()
        data = points.with_columns(low=loss.value - half, high=loss.value + half)
        layers.append(
            alt.Chart(rows_of(data))
            .mark_area(color=palette.neutral, opacity=0.18, interpolate="step-after")
            .encode(x=row, y=alt.Y("low:Q", scale=scale, axis=title), y2="high:Q")
        )
        band = (
            f" If the order of the rows means nothing, about {100 * (1 - _MAY_FALL_OUTSIDE):g}% "
            "of the points lie in the grey band."
        )
    layers += [
        rule_at(palette, y=alt.YDatum(loss.value), colour=palette.mark),
        alt.Chart(rows_of(points))
        .mark_line(
            color=palette.chosen,
            strokeWidth=1.5,
            point=alt.OverlayMarkDef(color=palette.chosen, size=22, filled=True, opacity=1),
        )
        .encode(
            x=row,
            y=alt.Y(f"{LOSS}:Q", scale=scale, axis=title),
            tooltip=[
                alt.Tooltip("first_row:Q", title="rows from", format=","),
                alt.Tooltip("last_row:Q", title="to", format=","),
                alt.Tooltip("n_pairs:Q", title="valid pairs", format=","),
                alt.Tooltip(f"{LOSS}:Q", title="mean loss", format=".4g"),
                alt.Tooltip("reward_accuracy:Q", title="accuracy", format=".1%"),
            ],
        ),
    ]
    each = int(points["last_row"][0] - points["first_row"][0] + 1)
    least, most = ends_of(points, LOSS)
    said = (
        f"Mean loss of {counted(points.height, 'run')} of {counted(each, 'consecutive row')} each: "
        f"from {number(least)} to {number(most)}{unit and ' ' + unit}, "
        f"{number(loss.value)} over all."
    )
    return Figure(
        name="course",
        title="Loss over the rows",
        caption=f"{said}{band} A trend or a step says that the dataset is not of one kind.",
        description=said,
        chart=framed(layers, palette, height=_HEIGHT, description=said),
    )


def _calibration(statistics: Statistics, palette: Palette) -> Figure:
    table = statistics.calibration.reliability
    data = rows_of(table)
    ends = rows_of(pl.DataFrame({"confidence": [0.5, 1.0], "accuracy": [0.5, 1.0]}))
    x = alt.X(
        "confidence:Q",
        scale=alt.Scale(domain=[0.5, 1.0]),
        axis=alt.Axis(title="claimed: mean of sigmoid(|margin|)", format=".0%", tickCount=6),
    )
    lowest = min(0.4, ends_of(table, "accuracy_low")[0])
    scale = alt.Scale(domain=[max(0.0, lowest - 0.02), 1.0], nice=False)
    y = alt.Y(
        "accuracy:Q",
        scale=scale,
        axis=alt.Axis(title="found: accuracy", format=".0%", tickCount=6),
    )
    tooltip = [
        alt.Tooltip("confidence:Q", title="claimed", format=".1%"),
        alt.Tooltip("accuracy:Q", title="found", format=".1%"),
        alt.Tooltip("accuracy_low:Q", title="from", format=".1%"),
        alt.Tooltip("accuracy_high:Q", title="to", format=".1%"),
        alt.Tooltip("n_pairs:Q", title="pairs", format=","),
    ]
    layers = [
        alt.Chart(ends).mark_line(color=palette.neutral, strokeDash=[4, 3]).encode(x=x, y=y),
        alt.Chart(data)
        .mark_rule(color=palette.chosen, strokeWidth=2, opacity=0.6)
        .encode(
            x=x,
            y=alt.Y("accuracy_low:Q", scale=scale, title="found: accuracy"),
            y2="accuracy_high:Q",
        ),
        alt.Chart(data).mark_point(color=palette.chosen, **_DOT).encode(x=x, y=y, tooltip=tooltip),
        label(
            "claims too little",
            palette,
            colour=palette.muted,
            x=alt.value(8),
            y=alt.value(14),
            align="left",
        ),
        label(
            "claims too much",
            palette,
            colour=palette.muted,
            x=alt.value("width"),
            y=alt.value("height"),
            align="right",
            dx=-8,
            dy=-8,
        ),
    ]
    error = statistics.calibration.error
    found = "" if error is None else f" The calibration error is {with_interval(error, _short)}"
    biased = f"{found}, biased upward where pairs are few." if found else ""
    said = (
        f"Accuracy of {counted(table.height, 'group')} of pairs by the confidence that their "
        f"margins claim.{biased}"
    )
    return Figure(
        name="calibration",
        title="Calibration",
        caption=f"{said} Groups are of nearly equal size, each with the interval of its accuracy. "
        "On the dashed line margins can be believed as log-odds.",
        description=said,
        chart=framed(layers, palette, height=300, description=said),
    )


def _lengths(line: Line, statistics: Statistics, palette: Palette) -> Figure:
    points = by_length(statistics.gathered.lengths)
    ends = ends_of(points, "tokens")
    fitted = [line.intercept.value + line.slope.value * each for each in ends]
    x = alt.X(
        "tokens:Q",
        axis=alt.Axis(title="chosen less rejected length (tokens)", tickCount=7),
    )
    y = alt.Y("reward_margin:Q", axis=alt.Axis(title="mean margin (nats)", tickCount=6))
    layers = [
        rule_at(palette, x=alt.XDatum(0.0)),
        rule_at(palette, y=alt.YDatum(0.0)),
        alt.Chart(rows_of(pl.DataFrame({"tokens": ends, "reward_margin": fitted})))
        .mark_line(color=palette.mark, strokeWidth=1.5)
        .encode(x=x, y=y),
        alt.Chart(rows_of(points))
        .mark_point(color=palette.chosen, **_DOT)
        .encode(
            x=x,
            y=y,
            tooltip=[
                alt.Tooltip("tokens:Q", title="tokens longer", format=".3~g"),
                alt.Tooltip("reward_margin:Q", title="mean margin", format=".4~g"),
                alt.Tooltip("reward_accuracy:Q", title="accuracy", format=".1%"),
                alt.Tooltip("n_pairs:Q", title="pairs", format=","),
            ],
        ),
    ]
    r = "" if line.correlation is None else f" Their correlation is {number(line.correlation, 2)}."
    said = (
        f"A token more is worth {with_interval(line.slope, _short)} nats of margin; at equal "
        f"length the mean margin is {with_interval(line.intercept, _short)} nats.{r}"
    )
    n = int(points["n_pairs"].sum())
    return Figure(
        name="lengths",
        title="Margin and length",
        caption=f"{said} Each point is the mean of a group of nearly equal size of the "
        f"{counted(n, 'pair')} with token counts; the line is fitted to all of them.",
        description=said,
        chart=framed(layers, palette, height=_HEIGHT, description=said),
    )


def _betas(evaluation: Evaluation, statistics: Statistics, palette: Palette) -> Figure:
    best, estimate = statistics.calibration.best, statistics.calibration.best_beta
    used, found = evaluation.beta, None if best is None else best.value
    margins = statistics.gathered.margins
    curve = loss_by_beta(margins, used, shown=[used] if found is None else [used, found])
    at_used = statistics.figures["log_loss"].value
    x = alt.X(
        "beta:Q",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(title="beta (logarithmic)", tickCount=6, grid=False),
    )
    y = alt.Y(
        "loss:Q",
        scale=alt.Scale(zero=False, padding=12),
        axis=alt.Axis(title="mean DPO loss (nats)", tickCount=5),
    )
    layers: list[Any] = []
    interval = None if estimate is None else estimate.interval
    low, high = float(curve["beta"][0]), float(curve["beta"][-1])
    if interval is not None and interval.high > low and interval.low < high:
        band = one_row(beta=max(interval.low, low), to=min(interval.high, high))
        layers.append(
            alt.Chart(band)
            .mark_rect(color=palette.neutral, opacity=0.2)
            .encode(x=x, x2="to:Q", tooltip=alt.value(None))
        )
    layers.append(
        alt.Chart(rows_of(curve))
        .mark_line(color=palette.chosen, strokeWidth=2)
        .encode(
            x=x,
            y=y,
            tooltip=[
                alt.Tooltip("beta:Q", format=".4~g"),
                alt.Tooltip("loss:Q", title="mean loss", format=".4f"),
            ],
        )
    )
    left = found is not None and used < found
    if found is not None:
        layers += [
            rule_at(palette, x=alt.XDatum(found), colour=palette.mark),
            label(
                f"best {number(found, 3)}",
                palette,
                x=alt.XDatum(found),
                y=alt.value(12),
                align="left" if left else "right",
                dx=6 if left else -6,
                fontWeight="bold",
            ),
        ]
    layers += [
        alt.Chart(one_row(beta=used, loss=at_used))
        .mark_point(color=palette.rejected, **_DOT)
        .encode(x=x, y=y),
        label(
            f"used {used:g}",
            palette,
            x=alt.XDatum(used),
            y=alt.YDatum(at_used),
            align="center",
            dy=-16,
        ),
    ]
    if found is None or best is None:
        said = f"No beta is best: {_why_none(margins)}."
    else:
        limits = f" (interval {between(interval, _short)})" if interval is not None else ""
        said = (
            f"Beta {number(found, 3)}{limits} has the smallest DPO loss on these pairs, "
            f"{number(best.log_loss)} nats; {used:g} was used, with {number(at_used)}."
        )
    return Figure(
        name="betas",
        title="Loss by beta",
        caption=f"{said} All from one reading: the log-probs stay as they are, so this says which "
        "beta fits this policy's margins, not which one to train with.",
        description=said,
        chart=framed(layers, palette, height=_HEIGHT, description=said),
    )


def _why_none(margins: pl.DataFrame) -> str:
    low, high = ends_of(margins, "bin")
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
    name = " less ".join(judge.columns)
    x = alt.X("gap:Q", axis=alt.Axis(title=f"judge's preference ({name})"))
    y = alt.Y(
        "accuracy:Q",
        scale=alt.Scale(domain=[0.0, 1.0]),
        axis=alt.Axis(title="margin above 0", format=".0%", tickCount=6),
    )
    data = rows_of(table)
    layers = [
        rule_at(palette, y=alt.YDatum(0.5)),
        rule_at(palette, x=alt.XDatum(0.0)),
        alt.Chart(data)
        .mark_rule(color=palette.chosen, strokeWidth=2, opacity=0.6)
        .encode(x=x, y=alt.Y("accuracy_low:Q", title="margin above 0"), y2="accuracy_high:Q"),
        alt.Chart(data)
        .mark_point(color=palette.chosen, **_DOT)
        .encode(
            x=x,
            y=y,
            tooltip=[
                alt.Tooltip("gap_low:Q", title="preference from", format=".3~g"),
                alt.Tooltip("gap_high:Q", title="to", format=".3~g"),
                alt.Tooltip("accuracy:Q", title="margin above 0", format=".1%"),
                alt.Tooltip("n_pairs:Q", title="pairs", format=","),
            ],
        ),
    ]
    figures = {"rank correlation": judge.spearman, "AUC": judge.auc}
    said = "; ".join(f"{n} {with_interval(e, _short)}" for n, e in figures.items() if e is not None)
    n = int(table["n_pairs"].sum())
    description = (
        f"Agreement with the judge's scores: {said}." if said else "Agreement with the judge."
    )
    return Figure(
        name="judge",
        title="Agreement with the judge",
        caption=f"{description} Each point is a group of the {counted(n, 'pair')} with a score, "
        "with the interval of its share; agreement rises from the lower left to the upper right.",
        description=description,
        chart=framed(layers, palette, height=_HEIGHT, description=description),
    )
