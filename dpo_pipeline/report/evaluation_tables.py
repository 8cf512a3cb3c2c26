"""The tables of an evaluation's report."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import LOSS, N_VALID, PAIR_ID, REWARD_ACCURACY, REWARD_MARGIN
from dpo_pipeline.evaluation import ESTIMATED_FIGURES, Evaluation, Flips, Statistics
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.report.evaluation_charts import BASELINE_WORDS
from dpo_pipeline.report.markup import Column, Content, Markup, column_of, element, facts, table
from dpo_pipeline.statistics import (
    DASH,
    Estimate,
    as_written,
    between,
    count,
    counted,
    number,
    p_value,
    points,
    share,
    share_within,
)

_SHARES: Final = {
    "reward_accuracy",
    "reward_accuracy_half",
    "tie_rate",
}
"""Figures that are written in per cent."""
_LIBRARIES: Final = ("polars", "pyarrow", "altair", "vl-convert-python")
_WORDS: Final = {
    "loss": "mean loss",
    "reward_accuracy": "reward accuracy; a tie counts as wrong",
    "reward_accuracy_half": "reward accuracy; a tie counts half",
    "tie_rate": "ties",
    "chosen_reward": "mean chosen reward, nats",
    "rejected_reward": "mean rejected reward, nats",
    "reward_margin": "mean margin, nats",
    "log_loss": "log loss, mean of -log sigmoid(margin), nats",
    "brier": "Brier score, mean of (1 - sigmoid(margin))^2",
    "policy_chosen_logps": "mean log-prob of the chosen completion under the policy, nats",
    "policy_rejected_logps": "mean log-prob of the rejected completion under the policy, nats",
    "ref_chosen_logps": "mean log-prob of the chosen completion under the reference, nats",
    "ref_rejected_logps": "mean log-prob of the rejected completion under the reference, nats",
}


def figures_table(statistics: Statistics, level: str, unit: str) -> Markup:
    """Return every figure with its interval, and how that was made; `unit` is of the loss."""
    rows = [
        (
            words,
            written(each.value),
            between(each.interval, written),
            DASH if each.interval is None else each.interval.method,
            each.n,
        )
        for words, each, written in _figures(statistics, unit)
    ]
    columns = [
        Column(title="figure"),
        Column(title="value", written=str),
        Column(title=f"{level} interval", written=str),
        Column(title="made by"),
        Column(title="pairs", written=count),
    ]
    return table(columns, rows, caption=f"Intervals from {statistics.clusters}.", sortable=False)


def _figures(statistics: Statistics, unit: str) -> Iterator[tuple[str, Estimate, Any]]:
    for name, each in statistics.figures.items():
        is_share = name in _SHARES
        words = _WORDS.get(name) or f"{name}: {ESTIMATED_FIGURES[name]}"
        if name == LOSS and unit:
            words = f"{words}, {unit}"
        yield words, each, share_within(each.interval) if is_share else number
    for name, each in statistics.baselines.items():
        yield (
            f"accuracy of a rule: {BASELINE_WORDS.get(name, name)}",
            each,
            share_within(each.interval),
        )
    for name, each in statistics.advantages.items():
        yield f"rewards ahead of: {BASELINE_WORDS.get(name, name)}", each, points
    down = {"chosen_down": "chosen", "rejected_down": "rejected", "both_down": "both"}
    for name, each in statistics.displacement.items():
        yield f"less likely than under the reference: {down.get(name, name)}", each, share
    others: list[tuple[str, Estimate | None, Any]] = [
        ("mean accuracy of the subsets, each counting once", statistics.macro, share),
        ("mean accuracy of the subsets, weighted", statistics.weighted, share),
        ("calibration error, folded", statistics.calibration.error, number),
        ("beta of the smallest log loss", statistics.calibration.best_beta, _short),
        ("share of labels that look flipped", statistics.flip_rate, share),
    ]
    if statistics.length is not None:
        others += [
            ("margin at equal length, nats", statistics.length.intercept, number),
            ("margin of a token more, nats", statistics.length.slope, number),
        ]
    if statistics.judge is not None:
        others += [
            ("judge: rank correlation with the margin", statistics.judge.spearman, _short),
            ("judge: AUC of the margin", statistics.judge.auc, _short),
        ]
    if statistics.sections is not None:
        benchmark = statistics.sections.benchmark
        others += [
            (f"{benchmark}: section {name}", each, share)
            for name, each in statistics.sections.scores.items()
        ]
        others += [(f"{benchmark}: score", statistics.sections.score, share)]
    yield from ((words, each, written) for words, each, written in others if each is not None)


def _short(value: float | None) -> str:
    """Return what bins leave certain: they are within 0.25% of a margin."""
    return number(value, 3)


def subsets_table(subsets: pl.DataFrame, statistics: Statistics, unit: str) -> Markup:
    """Return the figures of every subset; `unit` is of the loss."""
    by = statistics.gathered.by
    names = [
        *by,
        N_VALID,
        *(f"{REWARD_ACCURACY}{end}" for end in ("", "_low", "_high")),
        *("p_value", "p_holm", "p_benjamini_hochberg"),
        REWARD_MARGIN,
        LOSS,
    ]
    columns = [
        *(column_of(name, subsets.schema[name]) for name in by),
        Column(title="pairs", written=count),
        *(Column(title=each, written=share) for each in ("accuracy", "from", "to")),
        *(Column(title=each, written=p_value) for each in ("p", "p (Holm)", "p (BH)")),
        Column(title="mean margin", written=number),
        Column(title="mean loss", written=number),
    ]
    caption = (
        f"{counted(subsets.height, 'subset')}. p is of an accuracy (ties half) of 1/2; Holm keeps "
        "the chance of any false alarm among the subsets, BH (Benjamini and Hochberg) the share of "
        f"false alarms. Margin{' and loss' if unit else ''} in nats."
    )
    return table(columns, subsets.select(names).rows(), caption=caption)


def flips_table(flips: Flips) -> Markup:
    """Return whose own log-probs prefer the chosen completion."""
    columns = [
        Column(title="own log-probs prefer the chosen completion"),
        Column(title="policy does", written=count),
        Column(title="policy does not", written=count),
    ]
    rows = [
        ("reference does", flips.both, flips.reference_only),
        ("reference does not", flips.policy_only, flips.neither),
    ]
    caption = "Pairs by whose own log-probs, without a reference, prefer the chosen completion."
    return table(columns, rows, caption=caption, sortable=False)


def reliability_table(reliability: pl.DataFrame) -> Markup:
    """Return the groups of the calibration chart."""
    columns = [
        Column(title="claimed", written=share),
        Column(title="found", written=share),
        Column(title="from", written=share),
        Column(title="to", written=share),
        Column(title="pairs", written=count),
    ]
    names = ("confidence", "accuracy", "accuracy_low", "accuracy_high", "n_pairs")
    return table(columns, reliability.select(names).rows())


def lowest_table(lowest: pl.DataFrame) -> Markup:
    """Return the pairs with the smallest margins."""
    has_id = PAIR_ID.name in lowest.columns
    names = ["row", REWARD_MARGIN, "chosen_reward", "rejected_reward", LOSS]
    columns = [
        *([column_of("pair_id", lowest.schema[PAIR_ID.name])] if has_id else []),
        Column(title="row", written=count),
        Column(title="margin", written=number),
        Column(title="chosen reward", written=number),
        Column(title="rejected reward", written=number),
        Column(title="loss", written=number),
    ]
    rows = lowest.select(*([PAIR_ID.name] if has_id else []), *names).rows()
    caption = (
        f"The {counted(lowest.height, 'pair')} with the smallest margins, in nats. Rows count "
        "from 0 through all files. Pairs that look wrong here often have flipped labels."
    )
    return table(columns, rows, caption=caption)


def invalid_table(report: InvalidReport) -> Content:
    """Return which rules were broken, how often, and where first."""
    if not report.broken:
        return element("p", f"All {counted(report.n_pairs, 'pair')} keep the contract.")
    rows = [
        (
            rule.name,
            rule.requirement,
            rule.count,
            "; ".join(
                f"{'' if each.file is None else each.file + ' '}row {each.row:,}: "
                f"{'null' if each.value is None else as_written(each.value)}"
                for each in rule.offenders
            ),
        )
        for rule in report.broken
    ]
    columns = [
        Column(title="rule"),
        Column(title="a value must be"),
        Column(title="rows", written=count),
        Column(title="the first"),
    ]
    caption = (
        f"{counted(report.n_invalid, 'pair')} of {count(report.n_pairs)} broke the contract; one "
        "that broke two rules counts under both. Rows count from 0."
    )
    return table(columns, rows, caption=caption)


def method_table(evaluation: Evaluation, statistics: Statistics) -> list[Markup]:
    """Return the inputs, parameters and versions, and what the figures mean."""
    gathered = statistics.gathered
    lines: list[tuple[str, Content]] = [
        ("input", evaluation.source),
        *([("reference", evaluation.reference)] if evaluation.reference is not None else []),
        (
            "pairs",
            f"{count(evaluation.summary.n_pairs)}, {count(evaluation.summary.n_valid)} valid",
        ),
        ("loss", str(evaluation.objective)),
        ("beta", f"{evaluation.beta:g}"),
        ("largest log-prob accepted", f"{evaluation.max_logp:g} nats"),
        (
            "columns",
            ", ".join(
                name if name == source else f"{name} from {source}"
                for name, source in evaluation.columns.items()
            ),
        ),
        ("subsets by", ", ".join(gathered.by) or "nothing"),
        ("intervals from", statistics.clusters),
        ("level of intervals", f"{100.0 * statistics.level:g}%"),
        ("versions", ", ".join(f"{n} {version(n)}" for n in ("dpo_pipeline", *_LIBRARIES))),
    ]
    return [
        facts(lines),
        element(
            "p",
            "Rewards are beta times what the loss compares; the margin is the chosen less the "
            "rejected reward, and a pair is right if it is above 0. Each valid pair weighs alike. "
            "Means come from exact sums. Charts, quantiles, calibration and the best beta come "
            "from histograms whose bins are within 0.25% of a margin. Nats are natural-log units.",
        ),
    ]
