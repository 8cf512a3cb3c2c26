"""The report of an evaluation, top down: the answer, what is wrong, the charts, how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import LOSS, N_VALID, OF_SUBSET, PAIR_ID, REWARD_ACCURACY, REWARD_MARGIN
from dpo_pipeline.defaults import LOSS_NAME
from dpo_pipeline.evaluation import (
    Evaluation,
    Flips,
    Statistics,
    advised_once,
    cells_of,
    words_of,
)
from dpo_pipeline.invalid_report import BrokenRule, InvalidReport
from dpo_pipeline.rendering import cell
from dpo_pipeline.report import page_tables as tables
from dpo_pipeline.report.chart_data import SUBSETS_DRAWN
from dpo_pipeline.report.charts import PAGE, Figure
from dpo_pipeline.report.evaluation_charts import (
    COIN,
    figures_of,
    unit_of,
)
from dpo_pipeline.report.page import Page, Section, Tile
from dpo_pipeline.report.page_tables import Column, Table, all_as
from dpo_pipeline.statistics import (
    DASH,
    Estimate,
    as_written,
    between,
    count,
    counted,
    number,
    points,
    points_between,
    share,
    share_with_limits,
    share_within,
    with_interval,
)
from dpo_pipeline.tables import without_secrets

_METHOD: Final = (
    "Rewards are beta times what the loss compares; the margin is the chosen less the rejected "
    "reward, and a pair is right if it is above 0. Each valid pair weighs alike. Means come from "
    "exact sums. Charts, quantiles, calibration and the best beta come from histograms whose bins "
    "are within 0.25% of a margin. Nats are natural-log units."
)
_LIBRARIES: Final = ("dpo_pipeline", "polars", "pyarrow", "altair", "vl-convert-python")


def page_of(evaluation: Evaluation, statistics: Statistics) -> str:
    """Return the report as one HTML document."""
    figures = {each.name: each for each in figures_of(evaluation, statistics, PAGE)}
    return Page(
        title=f"{without_secrets(evaluation.source)}: {evaluation.objective} loss, "
        f"beta {evaluation.beta:g}",
        verdict=verdict(evaluation, statistics),
        lead=list(_lead(evaluation, statistics)),
        tiles=list(_tiles(evaluation, statistics)),
        sections=list(_sections(evaluation, statistics, figures)),
    ).html()


def verdict(evaluation: Evaluation, statistics: Statistics) -> str:
    """Return the answer in a sentence, with its interval."""
    accuracy = statistics.figures.get(REWARD_ACCURACY)
    if accuracy is None:
        return "No pair is valid, so there is nothing to say."
    n = counted(evaluation.summary.n_valid, "pair")
    if statistics.tie_rate == 1.0:
        all_of_them = "The pair is a tie" if accuracy.n == 1 else f"All {n} are ties"
        return f"{all_of_them}: the rewards prefer nothing."
    if evaluation.no_verdict is not None:
        return f"N{evaluation.no_verdict[1:]}."
    interval = accuracy.interval
    told = "not told apart from"
    if interval is not None and interval.low > COIN:
        told = "better than"
    elif interval is not None and interval.high < COIN:
        told = "worse than"
    found = with_interval(accuracy, share_within(interval))
    return f"The chosen completion has the higher reward in {found} of {n}: {told} a coin toss."


def _lead(evaluation: Evaluation, statistics: Statistics) -> Iterator[str]:
    summary = evaluation.summary
    gains = statistics.advantages
    hardest = min(gains, key=lambda name: gains[name].value, default=None)
    if hardest is not None and statistics.tie_rate < 1.0 and evaluation.no_verdict is None:
        right, found = share_with_limits(statistics.baselines[hardest]), gains[hardest]
        if not any(right in each.evidence for each in evaluation.findings or ()):
            ties = " A tie counts as wrong." if statistics.tie_rate > 0.0 else ""
            yield (
                f'The best rule without rewards, "prefer: {hardest}", is right in {right}; the '
                f"rewards differ from it by {points(found.value, found.interval)} "
                f"({points_between(found.interval)}).{ties}"
            )
    if summary.n_invalid:
        yield (
            f"{counted(summary.n_invalid, 'pair')} of {count(summary.n_pairs)} broke the contract "
            "and are in no figure."
        )


def _tiles(evaluation: Evaluation, statistics: Statistics) -> Iterator[Tile]:
    figures, summary = statistics.figures, evaluation.summary
    is_dpo = [term.loss.name for term in evaluation.objective.terms] == [LOSS_NAME]
    if REWARD_ACCURACY in figures:
        accuracy = figures[REWARD_ACCURACY]
        yield _tile("Reward accuracy", accuracy, share_within(accuracy.interval))
    if LOSS in figures:
        unit = unit_of(evaluation)
        title = f"Mean loss ({unit})" if unit else "Mean loss"
        of_no_margins = "0.6931 if all margins were 0" if is_dpo else ""
        yield _tile(title, figures[LOSS], number, of_no_margins)
    if REWARD_MARGIN in figures:
        yield _tile("Mean margin (nats)", figures[REWARD_MARGIN], number)
    best = statistics.calibration.best_beta
    if best is not None:
        of = "" if is_dpo else " of the DPO loss"
        yield _tile(f"Best beta{of} ({evaluation.beta:g} was used)", best, tables.three_digits)
    yield Tile(
        "Valid pairs",
        count(summary.n_valid),
        f"{counted(summary.n_ties, 'tie')}, {count(summary.n_invalid)} invalid",
    )


def _tile(title: str, estimate: Estimate, written: Any, more: str = "") -> Tile:
    note = "; ".join(filter(None, (between(estimate.interval, written), more)))
    return Tile(title, written(estimate.value), note)


def _sections(
    evaluation: Evaluation, statistics: Statistics, figures: Mapping[str, Figure]
) -> Iterator[Section]:
    beside = {"calibration": _reliability_table(statistics)}
    if statistics.flips is not None:
        beside["rewards"] = _flips_table(statistics.flips)

    def drawn(*names: str, title: str = "") -> Iterator[Section]:
        """Yield a section of these charts, under the title of the first unless given one."""
        shown = [
            replace(figures[each], table=beside.get(each)) for each in names if each in figures
        ]
        if shown:
            yield Section(name=names[0], title=title or shown[0].title, figures=shown)

    findings = evaluation.findings or ()
    none = () if findings else ("No check found anything wrong with these figures.",)
    yield Section(name="findings", title="Findings", findings=advised_once(findings), parts=none)
    yield from drawn("margins")
    yield from drawn("accuracy", "subsets", title="Accuracy" if "subsets" in figures else "")
    unit, subsets = unit_of(evaluation), statistics.subsets
    if subsets is not None:
        by_subset = _subsets_table(subsets, statistics.gathered.by, unit)
        worst = _worst_by_subset(statistics, subsets)
        yield Section(name="by-subset", title="All subsets", parts=[by_subset, *worst])
    yield from drawn("rewards", title="Rewards")
    for name in ("course", "calibration", "lengths", "betas", "judge"):
        yield from drawn(name)
    yield Section(name="figures", title="All figures", parts=[_figures_table(statistics, unit)])
    lowest = statistics.gathered.lowest
    if lowest.height:
        yield Section(name="lowest", title="Lowest margins", parts=[_lowest_table(lowest)])
    invalid = [_invalid_table(evaluation.invalid), *_shown_rows(evaluation.invalid)]
    yield Section(name="invalid", title="What was invalid", parts=invalid)
    method = _method_table(evaluation, statistics)
    yield Section(name="method", title="How it was computed", parts=[method, _METHOD])


def _figures_table(statistics: Statistics, unit: str) -> Table:
    """Return every figure with its interval, and how that was made; `unit` is of the loss."""
    interval = Column(f"{tables.percent(statistics.level)} interval", cell)
    columns = (Column("figure"), Column("what it is"), Column("value", cell), interval)
    rows = []
    for name, each in statistics.rows.items():
        made_by = DASH if each.interval is None else each.interval.method
        words = words_of(name, unit if name == LOSS else None)
        rows.append((name, words, *cells_of(name, each), made_by, each.n))
    return Table(
        columns=(*columns, Column("made by"), Column("pairs", count)),
        rows=rows,
        caption=f"Intervals from {statistics.clusters}.",
        sortable=False,
    )


def _subsets_table(subsets: pl.DataFrame, by: tuple[str, ...], unit: str) -> Table:
    return tables.table_of(
        _in_order(subsets),
        {
            N_VALID: ("pairs", count),
            REWARD_ACCURACY: ("accuracy", share),
            f"{REWARD_ACCURACY}_low": ("from", share),
            f"{REWARD_ACCURACY}_high": ("to", share),
            **tables.P_VALUES,
            REWARD_MARGIN: ("mean margin", number),
            LOSS: ("mean loss", number),
        },
        by=by,
        caption=f"{counted(subsets.height, 'subset')}. p is of an accuracy (ties half) of 1/2; "
        f"{tables.WORDS_OF_P_VALUES} Margin{' and loss' if unit else ''} in nats.",
    )


def _flips_table(flips: Flips) -> Table:
    return tables.crossed(
        "own log-probs prefer the chosen completion",
        ("policy does", "policy does not"),
        {
            "reference does": (flips.both, flips.reference_only),
            "reference does not": (flips.policy_only, flips.neither),
        },
        caption="Pairs by whose own log-probs, without a reference, prefer the chosen completion.",
    )


def _reliability_table(statistics: Statistics) -> Table:
    return tables.table_of(
        statistics.calibration.reliability,
        all_as(share, **tables.RELIABILITY) | all_as(count, n_pairs="pairs"),
        folded="The groups as a table",
    )


def _lowest_table(lowest: pl.DataFrame) -> Table:
    return tables.table_of(
        lowest,
        {
            "row": ("row", count),
            REWARD_MARGIN: ("margin", number),
            **tables.shown_columns(lowest),
            **all_as(number, chosen_reward="chosen reward", rejected_reward="rejected reward"),
            LOSS: ("loss", number),
        },
        by=[name for name in (PAIR_ID.name,) if name in lowest.columns],
        caption=f"The {counted(lowest.height, 'pair')} with the smallest margins, in nats. Rows "
        "count from 0 through all files. Pairs that look wrong here often have flipped labels.",
    )


def _worst_by_subset(statistics: Statistics, subsets: pl.DataFrame) -> Iterator[Table]:
    """Yield the lowest margins of each subset, in the order of the table of subsets."""
    worst, by = statistics.gathered.worst, list(statistics.gathered.by)
    if worst is None:
        return
    keys = [f"{OF_SUBSET}{name}" for name in by]
    of_each = worst.partition_by(keys, as_dict=True, include_key=False)
    for key in _in_order(subsets).select(by).head(SUBSETS_DRAWN).rows():
        if key in of_each:
            folded = f"{' / '.join(map(as_written, key))}: its lowest margins"
            yield replace(_lowest_table(of_each[key]), caption="", folded=folded)


def _in_order(subsets: pl.DataFrame) -> pl.DataFrame:
    return subsets.sort(REWARD_ACCURACY, descending=True, nulls_last=True, maintain_order=True)


def _invalid_table(report: InvalidReport) -> Table | str:
    if not report.broken:
        return f"All {counted(report.n_pairs, 'pair')} keep the contract."
    columns = Column("rule"), Column("a value must be"), Column("rows", count), Column("the first")
    return Table(
        columns=columns,
        rows=[(each.name, each.requirement, each.count, _first(each)) for each in report.broken],
        caption=f"{counted(report.n_invalid, 'pair')} of {count(report.n_pairs)} broke the "
        "contract; one that broke two rules counts under both. Rows count from 0.",
    )


def _shown_rows(report: InvalidReport) -> Iterator[Table]:
    """Yield the invalid rows that are listed, with the columns that were asked for."""
    rows = report.shown_rows
    if rows:
        names = list(next(iter(rows.values())))
        columns = [Column("invalid row"), *(Column(name, tables.as_text) for name in names)]
        yield Table(columns=columns, rows=[(place, *each.values()) for place, each in rows.items()])


def _first(rule: BrokenRule) -> str:
    return "; ".join(
        f"{'' if each.file is None else each.file + ' '}{each.place}: "
        f"{'null' if each.value is None else as_written(each.value)}"
        for each in rule.offenders
    )


def _asked(statistics: Statistics) -> Iterator[tuple[str, str]]:
    """Yield the judge and the sections, if there are any."""
    if statistics.judge is not None:
        yield "judge", " less ".join(statistics.judge.columns)
    if statistics.sections is not None:
        names = ", ".join(statistics.sections.scores)
        yield "sections", f"{statistics.sections.benchmark}: {names}"


def _method_table(evaluation: Evaluation, statistics: Statistics) -> Table:
    summary, by = evaluation.summary, statistics.gathered.by
    columns = [
        name if name == source else f"{name} from {source}"
        for name, source in evaluation.columns.items()
    ]
    reference = [] if evaluation.reference is None else [("reference", evaluation.reference)]
    return tables.facts(
        [
            ("input", without_secrets(evaluation.source)),
            *reference,
            ("pairs", f"{count(summary.n_pairs)}, {count(summary.n_valid)} valid"),
            ("loss", str(evaluation.objective)),
            ("beta", f"{evaluation.beta:g}"),
            ("largest log-prob accepted", f"{evaluation.max_logp:g} nats"),
            ("columns", ", ".join(columns)),
            ("subsets by", ", ".join(by) or "nothing"),
            *_asked(statistics),
            ("intervals from", statistics.clusters),
            ("level of intervals", tables.percent(statistics.level)),
            *tables.origin_rows(evaluation.origin),
            ("versions", ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)),
        ]
    )
