"""How results look in a notebook: tables without scripts, every text escaped. Needs no extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from dpo_pipeline.columns import LOSS, N_INVALID, N_PAIRS, REWARD_ACCURACY, REWARD_MARGIN
from dpo_pipeline.comparison import REWARD_ACCURACY_HALF, Comparison
from dpo_pipeline.evaluation import Evaluation, Reported
from dpo_pipeline.report.markup import Markup, element
from dpo_pipeline.statistics import as_written, between, count, number, p_value, points, share
from dpo_pipeline.sums import SUMMARY_FIGURES, TRL_METRICS
from dpo_pipeline.tables import ROWS_SHOWN

_RIGHT: Final = "text-align: right"


def result_html(result: Reported) -> str:
    """Return a result as HTML."""
    if isinstance(result, Comparison):
        return comparison_html(result)
    if isinstance(result, Evaluation):
        return evaluation_html(result)
    return element("pre", str(result))


def evaluation_html(evaluation: Evaluation) -> str:
    """Return the figures of an evaluation, its subsets and its findings as HTML."""
    summary = evaluation.summary
    title = (
        f"{evaluation.source}: {count(summary.n_pairs)} pairs, {count(summary.n_invalid)} "
        f"invalid, {evaluation.objective} loss, beta {evaluation.beta:g}"
    )
    statistics = evaluation.statistics
    estimates = {} if statistics is None else statistics.figures
    rows = []
    for metric, name in TRL_METRICS.items():
        written = share if name == REWARD_ACCURACY else number
        interval = estimates[name].interval if name in estimates else None
        limits = [] if statistics is None else [between(interval, written)]
        rows.append([metric, written(getattr(summary, name)), *limits])
    rows.append(["ties", count(summary.n_ties), *([] if statistics is None else [""])])
    head = ["", "value"]
    head += [] if statistics is None else [f"{100.0 * statistics.level:g}% interval"]
    parts = [element("p", element("strong", title)), _plain_table(head, rows, words=1)]
    if evaluation.subsets is not None:
        by = [name for name in evaluation.subsets.columns if name not in SUMMARY_FIGURES]
        shown = (N_PAIRS, N_INVALID, LOSS, REWARD_ACCURACY, REWARD_MARGIN)
        table = evaluation.subsets.select(*by, *shown)
        cells = [
            [
                *(as_written(value) for value in row[: len(by)]),
                *(count(n) for n in row[len(by) : len(by) + 2]),
                number(row[-3]),
                share(row[-2]),
                number(row[-1]),
            ]
            for row in table.head(ROWS_SHOWN).iter_rows()
        ]
        parts.append(_plain_table([*by, *shown], cells, words=len(by)))
        if table.height > ROWS_SHOWN:
            parts.append(element("p", f"... and {count(table.height - ROWS_SHOWN)} more"))
    texts = [f"{each.severity}: {each.title}" for each in evaluation.findings or ()]
    texts = texts or list(evaluation.warnings)
    if texts:
        parts.append(element("ul", [element("li", text) for text in texts]))
    return element("div", parts)


def comparison_html(comparison: Comparison) -> str:
    """Return the verdict of a comparison, its differences and its findings as HTML."""
    level = f"{100.0 * comparison.level:g}% interval"
    rows = []
    for name, each in comparison.differences.items():
        written = share if name in {REWARD_ACCURACY, REWARD_ACCURACY_HALF} else number
        differing = points if written is share else number
        interval = between(each.estimate.interval, differing)
        values = [written(each.a), written(each.b), differing(each.estimate.value)]
        smallest = "" if each.smallest_effect is None else differing(each.smallest_effect)
        rows.append([name, *values, interval, p_value(each.p_value), smallest])
    parts = [
        element("p", element("strong", comparison.verdict)),
        None if comparison.loss_verdict is None else element("p", f"{comparison.loss_verdict}."),
        _plain_table(["", "A", "B", "B minus A", level, "p", "smallest effect"], rows, words=1),
        *_compared_subsets(comparison),
    ]
    if comparison.findings:
        parts.append(element("ul", [element("li", text) for text in comparison.findings]))
    return element("div", parts)


def _compared_subsets(comparison: Comparison) -> Iterator[Markup]:
    """Yield the differences of accuracy in each subset, if there are subsets."""
    subsets = comparison.subsets
    if subsets is None:
        return
    writers: dict[str, Callable[[Any], str]] = {
        "n_valid": count,
        "accuracy_a": share,
        "accuracy_b": share,
        "accuracy_difference": points,
        "accuracy_low": points,
        "accuracy_high": points,
        "p_value": p_value,
        "p_holm": p_value,
        "smallest_effect": points,
    }
    heads = [*comparison.by, *writers]
    written = [*(as_written for _ in comparison.by), *writers.values()]
    rows = [
        [write(value) for write, value in zip(written, row, strict=True)]
        for row in subsets.select(heads).head(ROWS_SHOWN).iter_rows()
    ]
    yield _plain_table(heads, rows, words=len(comparison.by))
    if subsets.height > ROWS_SHOWN:
        yield element("p", f"... and {count(subsets.height - ROWS_SHOWN)} more")


def _plain_table(head: list[str], rows: list[list[str]], *, words: int) -> Markup:
    """Return a table whose first `words` columns are words."""
    heads = [
        element("th", text, scope="col", style=None if at < words else _RIGHT)
        for at, text in enumerate(head)
    ]
    lines = [
        element(
            "tr",
            [
                element("td", text, style=None if at < words else _RIGHT)
                for at, text in enumerate(row)
            ],
        )
        for row in rows
    ]
    return element("table", element("thead", element("tr", heads)), element("tbody", lines))
