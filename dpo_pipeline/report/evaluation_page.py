"""The report of an evaluation, top down: the answer, what is wrong, the charts, how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from dpo_pipeline.columns import LOSS, REWARD_ACCURACY, REWARD_MARGIN
from dpo_pipeline.defaults import LOSS_NAME
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation import Evaluation, Finding, Statistics
from dpo_pipeline.losses import unit_of_loss
from dpo_pipeline.report.charts import LIGHT, PAGE, Figure
from dpo_pipeline.report.evaluation_charts import figures_of, level_of
from dpo_pipeline.report.evaluation_tables import (
    figures_table,
    flips_table,
    invalid_table,
    lowest_table,
    method_table,
    reliability_table,
    subsets_table,
)
from dpo_pipeline.report.markup import Content, Markup, element
from dpo_pipeline.report.page import Section, Tile, figure, folded, page
from dpo_pipeline.statistics import (
    Estimate,
    between,
    count,
    counted,
    number,
    share,
    share_within,
    with_interval,
)

_ASK: Final = "needs the statistics: call evaluate with statistics=True"
_COIN: Final = 0.5


def charts_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return the charts by name, as altair objects with titles, in light colours.

    Raises:
        UsageError: The evaluation has no statistics.
    """
    statistics = _statistics(evaluation, "charts()")
    return {
        each.name: each.chart.properties(title=each.title)
        for each in figures_of(evaluation, statistics, LIGHT)
    }


def page_of(evaluation: Evaluation) -> str:
    """Return the report as one HTML document.

    Raises:
        UsageError: The evaluation has no statistics.
    """
    statistics = _statistics(evaluation, "report()")
    figures = {each.name: each for each in figures_of(evaluation, statistics, PAGE)}
    objective = evaluation.objective
    return page(
        title=f"{evaluation.source}: {objective} loss, beta {evaluation.beta:g}",
        verdict=verdict(evaluation, statistics),
        lead=[element("p", each, class_="lead") for each in _lead(evaluation, statistics)],
        tiles=list(_tiles(evaluation, statistics)),
        sections=list(_sections(evaluation, statistics, figures)),
        made_by=f"Made by dpo_pipeline {version('dpo_pipeline')}. This page holds all it shows and "
        "loads nothing.",
    )


def verdict(evaluation: Evaluation, statistics: Statistics) -> str:
    """Return the answer in a sentence, with its interval."""
    accuracy = statistics.figures.get(REWARD_ACCURACY)
    if accuracy is None:
        return "No pair is valid, so there is nothing to say."
    n = counted(evaluation.summary.n_valid, "pair")
    if statistics.is_all_ties:
        all_of_them = "The pair is a tie" if accuracy.n == 1 else f"All {n} are ties"
        return f"{all_of_them}: the rewards prefer nothing."
    interval = accuracy.interval
    told = "not told apart from a coin toss"
    if interval is not None and interval.low > _COIN:
        told = "better than a coin toss"
    elif interval is not None and interval.high < _COIN:
        told = "worse than a coin toss"
    found = with_interval(accuracy, share_within(interval))
    return f"The chosen completion has the higher reward in {found} of {n}: {told}."


def _statistics(evaluation: Evaluation, what: str) -> Statistics:
    if evaluation.statistics is None:
        raise UsageError(f"{what} {_ASK}")
    return evaluation.statistics


def _lead(evaluation: Evaluation, statistics: Statistics) -> Iterator[str]:
    summary = evaluation.summary
    gains = statistics.advantages
    hardest = min(gains, key=lambda name: gains[name].value, default=None)
    if hardest is not None and not statistics.is_all_ties:
        rules = {
            "longer": "preferring the longer completion",
            "shorter": "preferring the shorter completion",
            "reference": "the reference's own log-probs",
            "policy": "the policy's own log-probs",
        }
        found = gains[hardest]
        ties = " A tie counts as wrong." if statistics.has_ties else ""
        yield (
            f"The best rule without rewards, {rules.get(hardest, hardest)}, is right in "
            f"{share(statistics.baselines[hardest].value)}; the rewards are {_beside(found)} it."
            f"{ties}"
        )
    if summary.n_invalid:
        yield (
            f"{counted(summary.n_invalid, 'pair')} of {count(summary.n_pairs)} broke the contract "
            "and are in no figure."
        )


def _beside(estimate: Estimate) -> str:
    """Return how far ahead of a rule the rewards are, or behind it, in percentage points."""
    interval = estimate.interval
    sign = -1.0 if estimate.value < 0.0 else 1.0
    limits = ""
    if interval is not None:
        low, high = sorted(100.0 * sign * each for each in (interval.low, interval.high))
        limits = f" ({number(low, 3)} to {number(high, 3)})"
    if estimate.value == 0.0:
        return f"level{limits} with"
    side = "behind" if estimate.value < 0.0 else "ahead of"
    return f"{number(100.0 * sign * estimate.value, 3)} points{limits} {side}"


