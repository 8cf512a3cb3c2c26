"""Charts of three shapes: intervals in rows, a histogram around zero, a plane with a diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import altair as alt
import polars as pl

from dpo_pipeline.columns import N_PAIRS
from dpo_pipeline.statistics import counted, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """CSS colours by what they stand for."""

    paper: str  # behind everything
    panel: str  # behind figures that stand out
    ink: str  # text
    muted: str  # text of second rank
    grid: str  # lines that may be overlooked
    chosen: str  # the chosen completion, margins above 0, policy B
    rejected: str  # the rejected completion, margins below 0, policy A
    neutral: str  # neither: ties, what chance would give
    mark: str  # what is pointed at: a mean, the best beta


LIGHT: Final = Palette(
    paper="#ffffff",
    panel="#f5f6f8",
    ink="#1a1d21",
    muted="#59616b",
    grid="#dfe3e8",
    chosen="#0a64a4",
    rejected="#d9600a",
    neutral="#7a838e",
    mark="#1a1d21",
)
DARK: Final = Palette(
    paper="#14171b",
    panel="#1d2126",
    ink="#e9ebee",
    muted="#a4acb6",
    grid="#31373f",
    chosen="#5cb0ea",
    rejected="#f0913e",
    neutral="#858e99",
    mark="#e9ebee",
)
PAGE: Final = Palette(**{role: f"var(--{role})" for role in asdict(LIGHT)})
"""For charts in the page: they follow the reader's light or dark mode, and print light."""


def custom_properties(palette: Palette) -> str:
    """Return the CSS declarations that `PAGE` refers to."""
    return " ".join(f"--{role}: {colour};" for role, colour in asdict(palette).items())


FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
WIDTH: Final = 640
"""Pixels of a chart by itself; in the page it is as wide as there is room."""
_DIGITS: Final = 6
"""Significant digits of the numbers in a chart."""
_LABEL: Final = 170
"""Pixels of a row's label; the tooltip has all of it."""

