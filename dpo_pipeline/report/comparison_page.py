"""The report of a comparison, top down: which is better, where, which pairs, how it was made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

import polars as pl

from dpo_pipeline.columns import LOSS, REWARD_ACCURACY, REWARD_MARGIN
from dpo_pipeline.comparison import Comparison, Side
from dpo_pipeline.defaults import POWER
from dpo_pipeline.evaluation import Finding
from dpo_pipeline.losses import unit_of_loss
from dpo_pipeline.report import chart_data, page_tables as tables
from dpo_pipeline.report.charts import (
    PAGE,
    PAIRS_FOR_SCALE,
    Figure,
    Palette,
    domain_of,
    intervals,
    plane,
    signed_histogram,
)
from dpo_pipeline.report.page import Page, Section, Tile
from dpo_pipeline.report.page_tables import Column, Table, all_as
from dpo_pipeline.statistics import (
    between,
    count,
    counted,
    effect,
    number,
    p_equation,
    p_value,
    points,
    points_between,
    share,
)
from dpo_pipeline.sums import in_words
from dpo_pipeline.tables import without_secrets


def figures_of(comparison: Comparison, palette: Palette) -> Iterator[Figure]:
    """Yield the charts for which there is something to draw, in the order of the report."""
    yield _differences(comparison, palette)
    yield _changes(comparison, palette)
    yield _margins(comparison, palette)


def _differences(comparison: Comparison, palette: Palette) -> Figure:
    note, over_all = "", {"all": comparison.differences[REWARD_ACCURACY].estimate}
    rows = chart_data.interval_rows(over_all)
    if comparison.subsets is not None:
        drawn, note = chart_data.subset_rows(
            comparison.subsets,
            comparison.by,
            value="accuracy_difference",
            low="accuracy_low",
            high="accuracy_high",
            chance=0.0,
            level=comparison.level,
        )
        rows = pl.concat([rows, drawn], how="diagonal_relaxed")
    rows = rows.with_columns(pl.col("value", "low", "high") * 100.0)
    domain = domain_of(rows)
    if rows.filter((pl.col("low") < domain[0]) | (pl.col("high") > domain[1])).height:
        note += f" Intervals of fewer than {PAIRS_FOR_SCALE} pairs are cut off at the edges."
    colours = "Blue is B better, orange A better, grey not told apart."
    if comparison.incomparable is not None:
        rows, colours = rows.with_columns(side=pl.lit("open")), "Without a verdict all are grey."
    least, most = chart_data.ends_of(rows, "value")
    by = f", by {', '.join(comparison.by)}" if comparison.by else ""
    a, b = comparison.quoted
    axis = "accuracy, B minus A (points)"
    allowed = (
        " Subsets have a colour where the p-value that allows for their number (Holm) says so; "
        f"the largest difference is first. {comparison.across_subsets}"
        if comparison.by and comparison.incomparable is None
        else ""
    )
    return Figure.of(
        "differences",
        "Difference of accuracy",
        f"Differences of accuracy, {b} minus {a}{by}: from {points(least / 100.0)} to "
        f"{points(most / 100.0)}.",
        f" Each has its {tables.percent(comparison.level)} interval, and its pairs in "
        f"brackets. {colours}{allowed}{note}",
        intervals(chart_data.with_sizes(rows), palette, axis=axis, chance=0.0, domain=domain),
    )


def _changes(comparison: Comparison, palette: Palette) -> Figure:
    changes = comparison.changes
    grid = chart_data.grid_over(changes, chart_data.BARS)
    n = comparison.n_valid
    # The bin around zero holds changes that are lost in rounding as well: they count as none.
    moved = [int(changes.filter(pl.col("bin").sign() == i)["n_pairs"].sum()) for i in (-1, 1)]
    fell, rose = (share(each / n) for each in moved)
    same = n - sum(moved)
    mean = comparison.differences[REWARD_MARGIN].estimate.value
    a, b = comparison.quoted
    said = (
        f"The margin fell from {a} to {b} in {fell} of {counted(n, 'pair')} and rose in {rose}; "
        f"the mean change is {number(mean)} nats."
    )
    return Figure(
        name="changes",
        title="Change of the margin",
        caption=f"{said} Bars are {number(grid.step, 2)} nats wide; the outermost hold what lies "
        "beyond.",
        opening="Histogram. ",
        description=said,
        chart=signed_histogram(
            chart_data.histogram_bars(changes, grid, same),
            palette,
            axis="margin, B minus A (nats)",
            below=f"fell: {fell}",
            above=f"rose: {rose}",
            mean=mean,
            ties=same,
        ),
    )


def _margins(comparison: Comparison, palette: Palette) -> Figure:
    table = comparison.margins.rename({"a_bin": "A_bin", "b_bin": "B_bin"})
    m = comparison.mcnemar
    a, b = comparison.quoted
    said = (
        f"Both have {counted(m.both_right, 'pair')} right, only {a} {count(m.only_a)}, only {b} "
        f"{count(m.only_b)}, neither {count(m.neither)}."
    )
    return Figure(
        name="margins",
        is_square=True,
        title=f"Margins of {a} and {b}",
        caption=f"The stronger its colour, the more of the {counted(comparison.n_valid, 'pair')} a "
        f"cell holds. Upper left of the crossed lines are pairs that only B has right, lower "
        f"right those that only A has. Above the dashed diagonal B has the larger margin. "
        f"{said}",
        opening=f"Density of the margins of {b} against those of {a}. ",
        description=said,
        chart=plane(
            chart_data.density(table, x="A", y="B"),
            palette,
            x="A",
            y="B",
            title="margin of {} (nats)",
            names={"A": a, "B": b},
            above="B larger",
            below="A larger",
        ),
    )


def page_of(comparison: Comparison) -> str:
    """Return the report as one HTML document."""
    verdict, loss = comparison.verdict, comparison.loss_verdict
    objective = comparison.objective
    return Page(
        title=f"{_titled(comparison.heads[0], comparison.a)}; "
        f"{_titled(comparison.heads[1], comparison.b)}; {objective} loss, beta {objective.beta:g}",
        verdict=f"{verdict[:1].upper()}{verdict[1:]}.",
        lead=() if loss is None else (f"{loss}.",),
        tiles=list(_tiles(comparison)),
        sections=list(_sections(comparison)),
    ).html()


def _titled(head: str, side: Side) -> str:
    """Return a policy's name with its source."""
    source = without_secrets(side.source)
    return f"{head} ({source})" if side.name else f"{head}: {source}"


