"""Charts of three shapes: intervals in rows, a histogram around zero, a plane with a diagonal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import altair as alt
import polars as pl

from dpo_pipeline.columns import N_PAIRS
from dpo_pipeline.report.page_tables import Table
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


_LIGHT_AND_DARK: Final = {
    "paper": ("#ffffff", "#14171b"),
    "panel": ("#f5f6f8", "#1d2126"),
    "ink": ("#1a1d21", "#e9ebee"),
    "muted": ("#59616b", "#a4acb6"),
    "grid": ("#dfe3e8", "#31373f"),
    "chosen": ("#0a64a4", "#5cb0ea"),
    "rejected": ("#d9600a", "#f0913e"),
    "neutral": ("#7a838e", "#858e99"),
    "mark": ("#1a1d21", "#e9ebee"),
}
LIGHT: Final = Palette(**{role: light for role, (light, _) in _LIGHT_AND_DARK.items()})
DARK: Final = Palette(**{role: dark for role, (_, dark) in _LIGHT_AND_DARK.items()})
PAGE: Final = Palette(**{role: f"var(--{role})" for role in _LIGHT_AND_DARK})
"""For charts in the page: they follow the reader's light or dark mode, and print light."""


def custom_properties(palette: Palette) -> str:
    """Return the CSS declarations that `PAGE` refers to."""
    return " ".join(f"--{role}: {colour};" for role, colour in asdict(palette).items())


FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
WIDTH: Final = 640
"""Pixels of a chart by itself; in the page it is as wide as there is room."""
SQUARE: Final = 400
"""Pixels of the sides of a chart whose axes have one scale."""
_DIGITS: Final = 6
"""Significant digits of the numbers in a chart."""
AT_X: Final[Any] = alt.XValue
AT_Y: Final[Any] = alt.YValue
"""Places in pixels. `alt.value` has Altair search all its schemas for what it may be."""
_LABEL: Final = 170
"""Pixels of a row's label; the tooltip has all of it."""


class Chart(alt.LayerChart):
    """Layers that a notebook shows as a picture, unless another renderer was chosen.

    Altair's own way loads its scripts from the network.
    """

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> Any:
        if alt.renderers.active not in {"default", "html"}:
            return super()._repr_mimebundle_(*args, **kwargs)
        from vl_convert import vegalite_to_svg

        return {"image/svg+xml": vegalite_to_svg(self.to_dict()), "text/plain": repr(self)}


DASHED: Final[Mapping[str, Any]] = {"strokeDash": [4, 3], "strokeWidth": 1.5}
Tip = tuple[str, str]
"""Title and format of a number in a tooltip."""
COUNT: Final = ","
"""Format of a number of pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart with its words."""

    name: str  # key, and the anchor in the page
    title: str
    caption: str  # how to read it, and of how many pairs it is
    description: str  # what it shows, for readers who cannot see it
    opening: str = ""  # stands before the description where the chart is not in sight
    chart: Chart  # without title and description
    is_square: bool = False  # its axes have one scale, for a diagonal
    table: Table | None = None  # of the same numbers, below the chart

    @classmethod
    def of(
        cls, name: str, title: str, said: str, reading: str, chart: Chart, **more: Any
    ) -> Figure:
        """Return a chart described by what is said of it; the caption says how to read it too."""
        caption = said + reading
        return cls(name=name, title=title, caption=caption, description=said, chart=chart, **more)

    def titled(self) -> Chart:
        """Return the chart with its title and description, to stand by itself."""
        titled: Chart = self.chart.properties(title=self.title, description=self.description)
        return titled

    def spec(self) -> dict[str, Any]:
        """Return the Vega-Lite specification of the chart, for a page as wide as there is room."""
        chart = self.chart.properties(description=self.description)
        # Tests hold the charts to Vega-Lite's schema: pages need not be checked again.
        spec: dict[str, Any] = chart.to_dict(validate=False)
        if self.is_square:
            size = {"width": "container", "height": "container"}
            return spec | size | {"autosize": {"type": "fit", "contains": "padding"}}
        return spec | {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}


def rows_of(table: pl.DataFrame) -> alt.InlineData:
    """Return a table as data of a chart; what is not finite is null there."""
    numbers = pl.selectors.float()
    finite = pl.when(numbers.is_finite()).then(numbers.round_sig_figs(_DIGITS))
    # A tuple: each step of a chart makes a deep copy of all lists in it.
    return alt.InlineData(values=tuple(table.with_columns(finite.name.keep()).to_dicts()))