Chart = alt.LayerChart


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart with its words.

    Attributes:
        name: Key, and the anchor in the page.
        title: What it shows.
        caption: How to read it, and of how many pairs it is.
        description: What it shows, for who cannot see it.
        chart: An altair chart.
    """

    name: str
    title: str
    caption: str
    description: str
    chart: Chart


def rows_of(table: pl.DataFrame) -> alt.InlineData:
    """Return a table as data of a chart; what is not finite is null there."""
    numbers = pl.selectors.float()
    finite = pl.when(numbers.is_finite()).then(numbers.round_sig_figs(_DIGITS))
    return alt.InlineData(values=table.with_columns(finite.name.keep()).to_dicts())


def one_row(**values: Any) -> alt.InlineData:
    """Return data of one row."""
    return rows_of(pl.DataFrame([values]))


def framed(layers: Sequence[Any], palette: Palette, *, height: int, description: str) -> Chart:
    """Return layers as one chart in the colours of a palette."""
    text: dict[str, Any] = {"labelColor": palette.muted, "titleColor": palette.muted}
    lines: dict[str, Any] = {"domainColor": palette.neutral, "tickColor": palette.neutral}
    chart: Chart = (
        alt.layer(*layers)
        .properties(width=WIDTH, height=height, description=description)
        .configure(font=FONT, background=palette.paper)
        .configure_view(stroke=None)
        .configure_axis(
            **text,
            **lines,
            gridColor=palette.grid,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=10,
            labelLimit=_LABEL,
            labelOverlap=True,
            labelSeparation=6,
        )
        .configure_legend(**text, labelFontSize=12, titleFontSize=12, titleFontWeight="normal")
        .configure_title(color=palette.ink, fontSize=15, anchor="start")
        .configure_text(color=palette.ink, fontSize=12)
    )
    return chart


def label(text: str, palette: Palette, *, colour: str | None = None, **place: Any) -> Any:
    """Return a text at a place: `x`, `y` and options of `mark_text`."""
    channels = {key: place.pop(key) for key in ("x", "y") if key in place}
    mark: dict[str, Any] = {"fontSize": 12, "color": colour or palette.ink, **place}
    return (
        alt.Chart(one_row(text=text)).mark_text(**mark).encode(text=alt.Text("text:N"), **channels)
    )


def rule_at(palette: Palette, *, colour: str | None = None, **channels: Any) -> Any:
    """Return a dashed line across the chart at an x or a y."""
    mark: dict[str, Any] = {
        "strokeDash": [4, 3],
        "color": colour or palette.neutral,
        "strokeWidth": 1.5,
    }
    return alt.Chart(one_row(none=None)).mark_rule(**mark).encode(**channels)


_ROW: Final = 22
"""Pixels of a row of a chart of intervals."""


def unique(labels: Sequence[str]) -> list[str]:
    """Return labels with a number after those that occurred before."""
    taken: set[str] = set()
    made = []
    for text in labels:
        new, n = text, 2
        while new in taken:
            new, n = f"{text} [{n}]", n + 1
        taken.add(new)
        made.append(new)
    return made


def intervals(
    table: pl.DataFrame,
    palette: Palette,
    *,
    axis: str,
    percent: bool,
    chance: float,
    description: str,
) -> Chart:
    """Return a chart of one figure a row, with its interval, against a line.

    A figure whose interval lies above the line has the colour of the chosen completion, one below
    it that of the rejected, and is neutral else.

    Args:
        table: `label`, `value`, `low`, `high`, `n_pairs`, in the order of the rows.
        palette: The colours.
        axis: Title of the values.
        percent: Whether values are shares.
        chance: Where the line is.
        description: What the chart shows, in words.
    """
    written = ".1%" if percent else ".4g"
    data = rows_of(
        table.with_columns(
            label=pl.Series(unique(table["label"].to_list()), dtype=pl.String),
            side=pl.when(pl.col("low") > chance)
            .then(pl.lit("above"))
            .when(pl.col("high") < chance)
            .then(pl.lit("below"))
            .otherwise(pl.lit("open")),
        )
    )
    colour = alt.Color(
        "side:N",
        scale=alt.Scale(
            domain=["above", "below", "open"],
            range=[palette.chosen, palette.rejected, palette.neutral],
        ),
        legend=None,
    )
    tooltip = [
        alt.Tooltip("label:N", title="of"),
        alt.Tooltip("value:Q", title=axis, format=written),
        alt.Tooltip("low:Q", title="from", format=written),
        alt.Tooltip("high:Q", title="to", format=written),
        alt.Tooltip("n_pairs:Q", title="pairs", format=","),
    ]
    scale = alt.Scale(domain=[0, 1]) if percent else alt.Scale(zero=False, nice=True)
    x = alt.X(
        "value:Q",
        scale=scale,
        axis=alt.Axis(
            title=axis,
            tickCount=6,
            format=".0%" if percent else alt.Undefined,
        ),
    )
    y = alt.Y(
        "label:N",
        sort=None,
        axis=alt.Axis(title=None, ticks=False, domain=False, grid=False, labelPadding=10),
    )
    base = alt.Chart(data).encode(y=y, color=colour, tooltip=tooltip)
    layers = [
        rule_at(palette, x=alt.XDatum(chance)),
        base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=x),
    ]
    height = max(3, table.height) * _ROW
    return framed(layers, palette, height=height, description=description)


def signed_histogram(
    bars: pl.DataFrame,
    palette: Palette,
    *,
    axis: str,
    below: str,
    above: str,
    mean: float,
    ties: int,
    description: str,
) -> Chart:
    """Return a histogram in two colours that meet at zero.

    Args:
        bars: `lower`, `upper`, `n_pairs`; zero is an edge.
        palette: The colours.
        axis: Title of the values.
        below: What stands above the bars below zero.
        above: What stands above the others.
        mean: What is marked.
        ties: Pairs at exactly zero, which no bar has.
        description: What the chart shows, in words.
    """
    side = pl.when(pl.col("lower") < 0.0).then(pl.lit("below")).otherwise(pl.lit("above"))
    layers: list[Any] = [
        alt.Chart(rows_of(bars.with_columns(side=side)))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("lower:Q", bin="binned", axis=alt.Axis(title=axis)),
            x2="upper:Q",
            y=alt.Y(f"{N_PAIRS}:Q", axis=alt.Axis(title="pairs", tickCount=5)),
            color=_two_colours(palette),
            tooltip=[
                alt.Tooltip("lower:Q", title="from", format=".4~g"),
                alt.Tooltip("upper:Q", title="to", format=".4~g"),
                alt.Tooltip(f"{N_PAIRS}:Q", title="pairs, about", format=",.0f"),
            ],
        ),
        rule_at(palette, x=alt.XDatum(0.0), colour=palette.ink),
        rule_at(palette, x=alt.XDatum(mean), colour=palette.mark),
        label(
            f"mean {number(mean, 3)}",
            palette,
            x=alt.XDatum(mean),
            y=alt.value(-6),
            align="left" if mean >= 0.0 else "right",
            dx=4 if mean >= 0.0 else -4,
            fontWeight="bold",
        ),
    ]
    ends: list[dict[str, Any]] = [
        {"text": below, "x": alt.value(0), "align": "left", "colour": palette.rejected},
        {"text": above, "x": alt.value("width"), "align": "right", "colour": palette.chosen},
    ]
    layers += [
        label(end.pop("text"), palette, y=alt.value(-24), fontWeight="bold", **end) for end in ends
    ]
    if ties:
        layers += _ties(ties, palette)
    return framed(layers, palette, height=240, description=description)


def plane(
    cells: pl.DataFrame,
    palette: Palette,
    *,
    x: str,
    y: str,
    title: str,
    above: str,
    below: str,
    description: str,
) -> Chart:
    """Return the density of pairs over two values, in two colours that meet where they are equal.

    Args:
        cells: `{x}_low`, `{x}_high`, `{y}_low`, `{y}_high`, `n_pairs`.
        palette: The colours.
        x: Name of the value to the right.
        y: Name of the value upward.
        title: Of an axis, with `{}` for the name.
        above: What is so where y is larger.
        below: What is so where x is larger.
        description: What the chart shows, in words.
    """
    middle_x, middle_y = (pl.col(f"{name}_low") + pl.col(f"{name}_high") for name in (x, y))
    side = pl.when(middle_y > middle_x).then(pl.lit("above")).otherwise(pl.lit("below"))
    ends = cells.select(
        low=pl.max_horizontal(pl.col(f"{x}_low").min(), pl.col(f"{y}_low").min()),
        high=pl.min_horizontal(pl.col(f"{x}_high").max(), pl.col(f"{y}_high").max()),
    ).row(0)
    scale = alt.Scale(zero=False, nice=False)
    axes = {name: alt.Axis(title=title.format(name), grid=False, tickCount=8) for name in (x, y)}
    to_x = alt.X(f"{x}_low:Q", axis=axes[x], scale=scale)
    to_y = alt.Y(f"{y}_low:Q", axis=axes[y], scale=scale)
    squares = (
        alt.Chart(rows_of(cells.with_columns(side=side)))
        .mark_rect(stroke=None)
        .encode(
            x=to_x,
            x2=f"{x}_high:Q",
            y=to_y,
            y2=f"{y}_high:Q",
            color=_two_colours(palette),
            opacity=alt.Opacity(
                f"{N_PAIRS}:Q", scale=alt.Scale(type="sqrt", range=[0.06, 1]), legend=None
            ),
            tooltip=[
                tip
                for name in (x, y)
                for tip in (
                    alt.Tooltip(f"{name}_low:Q", title=f"{name} from", format=".3~g"),
                    alt.Tooltip(f"{name}_high:Q", title="to", format=".3~g"),
                )
            ]
            + [alt.Tooltip(f"{N_PAIRS}:Q", title="pairs, about", format=",.1f")],
        )
    )
    diagonal = alt.Chart(rows_of(pl.DataFrame({f"{x}_low": ends, f"{y}_low": ends})))
    low: dict[str, Any] = {"x": alt.value("width"), "y": alt.value("height"), "dx": -6, "dy": -8}
    layers = [
        squares,
        rule_at(palette, x=alt.XDatum(0.0)),
        rule_at(palette, y=alt.YDatum(0.0)),
        diagonal.mark_line(color=palette.ink, strokeWidth=1.5, strokeDash=[4, 3]).encode(
            x=to_x, y=to_y
        ),
        label(above, palette, x=alt.value(6), y=alt.value(14), align="left"),
        label(below, palette, align="right", **low),
    ]
    return framed(layers, palette, height=360, description=description)


def _two_colours(palette: Palette) -> alt.Color:
    scale = alt.Scale(domain=["below", "above"], range=[palette.rejected, palette.chosen])
    return alt.Color("side:N", scale=scale, legend=None)


def _ties(ties: int, palette: Palette) -> list[Any]:
    data = rows_of(pl.DataFrame({"at": [0.0], "bottom": [0], N_PAIRS: [ties]}))
    bar = (
        alt.Chart(data)
        .mark_rule(strokeWidth=4, color=palette.neutral)
        .encode(
            x=alt.X("at:Q"),
            y=alt.Y("bottom:Q"),
            y2=f"{N_PAIRS}:Q",
            tooltip=[alt.Tooltip(f"{N_PAIRS}:Q", title="ties", format=",")],
        )
    )
    place: dict[str, Any] = {"x": alt.XDatum(0.0), "y": alt.value(12), "align": "right", "dx": -8}
    return [bar, label(counted(ties, "tie"), palette, **place)]