def _tiles(comparison: Comparison) -> Iterator[Tile]:
    found = comparison.differences[REWARD_ACCURACY]
    a, b = comparison.quoted
    yield Tile(f"Accuracy of {a}", share(found.a))
    yield Tile(f"Accuracy of {b}", share(found.b))
    yield Tile(
        "B minus A",
        points(found.estimate.value, found.estimate.interval),
        points_between(found.estimate.interval),
    )
    if found.p_value is not None:
        yield Tile("p of no difference", p_value(found.p_value))
    if comparison.better is None and found.smallest_effect is not None:
        yield Tile(
            f"Smallest effect that shows at {POWER:.0%} power", effect(found.smallest_effect)
        )


def _sections(comparison: Comparison) -> Iterator[Section]:
    figures = {each.name: each for each in figures_of(comparison, PAGE)}

    def drawn(name: str, *parts: Table) -> Section:
        figure = figures[name]
        return Section(name=name, title=figure.title, figures=[figure], parts=parts)

    if comparison.findings:
        findings = [
            Finding(each.name, "problem", each.title, each.evidence, each.advice)
            for each in comparison.doubts
        ]
        caution = Finding(name="comparison", severity="caution", title="", evidence="", advice="")
        findings += [
            replace(caution, evidence=text)
            if text != comparison.incomparable
            else replace(caution, evidence=text, severity="problem")
            for text in comparison.findings[len(comparison.doubts) :]
        ]
        yield Section(name="findings", title="Findings", findings=findings)
    yield drawn("differences", _differences_table(comparison))
    if comparison.subsets is not None:
        by_subset = _subsets_table(comparison)
        yield Section(name="subsets", title="All subsets", parts=[by_subset])
    yield drawn("margins", _right_table(comparison))
    yield drawn("changes")
    flipped = [_flips_table(comparison, is_gained=each) for each in (True, False)]
    yield Section(name="flipped", title="Pairs that flipped", parts=flipped)
    yield Section(name="method", title="How it was computed", parts=[_method(comparison)])


def _differences_table(comparison: Comparison) -> Table:
    rows, unit = [], unit_of_loss(term.loss.name for term in comparison.objective.terms)
    for name, each in comparison.differences.items():
        interval = each.estimate.interval
        is_share = name in tables.SHARES
        written = share if is_share else number
        apart = points(each.estimate.value, interval) if is_share else number(each.estimate.value)
        limits = points_between(interval) if is_share else between(interval)
        smallest = effect(each.smallest_effect) if is_share else number(each.smallest_effect, 2)
        words = in_words(name, unit if name == LOSS else None)
        values = (written(each.a), written(each.b), apart, limits)
        rows.append((name, words, *values, p_value(each.p_value), smallest))
    level = f"{tables.percent(comparison.level)} interval"
    titles = (*comparison.heads, "B minus A", level, "p", "smallest effect")
    return Table(
        columns=[
            Column("figure"),
            Column("what it is"),
            *(Column(title, str) for title in titles),
        ],
        rows=rows,
        sortable=False,
        caption=f"Intervals and p from {comparison.clusters}. The smallest effect is what could "
        f"have been shown with a chance of {POWER:.0%}.",
    )


