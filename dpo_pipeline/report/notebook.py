"""How results look in a notebook: tables without scripts, every text escaped. Needs no extra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import polars as pl

from dpo_pipeline.columns import LOSS, N_INVALID, N_PAIRS, REWARD_ACCURACY, REWARD_MARGIN
from dpo_pipeline.comparison import Comparison
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation import Evaluation, Reported
from dpo_pipeline.report.page_tables import SHARES, Column, Table, Writer, percent, table_of
from dpo_pipeline.statistics import between, count, number, p_value, points, share
from dpo_pipeline.sums import SUMMARY_FIGURES, TRL_METRICS
from dpo_pipeline.tables import ROWS_SHOWN, without_secrets


def result_html(result: Reported) -> str:
    """Return a result as HTML."""
    if isinstance(result, Comparison):
        return f"<div>{''.join(_comparison(result))}</div>"
    if isinstance(result, Evaluation):
        return f"<div>{''.join(_evaluation(result))}</div>"
    raise UsageError(f"there are no tables of {type(result).__name__}")


def _evaluation(evaluation: Evaluation) -> Iterator[str]:
    """Yield the figures of an evaluation, its subsets and its findings."""
    summary, statistics = evaluation.summary, evaluation.statistics
    yield _bold(
        f"{without_secrets(evaluation.source)}: {count(summary.n_pairs)} pairs, "
        f"{count(summary.n_invalid)} invalid, {evaluation.objective} loss, beta {evaluation.beta:g}"
    )
    columns = [Column(""), Column("value", str)]
    if statistics is not None:
        columns.append(Column(f"{percent(statistics.level)} interval", str))
    rows = []
    for metric, name in TRL_METRICS.items():
        written = share if name in SHARES else number
        estimate = None if statistics is None else statistics.figures.get(name)
        interval = between(None if estimate is None else estimate.interval, written)
        rows.append((metric, written(getattr(summary, name)), interval)[: len(columns)])
    rows.append(("ties", count(summary.n_ties), "")[: len(columns)])
    yield _table(Table(columns=columns, rows=rows))
    if evaluation.subsets is not None:
        by = [name for name in evaluation.subsets.columns if name not in SUMMARY_FIGURES]
        writers: dict[str, Writer] = {
            **dict.fromkeys((N_PAIRS, N_INVALID), count),
            LOSS: number,
            REWARD_ACCURACY: share,
            REWARD_MARGIN: number,
        }
        yield _subsets(evaluation.subsets, by, writers)
    yield _list(
        [f"{each.severity}: {each.title}" for each in evaluation.findings or ()]
        or evaluation.warnings
    )


def _comparison(comparison: Comparison) -> Iterator[str]:
    """Yield the verdict of a comparison, its differences, its subsets and its findings."""
    yield _bold(comparison.verdict)
    if comparison.loss_verdict is not None:
        yield f"<p>{escape(comparison.loss_verdict)}.</p>"
    yield _table(difference_table(comparison))
    if comparison.subsets is not None:
        writers: dict[str, Writer] = {
            "n_valid": count,
            **dict.fromkeys(("accuracy_a", "accuracy_b"), share),
            **dict.fromkeys(("accuracy_difference", "accuracy_low", "accuracy_high"), points),
            **dict.fromkeys(("p_value", "p_holm"), p_value),
            "smallest_effect": points,
        }
        yield _subsets(comparison.subsets, comparison.by, writers)
    yield _list(comparison.findings)


def difference_table(comparison: Comparison, *, missing: str = "") -> Table:
    """Return the differences of a comparison; `missing` stands for a smallest effect of none."""
    rows = []
    for name, each in comparison.differences.items():
        written, differing = (share, points) if name in SHARES else (number, number)
        values = (written(each.a), written(each.b), differing(each.estimate.value))
        interval = between(each.estimate.interval, differing)
        smallest = missing if each.smallest_effect is None else differing(each.smallest_effect)
        rows.append((name, *values, interval, p_value(each.p_value), smallest))
    level = f"{percent(comparison.level)} interval"
    titles = ("A", "B", "B minus A", level, "p", "smallest effect")
    return Table(
        columns=[Column(""), *(Column(title, str) for title in titles)], rows=rows, sortable=False
    )


def _subsets(subsets: pl.DataFrame, by: Sequence[str], writers: Mapping[str, Writer]) -> str:
    columns = {name: (name, writers.get(name)) for name in (*by, *writers)}
    more = subsets.height - ROWS_SHOWN
    left_out = f"<p>... and {count(more)} more</p>" if more > 0 else ""
    return _table(table_of(subsets.head(ROWS_SHOWN), columns)) + left_out


def _table(table: Table) -> str:
    styles = ["" if each.write is None else ' style="text-align: right"' for each in table.columns]
    heads = [
        f'<th scope="col"{style}>{escape(column.title)}</th>'
        for column, style in zip(table.columns, styles, strict=True)
    ]
    rows = [
        [
            f"<td{style}>{escape(column.text(value))}</td>"
            for column, style, value in zip(table.columns, styles, row, strict=True)
        ]
        for row in table.rows
    ]
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table>"


def _bold(text: str) -> str:
    return f"<p><strong>{escape(text)}</strong></p>"


def _list(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return items and f"<ul>{items}</ul>"