def one_row(**values: Any) -> alt.InlineData:
    """Return data of one row."""
    return rows_of(pl.DataFrame([values]))


def framed(layers: Sequence[Any], palette: Palette, *, height: int, width: int = WIDTH) -> Chart:
    """Return layers as one chart in the colours of a palette."""
    text: dict[str, Any] = {"labelColor": palette.muted, "titleColor": palette.muted}
    text |= {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    config = alt.Config(
        font=FONT,
        background=palette.paper,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            **text,
            domainColor=palette.neutral,
            tickColor=palette.neutral,
            gridColor=palette.grid,
            titlePadding=10,
            labelLimit=_LABEL,
            labelOverlap=True,
            labelFlush=False,  # the labels of the ends stand under their ticks
            labelSeparation=6,
        ),
        legend=alt.LegendConfig(**text),
        title=alt.TitleConfig(color=palette.ink, fontSize=15, anchor="start"),
        text=alt.MarkConfig(color=palette.ink, fontSize=12),
    )
    # In one step: each `configure_...` would copy all layers.
    chart: Chart = Chart(layer=list(layers), width=width, height=height, config=config)
    return chart


def label(text: str, palette: Palette, *, colour: str | None = None, **place: Any) -> Any:
    """Return a text at a place: `x`, `y` and options of `mark_text`."""
    channels = {key: place.pop(key) for key in ("x", "y") if key in place}
    mark: dict[str, Any] = {"fontSize": 12, "color": colour or palette.ink, **place}
    return (
        alt.Chart(one_row(text=text)).mark_text(**mark).encode(text=alt.Text("text:N"), **channels)
    )


def haloed(text: str, palette: Palette, **more: Any) -> list[Any]:
    """Return a text with paper around it, so that lines end before its letters."""
    paper: dict[str, Any] = {"stroke": palette.paper, "strokeWidth": 5, "strokeJoin": "round"}
    return [label(text, palette, **more, **paper), label(text, palette, **more)]


def corners(above: str, below: str, palette: Palette, *, margin: int, colour: str) -> list[Any]:
    """Return texts in the upper left and the lower right corner, on either side of a diagonal."""
    right: dict[str, Any] = {"x": AT_X("width"), "y": AT_Y("height")}
    return [
        *haloed(above, palette, colour=colour, x=AT_X(margin), y=AT_Y(14), align="left"),
        *haloed(below, palette, colour=colour, **right, align="right", dx=-margin, dy=-14),
    ]


def rule_at(
    palette: Palette, *, colour: str | None = None, clip: Any = alt.Undefined, **channels: Any
) -> Any:
    """Return a dashed line across the chart at an x or a y."""
    mark: dict[str, Any] = {"color": colour or palette.neutral, "clip": clip, **DASHED}
    return alt.Chart(one_row(none=None)).mark_rule(**mark).encode(**channels)


def tips(of: Mapping[str, Tip]) -> list[alt.Tooltip]:
    """Return a tooltip of numbers: column to title and format."""
    return [
        alt.Tooltip(f"{name}:Q", title=title, format=form) for name, (title, form) in of.items()
    ]


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
    chance: float,
    domain: tuple[float, float] | None = None,
) -> Chart:
    """Return a chart of one figure a row (of `interval_rows`) against a line at `chance`.

    A figure whose interval lies above the line has the colour of the chosen completion, one below
    it that of the rejected, and is neutral else. What lies beyond the domain is cut off; without
    one, values are shares. A column `side` of the table (above, below, open) decides instead.
    """
    written = ".1%" if domain is None else ".4g"
    side: pl.Expr = (
        pl.when(pl.col("low") > chance)
        .then(pl.lit("above"))
        .when(pl.col("high") < chance)
        .then(pl.lit("below"))
        .otherwise(pl.lit("open"))
    )
    colours = {"above": palette.chosen, "below": palette.rejected, "open": palette.neutral}
    labels = pl.Series(unique(table["label"].to_list()), dtype=pl.String)
    numbers = {"value": (axis, written), "low": ("from", written), "high": ("to", written)}
    tooltip = [alt.Tooltip("label:N", title="of"), *tips({**numbers, N_PAIRS: ("pairs", COUNT)})]
    y = alt.Y("label:N", sort=None).axis(
        title=None, ticks=False, domain=False, grid=False, labelPadding=10
    )
    if "side" in table.columns:
        side = pl.col("side").fill_null(side)
    base = alt.Chart(rows_of(table.with_columns(label=labels, side=side))).encode(
        y=y, color=_by_side(colours), tooltip=tooltip
    )
    clip: Any = alt.Undefined
    line, low, value = alt.XDatum(chance), alt.X("low:Q"), alt.X("value:Q")
    if domain is None:
        value = value.axis(title=axis, tickCount=6, format=".0%").scale(domain=[0, 1])
    else:
        clip, scale = True, alt.Scale(domain=list(domain), nice=False)
        line, low = alt.XDatum(chance, scale=scale), alt.X("low:Q", scale=scale)
        value = alt.X("value:Q", scale=scale).axis(title=axis, tickCount=6)
    layers = [
        rule_at(palette, x=line, clip=clip),
        base.mark_rule(strokeWidth=2.5, strokeCap="round", clip=clip).encode(x=low, x2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1, clip=clip).encode(x=value),
    ]
    return framed(layers, palette, height=max(3, table.height) * _ROW)


