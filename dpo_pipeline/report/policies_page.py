"""The report of several policies: which may be the best, how far they are apart, how a run went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Final

import polars as pl

from dpo_pipeline.columns import LOSS, N_PAIRS, POLICY_CHOSEN, POLICY_REJECTED
from dpo_pipeline.evaluation import Finding
from dpo_pipeline.policies import CURVE_FIGURES, SHARES, Curve, Leaderboard
from dpo_pipeline.report import page_tables as tables
from dpo_pipeline.report.charts import (
    PAGE,
    Figure,
    Palette,
    domain_of,
    intervals,
    trend,
)
from dpo_pipeline.report.page import Page, Section, Tile
from dpo_pipeline.report.page_tables import Column, Table, all_as
from dpo_pipeline.statistics import count, number, p_value, points, share
from dpo_pipeline.tables import without_secrets

_CHANCE: Final = 0.5
_POLICIES_DRAWN: Final = 40
"""Policies of a chart; the table has all."""
_NAMED: Final = 10
"""Policies of a caption."""
_TESTS_OPEN: Final = 12
_LOGPS: Final = (POLICY_CHOSEN.name, POLICY_REJECTED.name)
_HEIGHT: Final = 150


def figures_of(board: Leaderboard, palette: Palette) -> Iterator[Figure]:
    """Yield the charts for which there is something to draw, in the order of the report."""
    frame = board.to_frame().with_columns(pl.lit(board.n_valid).alias(N_PAIRS))
    yield _accuracies(board, frame.head(_POLICIES_DRAWN), palette)
    apart = frame.filter(pl.col("difference").is_not_null())
    if apart.height:
        yield _differences(board, apart.head(_POLICIES_DRAWN), palette)
    if board.curve is not None:
        yield from _curves(board.curve, palette)


def _accuracies(board: Leaderboard, frame: pl.DataFrame, palette: Palette) -> Figure:
    level = tables.percent(board.level)
    rows = frame.select(label="policy", value="accuracy", low="accuracy_low", high="accuracy_high")
    rows = rows.with_columns(frame[N_PAIRS])
    listed = ", ".join(
        f"{name} {share(value)}" for name, value in rows.select("label", "value").rows()
    )
    return Figure.of(
        "accuracies",
        "Accuracy of each policy",
        f"Accuracy {board.on_pairs}: {listed}.",
        f" A tie counts half. The {level} intervals hold together. Blue is above a coin toss, "
        "orange below it, grey not told apart from it.",
        intervals(rows, palette, axis="accuracy", chance=_CHANCE),
    )


def _listed(named: pl.DataFrame, write: tables.Writer) -> str:
    few = [f"{name} {write(value)}" for name, value in named.head(_NAMED).rows()]
    more = named.height - len(few)
    return ", ".join([*few, *([f"and {more:,} more"] if more else [])])


def _differences(board: Leaderboard, frame: pl.DataFrame, palette: Palette) -> Figure:
    shown = pl.col("p_adjusted") < 1.0 - board.level
    side = pl.when(~shown).then(pl.lit("open")).when(pl.col("difference") > 0.0)
    rows = frame.select(
        label="policy",
        value=100.0 * pl.col("difference"),
        low=100.0 * pl.col("difference_low"),
        high=100.0 * pl.col("difference_high"),
        n_pairs=N_PAIRS,
        side=side.then(pl.lit("above")).otherwise(pl.lit("below")),
    )
    listed = _listed(frame.select("policy", "difference"), points)
    return Figure.of(
        "differences",
        f"Accuracy minus that of {board.than}",
        f"Accuracy minus that of {board.than}: {listed}.",
        f" The {tables.percent(board.level)} intervals hold together. Blue is above, orange below, "
        "where the p-value that allows for all tests says so; grey is not told apart.",
        intervals(
            rows,
            palette,
            axis=f"accuracy minus that of {board.than} (points)",
            chance=0.0,
            domain=domain_of(rows),
        ),
    )


def _curves(curve: Curve, palette: Palette) -> Iterator[Figure]:
    """Yield a chart of each figure over the steps; both log-probs are in one."""
    colours = {POLICY_REJECTED.name: palette.rejected}
    for name in curve.figures:
        if name == _LOGPS[1]:
            continue
        drawn = _LOGPS if name == _LOGPS[0] else (name,)
        title = "log-probs" if name == _LOGPS[0] else CURVE_FIGURES[name]
        write = share if name in SHARES else number
        ends = [
            f"{CURVE_FIGURES[each]} {write(curve.table[each][0])} to {write(curve.table[each][-1])}"
            for each in drawn
        ]
        first, last = curve.table["step"][0], curve.table["step"][-1]
        both = " Blue is the chosen completion, orange the rejected." if len(drawn) > 1 else ""
        yield Figure.of(
            f"curve-{name.replace('_', '-')}",
            title[:1].upper() + title[1:],
            f"From step {first:,} to step {last:,}: {'; '.join(ends)}.",
            f"{both} Each {tables.percent(curve.level)} band holds at all steps at once."
            f"{_READING.get(name, '')}",
            trend(
                curve.table,
                palette,
                {each: (CURVE_FIGURES[each], colours.get(each, palette.chosen)) for each in drawn},
                x="step",
                axis=f"{title}{_AXES.get(name, '')}",
                written=".1%" if name in SHARES else ".4~g",
                height=_HEIGHT,
            ),
        )


_AXES: Final[Mapping[str, str]] = {
    _LOGPS[0]: " (nats)",
    "log_ratio_size": " (nats)",
    "chosen_down": " share",
}
_READING: Final[Mapping[str, str]] = {
    "chosen_down": " The share of chosen completions that are less likely than under the "
    "reference.",
    "log_ratio_size": " The mean size of the log-ratios of both completions: how far the policy "
    "is from the reference.",
}


def page_of(board: Leaderboard) -> str:
    """Return the report as one HTML document."""
    verdict, objective = board.verdict, board.objective
    lead = [f"{text}." for text in ([board.luck()] if board.luck() else [])]
    if board.curve is not None:
        lead += [f"{text[:1].upper()}{text[1:]}." for text in board.curve.sentences()]
    return Page(
        title=f"{len(board.policies):,} policies; {objective} loss, beta {objective.beta:g}",
        verdict=f"{verdict[:1].upper()}{verdict[1:]}.",
        lead=lead,
        tiles=list(_tiles(board)),
        sections=list(_sections(board)),
    ).html()


def _tiles(board: Leaderboard) -> Iterator[Tile]:
    found, curve = board.found, board.curve
    if board.winner is not None and found is not None:
        low, high = found.intervals[found.winner]
        yield Tile(
            f"Accuracy of {board.winner}, less luck",
            share(board.winner_accuracy),
            f"{share(low)} to {share(high)}",
        )
        best = len(board.best_set)
        yield Tile("May be the best", count(best), f"of {count(len(board.ranked))}")
    if curve is not None:
        fall, rise = curve.chosen_falls, curve.accuracy_rises
        if fall is not None:
            text = f"{number(fall.difference, 3)} nats from step {fall.from_step:,}"
            yield Tile("Chosen first shown to fall", f"step {fall.to_step:,}", text)
        if rise is not None:
            text = f"{points(rise.difference)} from step {rise.from_step:,}"
            yield Tile("Accuracy last shown to rise", f"step {rise.to_step:,}", text)


def _sections(board: Leaderboard) -> Iterator[Section]:
    figures = list(figures_of(board, PAGE))
    caution = Finding(name="policies", severity="caution", title="", evidence="", advice="")
    findings = [
        replace(
            caution,
            evidence=text,
            severity="problem" if text == board.incomparable else "caution",
        )
        for text in board.findings
    ]
    if findings:
        yield Section(name="findings", title="Findings", findings=findings)
    notes = [f"{text[:1].upper()}{text[1:]}." for text in board.notes()]
    yield Section(
        name="leaderboard",
        title="Leaderboard",
        figures=[each for each in figures if each.name == "accuracies"],
        parts=[_board(board), *notes],
    )
    apart = [each for each in figures if each.name == "differences"]
    if apart:
        title = apart[0].title
        yield Section(name="differences", title=title, figures=apart, parts=[_tests(board)])
    if board.curve is not None:
        left = board.curve.left_out
        yield Section(
            name="curve",
            title="Learning curve",
            figures=[each for each in figures if each.name.startswith("curve-")],
            parts=[
                _curve_table(board.curve),
                *([f"Not in the curve: {', '.join(left)}."] if left else []),
            ],
        )
    yield Section(name="pairs", title="Pairs of each policy", parts=[_pairs(board)])
    yield Section(name="method", title="How it was computed", parts=[_method(board)])


def _board(board: Leaderboard) -> Table:
    frame = board.to_frame()
    may_be = {True: "yes", False: "no", None: "no verdict"}
    frame = frame.with_columns(
        pl.Series("may_be_best", [may_be[each] for each in frame["may_be_best"]])
    )
    has_betas = frame["best_beta"].null_count() < frame.height
    return tables.table_of(
        frame,
        {
            "policy": ("policy", None),
            **all_as(share, accuracy="accuracy", accuracy_low="from", accuracy_high="to"),
            **all_as(number, loss="loss", reward_margin="margin"),
            **({"best_beta": ("best beta", "{:g}".format)} if has_betas else {}),
            **(all_as(number, best_loss="loss at best beta") if has_betas else {}),
            **all_as(count, n_ties="ties"),
            "may_be_best": ("may be best", None),
        },
        caption="" if board.no_verdict else f"{board.method_of_best}.",
    )


def _tests(board: Leaderboard) -> Table:
    labels = [board.labels[i] for i in board.ranked]
    rows = [
        (labels[t.first], labels[t.second], t.difference, t.low, t.high, t.p_value)
        for t in board.tests
    ]
    heads = [Column("policy"), Column("minus")]
    heads += [
        Column("difference", points),
        Column("from", tables.signed),
        Column("to", tables.signed),
    ]
    said = "against the baseline" if board.baseline is not None else "of each two policies"
    return Table(
        columns=[*heads, Column("p", p_value)],
        rows=rows,
        caption=f"The tests {said}, which are one family: {board.method}.",
        folded=f"All {len(rows):,} tests" if len(rows) > _TESTS_OPEN else "",
    )


def _curve_table(curve: Curve) -> Table:
    writers = {name: share if name in SHARES else number for name in curve.figures}
    columns = {
        f"{name}{end}": (title or CURVE_FIGURES[name], write)
        for name, write in writers.items()
        for end, title in (("", ""), ("_low", "from"), ("_high", "to"))
    }
    return tables.table_of(
        curve.table,
        {"step": ("step", count), **columns},
        caption="All steps on the same pairs. Log-probs, losses and sizes are in nats.",
    )


def _pairs(board: Leaderboard) -> Table:
    heads = (Column("policy"), Column("pairs of"))
    numbers = ("pairs", "in no other", "common, invalid")
    rows = [
        (p.label, without_secrets(p.source), p.n_pairs, p.n_alone, p.n_invalid)
        for p in board.policies
    ]
    return Table(columns=[*heads, *(Column(title, count) for title in numbers)], rows=rows)


def _method(board: Leaderboard) -> Table:
    return tables.facts(
        [
            ("joined by", board.on),
            (
                "common pairs",
                f"{count(board.n_common)}, {count(board.n_valid)} valid in all policies",
            ),
            (LOSS, str(board.objective)),
            ("beta", f"{board.objective.beta:g}"),
            ("level of all intervals together", tables.percent(board.level)),
            ("intervals and p from", board.method),
            *tables.origin_rows(board.origin),
            ("versions", f"dpo_pipeline {version('dpo_pipeline')}, polars {version('polars')}"),
        ]
    )