def _subsets_table(comparison: Comparison) -> Table | str:
    subsets, (a, b) = comparison.subsets, comparison.heads
    if subsets is None:
        return ""
    return tables.table_of(
        subsets.sort("accuracy_difference", descending=True, nulls_last=True, maintain_order=True),
        {
            "n_valid": ("pairs", count),
            **all_as(share, accuracy_a=a, accuracy_b=b),
            **all_as(points, accuracy_difference="B minus A"),
            **all_as(tables.signed, accuracy_low="from", accuracy_high="to"),
            **tables.P_VALUES,
            **all_as(count, only_a="only A", only_b="only B"),
            **all_as(number, margin_difference="margin", loss_difference="loss"),
        },
        by=comparison.by,
        caption=f"{counted(subsets.height, 'subset')}: accuracy of A and B, their difference with "
        f"its interval, and p of no difference; {tables.WORDS_OF_P_VALUES} Only A and only B are "
        "pairs that one alone has right; margin and loss are mean differences in nats.",
    )


def _right_table(comparison: Comparison) -> Table:
    m, tests = comparison.mcnemar, ""
    a, b = comparison.heads
    if m.exact is not None and m.mid_p is not None:
        tests = f"McNemar's test: exact {p_equation(m.exact)}, mid-{p_equation(m.mid_p)}."
    if tests and not m.applies:
        tests += (
            " Prompts repeat, so that pairs are not independent as McNemar's test takes them to "
            "be: read the p of the difference of accuracy instead."
        )
    return tables.crossed(
        "pairs",
        (f"{b} right", f"{b} wrong or tied"),
        {f"{a} right": (m.both_right, m.only_a), f"{a} wrong or tied": (m.only_b, m.neither)},
        caption=tests,
    )


def _flips_table(comparison: Comparison, *, is_gained: bool) -> Table | str:
    (a, b), m = comparison.quoted, comparison.mcnemar
    flips, total = (comparison.gained, m.only_b) if is_gained else (comparison.lost, m.only_a)
    who = f"only {b if is_gained else a} has right"
    if flips.is_empty():
        pairs = counted(total, "pair") if total else "no pair"
        return f"There {'are' if total > 1 else 'is'} {pairs} that {who}."
    return tables.table_of(
        flips,
        {
            "key": (comparison.on, tables.writer_of(flips.schema["key"])),
            **all_as(number, margin_a="margin of A", margin_b="margin of B"),
            **all_as(number, change="change"),
            **tables.shown_columns(flips),
        },
        caption=f"Of {counted(total, 'pair')} that {who}, the {count(flips.height)} with the "
        "largest change of margin, in nats.",
    )


def _method(comparison: Comparison) -> Table:
    return tables.facts(
        [
            *_side(comparison.heads[0], comparison.a),
            *_side(comparison.heads[1], comparison.b),
            ("joined by", comparison.on),
            (
                "common pairs",
                f"{count(comparison.n_common)}, {count(comparison.n_valid)} valid on both sides",
            ),
            ("loss", str(comparison.objective)),
            ("beta", f"{comparison.objective.beta:g}"),
            ("largest log-prob accepted", f"{comparison.max_logp:g} nats"),
            ("level of intervals", tables.percent(comparison.level)),
            ("intervals from", comparison.clusters),
            ("test of accuracy", comparison.differences[REWARD_ACCURACY].test),
            *tables.origin_rows(comparison.origin),
            ("versions", f"dpo_pipeline {version('dpo_pipeline')}, polars {version('polars')}"),
        ]
    )


def _side(name: str, side: Side) -> Iterator[tuple[str, str]]:
    text = (
        f"{without_secrets(side.source)}: {counted(side.n_pairs, 'pair')}, {count(side.n_alone)} "
        f"of them there alone; {count(side.n_invalid)} common ones are invalid"
    )
    yield name, text
    for source in sorted(set(side.borrowed.values())):
        columns = ", ".join(key for key, place in side.borrowed.items() if place == source)
        yield f"{name}, from elsewhere", f"{columns} from {source}"