PAIRS_FOR_SCALE: Final = 30
"""Pairs of a subset from which its interval widens the scale of the chart."""


def domain_of(rows: pl.DataFrame) -> tuple[float, float]:
    """Return the ends of the scale of differences: a tiny subset must not flatten the rest.

    The first row is of all pairs.
    """
    wide = rows.filter((pl.col("n_pairs") >= PAIRS_FOR_SCALE) | (pl.int_range(pl.len()) == 0))
    ends = [value for name in ("value", "low", "high") for value in wide[name].drop_nulls()]
    least, most = min(0.0, *ends), max(0.0, *ends)
    room = 0.03 * (most - least) or 1.0
    return least - room, most + room


def trend(
    table: pl.DataFrame,
    palette: Palette,
    lines: Mapping[str, tuple[str, str]],
    *,
    x: str,
    axis: str,
    written: str,
    height: int,
) -> Chart:
    """Return lines over `x` with their bands: column to title and colour.

    A column has its band in those with `_low` and `_high`. `written` is the format of the numbers.
    """
    place = alt.X(f"{x}:Q").axis(title=x, tickCount=6, format=",d").scale(nice=False)
    data = rows_of(table)
    layers: list[Any] = []
    for name, (title, colour) in lines.items():
        low, value = (
            alt.Y(f"{column}:Q").scale(zero=False).axis(title=axis, tickCount=5, format=written)
            for column in (f"{name}_low", name)
        )
        numbers = {name: (title, written), f"{name}_low": ("from", written)}
        numbers |= {f"{name}_high": ("to", written)}
        dots = alt.OverlayMarkDef(color=colour, size=30, filled=True, opacity=1)
        layers += [
            alt.Chart(data)
            .mark_area(color=colour, opacity=0.18)
            .encode(x=place, y=low, y2=f"{name}_high:Q"),
            alt.Chart(data)
            .mark_line(color=colour, strokeWidth=1.5, point=dots)
            .encode(x=place, y=value, tooltip=tips({x: (x, ",d"), **numbers})),
        ]
    return framed(layers, palette, height=height)


