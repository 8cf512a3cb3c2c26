"""The report of a comparison, top down: which is better, where, which pairs, how it was made."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import REWARD_ACCURACY, REWARD_MARGIN
from dpo_pipeline.comparison import REWARD_ACCURACY_HALF, Comparison, Side
from dpo_pipeline.defaults import POWER
from dpo_pipeline.report.chart_data import BARS, density, ends_of, grid_over, histogram_bars
from dpo_pipeline.report.charts import (
    LIGHT,
    PAGE,
    Chart,
    Figure,
    Palette,
    intervals,
    plane,
    signed_histogram,
)
from dpo_pipeline.report.evaluation_charts import SUBSETS_DRAWN, subset_labels, with_sizes
from dpo_pipeline.report.markup import Column, Content, Markup, column_of, element, facts, table
from dpo_pipeline.report.page import Section, Tile, figure, page
from dpo_pipeline.statistics import (
    between,
    count,
    counted,
    number,
    p_equation,
    p_value,
    points,
    share,
)

PAIRS_FOR_SCALE: Final = 30
"""Pairs of a subset from which its interval widens the scale of the chart."""


def figures_of(comparison: Comparison, palette: Palette) -> Iterator[Figure]:
    """Yield the charts for which there is something to draw, in the order of the report."""
    yield _differences(comparison, palette)
    yield _changes(comparison, palette)
    yield _margins(comparison, palette)


def _differences(comparison: Comparison, palette: Palette) -> Figure:
    overall = comparison.differences[REWARD_ACCURACY]
    interval = overall.estimate.interval
    rows = pl.DataFrame(
        {
            "label": ["all"],
            "value": [overall.estimate.value],
            "low": [None if interval is None else interval.low],
            "high": [None if interval is None else interval.high],
            "n_pairs": [comparison.n_valid],
        },
        schema_overrides={"low": pl.Float64, "high": pl.Float64},
    )
    note = ""
    subsets = comparison.subsets
    if subsets is not None:
        table = subsets.select(
            label=pl.Series(subset_labels(subsets, comparison.by), dtype=pl.String),
            value="accuracy_difference",
            low="accuracy_low",
            high="accuracy_high",
            n_pairs="n_valid",
        ).filter(pl.col("n_pairs") > 0)
        drawn = table
        if table.height > SUBSETS_DRAWN:
            largest = pl.col("n_pairs").rank("ordinal", descending=True) <= SUBSETS_DRAWN
            drawn = table.filter(largest)
            note = (
                f" Drawn are the {SUBSETS_DRAWN} largest of {count(table.height)} subsets; the "
                "table has them all."
            )
        rows = pl.concat([rows, drawn], how="vertical_relaxed")
    rows = rows.with_columns(pl.col("value", "low", "high") * 100.0)
    domain = domain_of(rows)
    cut = rows.filter((pl.col("low") < domain[0]) | (pl.col("high") > domain[1])).height
    if cut:
        note += f" Intervals of fewer than {PAIRS_FOR_SCALE} pairs are cut off at the edges."
    rows = with_sizes(rows)
    least, most = ends_of(rows, "value")
    by = f", by {', '.join(comparison.by)}" if comparison.by else ""
    said = (
        f"Differences of accuracy, B minus A{by}: from {number(least, 3)} to "
        f"{number(most, 3)} points."
    )
    return Figure(
        name="differences",
        title="Difference of accuracy",
        caption=f"{said} Each has its {100.0 * comparison.level:g}% interval, and its pairs in "
        f"brackets. Blue is B better, orange A better, grey not told apart.{note}",
        description=said,
        chart=_within(
            intervals(
                rows,
                palette,
                axis="accuracy of B minus that of A (points)",
                percent=False,
                chance=0.0,
                description=said,
            ),
            domain,
        ),
    )


def domain_of(rows: pl.DataFrame) -> tuple[float, float]:
    """Return the ends of the scale of differences: a tiny subset must not flatten the rest.

    Args:
        rows: `value`, `low` and `high`, which can be null, in points, and `n_pairs`; the first
            row is of all pairs.
    """
    wide = rows.filter((pl.col("n_pairs") >= PAIRS_FOR_SCALE) | (pl.int_range(pl.len()) == 0))
    ends = [value for name in ("value", "low", "high") for value in wide[name].drop_nulls()]
    least, most = min(0.0, *ends), max(0.0, *ends)
    room = 0.03 * (most - least) or 1.0
    return least - room, most + room


def _within(chart: Chart, domain: tuple[float, float]) -> Chart:
    """Return a chart of intervals with a scale of its own; what lies beyond is cut off."""
    for layer in chart.layer:
        # The mark is a name where it has no property, and then a rule of the whole height.
        if not isinstance(layer.mark, str):
            layer.mark.clip = True
        layer.encoding.x.scale = {"domain": list(domain), "nice": False}
    return chart


def _changes(comparison: Comparison, palette: Palette) -> Figure:
    changes = comparison.changes
    grid = grid_over(changes, BARS)
    n = comparison.n_valid
    # The bin around zero holds changes that are lost in rounding as well: they count as none.
    counts = {
        name: int(changes.filter(where)["n_pairs"].sum())
        for name, where in (("fell", pl.col("bin") < 0), ("rose", pl.col("bin") > 0))
    }
    same = n - sum(counts.values())
    fell, rose = (share(each / n) for each in counts.values())
    mean = comparison.differences[REWARD_MARGIN].estimate.value
    said = (
        f"The margin fell from A to B in {fell} of {counted(n, 'pair')} and rose in {rose}; the "
        f"mean change is {number(mean)} nats."
    )
    return Figure(
        name="changes",
        title="Change of the margin",
        caption=f"{said} Bars are {number(grid.step, 2)} nats wide; the outermost hold what lies "
        "beyond.",
        description=f"Histogram. {said}",
        chart=signed_histogram(
            histogram_bars(changes, grid, same),
            palette,
            axis="margin of B minus that of A (nats)",
            below=f"fell: {fell}",
            above=f"rose: {rose}",
            mean=mean,
            ties=same,
            description=said,
        ),
    )


def _margins(comparison: Comparison, palette: Palette) -> Figure:
    table = comparison.margins.rename({"a_bin": "A_bin", "b_bin": "B_bin"})
    m = comparison.mcnemar
    said = (
        f"Both have {counted(m.both_right, 'pair')} right, only A {count(m.only_a)}, only B "
        f"{count(m.only_b)}, neither {count(m.neither)}."
    )
    return Figure(
        name="margins",
        title="Margins of A and B",
        caption=f"The stronger its colour, the more of the {counted(comparison.n_valid, 'pair')} a "
        "cell holds. Upper left of the crossed lines are pairs that only B has right, lower right "
        f"those that only A has. Above the dashed diagonal B has the larger margin. {said}",
        description=f"Density of the margins of B against those of A. {said}",
        chart=plane(
            density(table, x="A", y="B"),
            palette,
            x="A",
            y="B",
            title="margin of {} (nats)",
            above="B larger",
            below="A larger",
            description=said,
        ),
    )


_WORDS: Final = {
    "reward_accuracy": "reward accuracy; a tie counts as wrong",
    "reward_accuracy_half": "reward accuracy; a tie counts half",
    "loss": "mean loss, nats",
    "reward_margin": "mean margin, nats",
    "chosen_reward": "mean chosen reward, nats",
    "rejected_reward": "mean rejected reward, nats",
}


def charts_of(comparison: Comparison) -> dict[str, Any]:
    """Return the charts by name, as altair objects with titles, in light colours."""
    return {
        each.name: each.chart.properties(title=each.title) for each in figures_of(comparison, LIGHT)
    }


def page_of(comparison: Comparison) -> str:
    """Return the report as one HTML document."""
    verdict, loss = comparison.verdict, comparison.loss_verdict
    objective = comparison.objective
    return page(
        title=f"A: {comparison.a.source}; B: {comparison.b.source}; {objective} loss, beta "
        f"{objective.beta:g}",
        verdict=f"{verdict[:1].upper()}{verdict[1:]}.",
        lead=None if loss is None else element("p", f"{loss}.", class_="lead"),
        tiles=list(_tiles(comparison)),
        sections=list(_sections(comparison)),
        made_by=f"Made by dpo_pipeline {version('dpo_pipeline')}. This page holds all it shows and "
        "loads nothing.",
    )


def _tiles(comparison: Comparison) -> Iterator[Tile]:
    found = comparison.differences[REWARD_ACCURACY]
    yield Tile(title="Accuracy of A", value=share(found.a))
    yield Tile(title="Accuracy of B", value=share(found.b))
    yield Tile(
        title="B minus A",
        value=points(found.estimate.value),
        note=between(found.estimate.interval, points),
    )
    yield Tile(title="p of no difference", value=p_value(found.p_value))
    if comparison.better is None and found.smallest_effect is not None:
        yield Tile(
            title=f"Smallest effect that shows at {POWER:.0%} power",
            value=points(found.smallest_effect),
        )


def _sections(comparison: Comparison) -> Iterator[Section]:
    figures = {each.name: each for each in figures_of(comparison, PAGE)}
    if comparison.findings:
        items = [
            element(
                "li",
                element("p", text),
                class_="problem" if text == comparison.incomparable else "caution",
            )
            for text in comparison.findings
        ]
        yield Section(
            name="findings", title="Findings", content=element("ul", items, class_="findings")
        )
    yield Section(
        name="differences",
        title=figures["differences"].title,
        content=[figure(figures["differences"]), _differences_table(comparison)],
    )
    if comparison.subsets is not None:
        yield Section(
            name="subsets",
            title="All subsets",
            content=_subsets_table(comparison, comparison.subsets),
        )
    yield Section(
        name="margins",
        title=figures["margins"].title,
        content=[figure(figures["margins"]), _right_table(comparison)],
    )
    yield Section(
        name="changes", title=figures["changes"].title, content=figure(figures["changes"])
    )
    m = comparison.mcnemar
    yield Section(
        name="flipped",
        title="Pairs that flipped",
        content=[
            _flips_table(comparison.gained, comparison.on, "only B has right", m.only_b),
            _flips_table(comparison.lost, comparison.on, "only A has right", m.only_a),
        ],
    )
    yield Section(name="method", title="How it was computed", content=_method(comparison))


def _differences_table(comparison: Comparison) -> Markup:
    rows = []
    for name, each in comparison.differences.items():
        written = share if name in {REWARD_ACCURACY, REWARD_ACCURACY_HALF} else number
        differing = points if written is share else number
        smallest = None if each.smallest_effect is None else differing(each.smallest_effect)
        interval = between(each.estimate.interval, differing)
        values = (written(each.a), written(each.b), differing(each.estimate.value))
        rows.append((_WORDS.get(name, name), *values, interval, p_value(each.p_value), smallest))
    columns = [
        Column(title="figure"),
        *(Column(title=each, written=str) for each in ("A", "B", "B minus A")),
        Column(title=f"{100.0 * comparison.level:g}% interval", written=str),
        Column(title="p", written=str),
        Column(title="smallest effect", written=_or_dash),
    ]
    caption = (
        f"Intervals and p from {comparison.clusters}. The smallest effect is what could have been "
        f"shown with a chance of {POWER:.0%}."
    )
    return table(columns, rows, caption=caption, sortable=False)


def _subsets_table(comparison: Comparison, subsets: pl.DataFrame) -> Markup:
    shares = ("accuracy_a", "accuracy_b", "accuracy_difference", "accuracy_low", "accuracy_high")
    tests = ("p_value", "p_holm", "p_benjamini_hochberg")
    flips = ("only_a", "only_b")
    means = ("margin_difference", "loss_difference")
    columns = [
        *(column_of(name, subsets.schema[name]) for name in comparison.by),
        Column(title="pairs", written=count),
        *(Column(title=each, written=share) for each in ("A", "B")),
        *(Column(title=each, written=points) for each in ("B minus A", "from", "to")),
        *(Column(title=each, written=p_value) for each in ("p", "p (Holm)", "p (BH)")),
        *(Column(title=each, written=count) for each in ("only A", "only B")),
        *(Column(title=each, written=number) for each in ("margin", "loss")),
    ]
    names = [*comparison.by, "n_valid", *shares, *tests, *flips, *means]
    caption = (
        f"{counted(subsets.height, 'subset')}: accuracy of A and B, their difference with its "
        "interval, and p of no difference; Holm keeps the chance of any false alarm among the "
        "subsets, BH (Benjamini and Hochberg) the share of false alarms. Only A and only B are "
        "pairs that one alone has right; margin and loss are mean differences in nats."
    )
    return table(columns, subsets.select(names).rows(), caption=caption)


def _right_table(comparison: Comparison) -> Markup:
    m = comparison.mcnemar
    columns = [
        Column(title="pairs"),
        Column(title="B right", written=count),
        Column(title="B wrong or tied", written=count),
    ]
    rows = [
        ("A right", m.both_right, m.only_a),
        ("A wrong or tied", m.only_b, m.neither),
    ]
    applies = (
        ""
        if m.applies
        else " Prompts repeat, so that pairs are not independent as McNemar's test takes them to "
        "be: read the p of the difference of accuracy instead."
    )
    caption = f"McNemar's test: exact {p_equation(m.exact)}, mid-{p_equation(m.mid_p)}.{applies}"
    return table(columns, rows, caption=caption, sortable=False)


def _flips_table(flips: pl.DataFrame, on: str, who: str, total: int) -> Content:
    if flips.is_empty():
        return element("p", f"There is no pair that {who}.")
    columns = [
        column_of(on, flips.schema["key"]),
        *(Column(title=each, written=number) for each in ("margin of A", "margin of B", "change")),
    ]
    caption = (
        f"Of {counted(total, 'pair')} that {who}, the {count(flips.height)} with the largest "
        "change of margin, in nats."
    )
    names = ("key", "margin_a", "margin_b", "change")
    return table(columns, flips.select(names).rows(), caption=caption)


def _method(comparison: Comparison) -> list[Markup]:
    lines: list[tuple[str, Content]] = [
        *(
            line
            for name, side in (("A", comparison.a), ("B", comparison.b))
            for line in _side(name, side)
        ),
        ("joined by", comparison.on),
        (
            "common pairs",
            f"{count(comparison.n_common)}, {count(comparison.n_valid)} valid on both sides",
        ),
        ("loss", str(comparison.objective)),
        ("beta", f"{comparison.objective.beta:g}"),
        ("largest log-prob accepted", f"{comparison.max_logp:g} nats"),
        ("level of intervals", f"{100.0 * comparison.level:g}%"),
        ("intervals from", comparison.clusters),
        ("test of accuracy", comparison.differences[REWARD_ACCURACY].test),
        ("versions", f"dpo_pipeline {version('dpo_pipeline')}, polars {version('polars')}"),
    ]
    return [facts(lines)]


def _side(name: str, side: Side) -> Iterator[tuple[str, Content]]:
    text = (
        f"{side.source}: {counted(side.n_pairs, 'pair')}, {count(side.n_alone)} of them in {name} "
        f"alone; {count(side.n_invalid)} common ones are invalid"
    )
    yield name, text
    for source in sorted(set(side.borrowed.values())):
        columns = ", ".join(key for key, place in side.borrowed.items() if place == source)
        yield f"{name}, from elsewhere", f"{columns} from {source}"


def _or_dash(value: str | None) -> str:
    return value if value is not None else number(None)
