"""The report of completions: the figures of one policy, or two policies on the same completions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

import polars as pl

from dpo_pipeline.evaluation import Finding
from dpo_pipeline.report import page_tables as tables
from dpo_pipeline.report.page import Page, Section
from dpo_pipeline.report.page_tables import Column, Table, all_as
from dpo_pipeline.statistics import count, number, p_value
from dpo_pipeline.tables import without_secrets
from dpo_pipeline.unpaired import AUC, KTO_METRICS, CompletionComparison, CompletionEvaluation


def page_of(result: CompletionEvaluation | CompletionComparison) -> str:
    """Return the report as one HTML document."""
    if isinstance(result, CompletionEvaluation):
        verdict, sections = _verdict(result), [*_findings(result.warnings), *_of_one(result)]
    else:
        verdict, sections = (
            result.verdict,
            [*_findings(result.findings, result.incomparable), *_of_two(result)],
        )
    name, objective = without_secrets(result.name), result.objective
    return Page(
        title=f"{name}: completions; {objective} loss, beta {objective.beta:g}",
        verdict=f"{verdict[:1].upper()}{verdict[1:]}.",
        lead=[],
        tiles=[],
        sections=sections,
    ).html()


def _verdict(made: CompletionEvaluation) -> str:
    if made.auc is None:
        return "no completions of both labels"
    chance = number(made.auc.value)
    return f"a desirable completion has a larger reward than an undesirable one in {chance} of all"


def _findings(texts: tuple[str, ...], problem: str | None = None) -> Iterator[Section]:
    if texts:
        found = Finding(name="completions", severity="caution", title="", evidence="", advice="")
        made = [
            replace(found, evidence=text, severity="problem" if text == problem else "caution")
            for text in texts
        ]
        yield Section(name="findings", title="Findings", findings=made)


def _of_one(made: CompletionEvaluation) -> Iterator[Section]:
    rows: list[tuple[str, float, float | None, float | None]] = []
    for title, name in {**KTO_METRICS, AUC: AUC}.items():
        if name == AUC and made.auc is None:
            continue
        if name != AUC and getattr(made.summary, name) is None:
            continue
        value, ends = made.figure(name)
        rows.append((title, value, *(ends or (None, None))))
    level = tables.percent(made.level)
    heads = [Column("figure"), *(Column(each, number) for each in ("mean", "from", "to"))]
    figures = Table(columns=heads, rows=rows, caption=f"With {level} intervals. In nats, but AUC.")
    yield Section(name="figures", title="Figures", parts=[figures])
    if made.subsets is not None:
        shown = [n for n in KTO_METRICS.values() if n in made.subsets.columns]
        by = [n for n in made.subsets.columns if n not in made.summary.to_dict()]
        columns = all_as(count, n_valid="completions") | all_as(number, **{n: n for n in shown})
        table = tables.table_of(made.subsets, columns, by=by)
        yield Section(name="subsets", title="By subset", parts=[table])
    s = made.summary
    facts = [
        ("completions", f"{count(s.n_completions)}, {count(s.n_invalid)} invalid"),
        ("desirable", count(s.n_chosen or 0)),
        ("loss", str(made.objective)),
        ("beta", f"{made.objective.beta:g}"),
        *tables.origin_rows(made.origin),
        *_versions(),
    ]
    yield Section(name="method", title="How it was computed", parts=[tables.facts(facts)])


def _of_two(made: CompletionComparison) -> Iterator[Section]:
    level = tables.percent(made.level)
    a, b = made.heads
    columns = {
        "figure": ("figure", None),
        **all_as(number, a=a, b=b, difference="B minus A"),
        **all_as(number, difference_low="from", difference_high="to"),
        "p_value": ("p", p_value),
    }
    caption = f"With {level} intervals from {made.clusters}; p: two-sided, of no difference."
    table = tables.table_of(made.to_frame(), columns, caption=caption)
    yield Section(name="figures", title="B minus A", parts=[table])
    sides = pl.DataFrame(
        [
            (head, without_secrets(side.source), side.n_completions, side.n_alone, side.n_invalid)
            for head, side in zip(made.heads, (made.a, made.b), strict=True)
        ],
        orient="row",
        schema=["side", "source", "n", "alone", "invalid"],
    )
    named = {"side": ("side", None), "source": ("completions of", None)}
    counts = all_as(count, n="completions", alone="there alone", invalid="common, invalid")
    facts = [
        ("joined by", made.on),
        ("common completions", f"{count(made.n_common)}, {count(made.n_valid)} valid"),
        ("loss", str(made.objective)),
        ("beta", f"{made.objective.beta:g}"),
        *tables.origin_rows(made.origin),
        *_versions(),
    ]
    parts = [tables.table_of(sides, {**named, **counts}), tables.facts(facts)]
    yield Section(name="method", title="How it was computed", parts=parts)


def _versions() -> list[tuple[str, str]]:
    text = f"dpo_pipeline {version('dpo_pipeline')}, polars {version('polars')}"
    return [("versions", text)]