def signed_histogram(
    bars: pl.DataFrame,
    palette: Palette,
    *,
    axis: str,
    below: str,
    above: str,
    mean: float,
    ties: int,
) -> Chart:
    """Return a histogram of `histogram_bars` in two colours that meet at zero.

    `below` and `above` stand over the bars of either sign. No bar has the ties, which lie at zero.
    """
    side = pl.when(pl.col("lower") < 0.0).then(pl.lit("below")).otherwise(pl.lit("above"))
    tooltip = {"lower": ("from", ".4~g"), "upper": ("to", ".4~g")}
    tooltip[N_PAIRS] = ("pairs, about", ",.0f")
    # Each in a line of its own, so that they do not meet where the page is narrow.
    left: dict[str, Any] = {"x": AT_X(0), "y": AT_Y(-42)}
    right: dict[str, Any] = {"x": AT_X("width"), "y": AT_Y(-24)}
    beside: dict[str, Any] = {"y": AT_Y(-6), "fontWeight": "bold"}
    beside |= {"align": "left", "dx": 4} if mean >= 0.0 else {"align": "right", "dx": -4}
    layers: list[Any] = [
        alt.Chart(rows_of(bars.with_columns(side=side)))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("lower:Q", bin="binned").axis(title=axis),
            x2="upper:Q",
            y=alt.Y(f"{N_PAIRS}:Q").axis(title="pairs", tickCount=5),
            color=_two_colours(palette),
            tooltip=tips(tooltip),
        ),
        rule_at(palette, x=alt.XDatum(0.0), colour=palette.ink),
        rule_at(palette, x=alt.XDatum(mean), colour=palette.mark),
        label(f"mean {number(mean, 3)}", palette, x=alt.XDatum(mean), **beside),
        label(below, palette, colour=palette.rejected, **left, align="left", fontWeight="bold"),
        label(above, palette, colour=palette.chosen, **right, align="right", fontWeight="bold"),
    ]
    if ties:
        data = rows_of(pl.DataFrame({"at": [0.0], "bottom": [0], N_PAIRS: [ties]}))
        place: dict[str, Any] = {"x": alt.XDatum(0.0), "y": AT_Y(12)}
        layers += [
            alt.Chart(data)
            .mark_rule(strokeWidth=4, color=palette.neutral)
            .encode(
                x="at:Q", y="bottom:Q", y2=f"{N_PAIRS}:Q", tooltip=tips({N_PAIRS: ("ties", COUNT)})
            ),
            label(counted(ties, "tie"), palette, **place, align="right", dx=-8),
        ]
    return framed(layers, palette, height=240)


def plane(
    cells: pl.DataFrame,
    palette: Palette,
    *,
    x: str,
    y: str,
    title: str,
    above: str,
    below: str,
    names: Mapping[str, str] | None = None,
) -> Chart:
    """Return the `density` of pairs over two values, in two colours that meet where they are equal.

    `title` is of an axis, with `{}` for the value's name (in `names`, if it has another than its
    column); `above` says what is so where y is
    larger, `below` where x is.
    """
    called = {x: x, y: y} | dict(names or {})
    middle_x, middle_y = (pl.col(f"{name}_low") + pl.col(f"{name}_high") for name in (x, y))
    side = pl.when(middle_y > middle_x).then(pl.lit("above")).otherwise(pl.lit("below"))
    # Both axes have the same ends: with one scale the diagonal goes from corner to corner.
    ends = cells.select(
        low=pl.min_horizontal(pl.col(f"{x}_low").min(), pl.col(f"{y}_low").min()),
        high=pl.max_horizontal(pl.col(f"{x}_high").max(), pl.col(f"{y}_high").max()),
    ).row(0)
    to_x, to_y = (
        channel(f"{name}_low:Q", scale=alt.Scale(domain=list(ends), nice=False)).axis(
            title=title.format(called[name]), grid=False, tickCount=8
        )
        for channel, name in ((alt.X, x), (alt.Y, y))
    )
    edges = {
        f"{name}_{end}": (title, ".3~g")
        for name in (x, y)
        for end, title in (("low", f"{called[name]} from"), ("high", "to"))
    }
    squares = (
        alt.Chart(rows_of(cells.with_columns(side=side)))
        .mark_rect(stroke=None)
        .encode(
            x=to_x,
            x2=f"{x}_high:Q",
            y=to_y,
            y2=f"{y}_high:Q",
            color=_two_colours(palette),
            opacity=alt.Opacity(f"{N_PAIRS}:Q", legend=None).scale(type="sqrt", range=[0.3, 1]),
            tooltip=tips({**edges, N_PAIRS: ("pairs, about", ",.1f")}),
        )
    )
    diagonal = alt.Chart(rows_of(pl.DataFrame({f"{x}_low": ends, f"{y}_low": ends})))
    layers = [
        squares,
        rule_at(palette, x=alt.XDatum(0.0)),
        rule_at(palette, y=alt.YDatum(0.0)),
        diagonal.mark_line(color=palette.ink, **DASHED).encode(x=to_x, y=to_y),
        *corners(above, below, palette, margin=6, colour=palette.ink),
    ]
    return framed(layers, palette, height=SQUARE, width=SQUARE)


def _by_side(colours: Mapping[str, str]) -> alt.Color:
    colour = alt.Color("side:N", legend=None)
    return colour.scale(domain=[*colours], range=[*colours.values()])


def _two_colours(palette: Palette) -> alt.Color:
    return _by_side({"below": palette.rejected, "above": palette.chosen})