def _tiles(evaluation: Evaluation, statistics: Statistics) -> Iterator[Tile]:
    figures = statistics.figures
    if REWARD_ACCURACY in figures:
        accuracy = figures[REWARD_ACCURACY]
        yield _tile("Reward accuracy", accuracy, share_within(accuracy.interval))
    if LOSS in figures:
        unit = _unit(evaluation)
        title = f"Mean loss ({unit})" if unit else "Mean loss"
        yield _tile(title, figures[LOSS], number, _of_no_margins(evaluation))
    if REWARD_MARGIN in figures:
        yield _tile("Mean margin (nats)", figures[REWARD_MARGIN], number)
    best = statistics.calibration.best_beta
    if best is not None:
        of = "" if _is_dpo(evaluation) else " of the DPO loss"
        yield _tile(f"Best beta{of} ({evaluation.beta:g} was used)", best, _short)
    yield Tile(
        title="Valid pairs",
        value=count(evaluation.summary.n_valid),
        note=f"{counted(evaluation.summary.n_ties, 'tie')}, "
        f"{count(evaluation.summary.n_invalid)} invalid",
    )


def _tile(title: str, estimate: Estimate, written: Any, more: str = "") -> Tile:
    return Tile(
        title=title,
        value=written(estimate.value),
        note="; ".join(filter(None, (between(estimate.interval, written), more))),
    )


def _short(value: float | None) -> str:
    return number(value, 3)


def _of_no_margins(evaluation: Evaluation) -> str:
    return "0.6931 if all margins were 0" if _is_dpo(evaluation) else ""


def _is_dpo(evaluation: Evaluation) -> bool:
    return [term.loss.name for term in evaluation.objective.terms] == [LOSS_NAME]


def _unit(evaluation: Evaluation) -> str:
    return unit_of_loss(term.loss.name for term in evaluation.objective.terms)


def _sections(
    evaluation: Evaluation, statistics: Statistics, figures: Mapping[str, Figure]
) -> Iterator[Section]:
    def shown(*names: str, **more: Content) -> list[Markup]:
        return [
            part
            for name in names
            if name in figures
            for part in (
                *(() if len(names) == 1 else (element("h3", figures[name].title),)),
                figure(figures[name], more=more.get(name)),
            )
        ]

    yield Section(
        name="findings", title="Findings", content=findings_list(evaluation.findings or ())
    )
    if "margins" in figures:
        yield Section(name="margins", title="Margins", content=shown("margins"))
        yield (
            Section(name="accuracy", title="Accuracy", content=shown("accuracy", "subsets"))
            if "subsets" in figures
            else Section(
                name="accuracy", title="Accuracy against simple rules", content=shown("accuracy")
            )
        )
    if statistics.subsets is not None:
        yield Section(
            name="by-subset",
            title="All subsets",
            content=subsets_table(statistics.subsets, statistics, _unit(evaluation)),
        )
    if "rewards" in figures:
        flips = None if statistics.flips is None else flips_table(statistics.flips)
        yield Section(name="rewards", title="Rewards", content=shown("rewards", rewards=flips))
    if "course" in figures:
        yield Section(name="course", title="Loss over the rows", content=shown("course"))
    if "calibration" in figures:
        numbers = folded(
            "The groups as a table", reliability_table(statistics.calibration.reliability)
        )
        yield Section(
            name="calibration",
            title="Calibration",
            content=shown("calibration", calibration=numbers),
        )
    for name in ("lengths", "betas", "judge"):
        if name in figures:
            yield Section(name=name, title=figures[name].title, content=shown(name))
    yield Section(
        name="figures",
        title="All figures",
        content=figures_table(statistics, level_of(statistics), _unit(evaluation)),
    )
    if statistics.gathered.lowest.height:
        yield Section(
            name="lowest", title="Lowest margins", content=lowest_table(statistics.gathered.lowest)
        )
    yield Section(
        name="invalid", title="What was invalid", content=invalid_table(evaluation.invalid)
    )
    yield Section(
        name="method", title="How it was computed", content=method_table(evaluation, statistics)
    )


def findings_list(findings: Sequence[Finding]) -> Markup:
    """Return findings, gravest first, or that there are none."""
    if not findings:
        return element("p", "No check found anything wrong with these figures.")
    items = [
        element(
            "li",
            element("h3", element("span", each.severity, class_="severity"), _capital(each.title)),
            element("p", _capital(each.evidence)),
            element("p", each.advice, class_="advice"),
            class_=each.severity,
        )
        for each in findings
    ]
    return element("ul", items, class_="findings")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
