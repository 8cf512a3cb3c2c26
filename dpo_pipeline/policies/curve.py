"""The learning curve of policies that are steps of one run: figures on the same pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from dpo_pipeline.columns import LOSS, N_VALID, POLICY_CHOSEN, POLICY_REJECTED
from dpo_pipeline.defaults import CONFIDENCE_LEVEL
from dpo_pipeline.exact import QUANTA_PER_NAT
from dpo_pipeline.policies.finding import Steps
from dpo_pipeline.statistics import (
    PolicyTest,
    Trends,
    p_equation,
    percent,
    short_number,
    signed_points_within,
    trends,
)
from dpo_pipeline.tables import Column, Figure, Limits, Name, Part, Sentence, Table, Unit

ACCURACY: Final = "accuracy"
CHOSEN_DOWN: Final = "chosen_down"
LOG_RATIO_SIZE: Final = "log_ratio_size"
CHOSEN: Final = POLICY_CHOSEN.name

CURVE_FIGURES: Final = {
    ACCURACY: "accuracy",
    LOSS: "loss",
    CHOSEN: "chosen log-prob",
    POLICY_REJECTED.name: "rejected log-prob",
    CHOSEN_DOWN: "chosen down",
    LOG_RATIO_SIZE: "log-ratio size",
}
"""The figures of a step: a tie counts half in the accuracy; `chosen_down` is the share of chosen
completions less likely than under the reference; `log_ratio_size` the mean size of a log-ratio."""
SHARES: Final = (ACCURACY, CHOSEN_DOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A figure that is shown to differ between two steps."""

    from_step: int
    to_step: int
    difference: float  # the later step less the earlier
    low: float  # limits that hold for all differences of the curve
    high: float
    p_adjusted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Figures over the steps of a run, on the pairs that all policies have.

    Attributes:
        table: One row a step: `step`, `policy`, then each of `CURVE_FIGURES` with `_low` and
            `_high`, which hold at all steps at once. Null where there is no reference, and limits
            of one cluster.
        chosen_falls: The first step at which the chosen completions are shown to be less likely
            than at an earlier step; None if no step is.
        accuracy_rises: The last step from which accuracy is shown to rise, and the first after it
            at which it is shown; None if it is not shown to rise.
        left_out: Policies that are no steps.
        level: Of the bands; 1 - level is the chance of any false statement on the two changes.
    """

    table: pl.DataFrame
    chosen_falls: Change | None
    accuracy_rises: Change | None
    left_out: tuple[str, ...]
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        changes = {"chosen_first_falls": self.chosen_falls}
        changes["accuracy_last_rises"] = self.accuracy_rises
        return {
            **{n: None if each is None else asdict(each) for n, each in changes.items()},
            "level": self.level,
            "left_out": list(self.left_out),
            "steps": self.table.to_dicts(),
        }

    @property
    def figures(self) -> Mapping[str, str]:
        """The figures that are there, with their titles."""
        return {n: t for n, t in CURVE_FIGURES.items() if self.table[n].null_count() == 0}

    def sentences(self) -> Iterator[str]:
        """Yield when the chosen likelihood falls, and until when accuracy rises."""
        fall, rise = self.chosen_falls, self.accuracy_rises
        if fall is None:
            yield "the chosen completions are at no step shown to be less likely than before"
        else:
            yield (
                f"the chosen completions are first shown to be less likely at step "
                f"{fall.to_step:,}: {short_number(fall.difference, 4)} nats from step "
                f"{fall.from_step:,}, {p_equation(fall.p_adjusted)}"
            )
        if rise is None:
            yield "accuracy is at no step shown to be higher than before"
        else:
            yield (
                f"accuracy is last shown to rise from step {rise.from_step:,} to step "
                f"{rise.to_step:,}: {signed_points_within(None)(rise.difference)} points, "
                f"{p_equation(rise.p_adjusted)}; "
                "no later rise is shown"
            )

    def to_parts(self) -> Iterator[Part]:
        """Yield the sentences and the table."""
        for text in self.sentences():
            yield Sentence(text=text)
        if self.left_out:
            yield Sentence(text=f"not in the curve: {', '.join(self.left_out)}")
        band = f"{percent(self.level)} band"
        columns, rows = [Column("step")], []
        for title in self.figures.values():
            columns += [Column(title), Column(band, joins=True)]
        for row in self.table.iter_rows(named=True):
            cells: list[Any] = [Name(row["step"])]
            for name in self.figures:
                unit: Unit = "share" if name in SHARES else "number"
                low, high = row[f"{name}_low"], row[f"{name}_high"]
                ends = None if low is None else (low, high)
                cells += [
                    Figure(row[name], unit, ends),
                    "" if ends is None else Limits(*ends, unit),
                ]
            rows.append(tuple(cells))
        yield Table(
            columns=tuple(columns),
            rows=rows,
            title="by step, on the same pairs",
            note="each band holds at all steps at once; chosen down: chosen completions less "
            "likely than under the reference; log-ratio size: mean of both sides, in nats"
            if CHOSEN_DOWN in self.figures
            else "each band holds at all steps at once",
        )


def curve_of(
    clusters: pl.DataFrame, steps: Steps, labels: tuple[str, ...], level: float = CONFIDENCE_LEVEL
) -> Curve:
    """Return the curve from sums by cluster, a column a figure and policy."""
    there = [name for name in CURVE_FIGURES if f"{name} {steps.places[0]}" in clusters.columns]
    sums = {}
    for name in there:
        own = clusters.select(pl.col(f"{name} {i}").cast(pl.Float64) for i in steps.places)
        sums[name] = own.to_numpy() / _UNITS.get(name, QUANTA_PER_NAT)
    counts = clusters[N_VALID].to_numpy().astype(np.float64)
    found = trends(sums, counts, shares=SHARES, tested=(ACCURACY, CHOSEN), level=level)
    return Curve(
        table=_table(found, steps, labels),
        chosen_falls=_first_fall(found.tests[CHOSEN], steps, 1.0 - level),
        accuracy_rises=_last_rise(found.tests[ACCURACY], steps, 1.0 - level),
        left_out=steps.left_out,
        level=level,
    )


_UNITS: Final = {ACCURACY: 2.0, CHOSEN_DOWN: 1.0}
"""What a sum is divided by, if it is not in quanta."""


def _table(found: Trends, steps: Steps, labels: tuple[str, ...]) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "step": list(steps.numbers),
        "policy": [labels[i] for i in steps.places],
    }
    for name in CURVE_FIGURES:
        bands = found.bands.get(name)
        for end in ("value", "low", "high"):
            column = name if end == "value" else f"{name}_{end}"
            values = None if bands is None else [getattr(each, end) for each in bands]
            columns[column] = pl.Series(values or [None] * len(steps.numbers), dtype=pl.Float64)
    return pl.DataFrame(columns)


def _first_fall(tests: tuple[PolicyTest, ...], steps: Steps, alpha: float) -> Change | None:
    """Return the fall that is shown by the first step, from the last step before it."""
    shown = (each for each in tests if each.difference < 0.0 and each.p_value < alpha)
    return _change(min(shown, key=lambda each: (each.first, -each.second), default=None), steps)


def _last_rise(tests: tuple[PolicyTest, ...], steps: Steps, alpha: float) -> Change | None:
    """Return the rise that is shown from the last step on, at the first step after it."""
    shown = (each for each in tests if each.difference > 0.0 and each.p_value < alpha)
    return _change(min(shown, key=lambda each: (-each.second, each.first), default=None), steps)


def _change(test: PolicyTest | None, steps: Steps) -> Change | None:
    if test is None:
        return None
    return Change(
        from_step=steps.numbers[test.second],
        to_step=steps.numbers[test.first],
        difference=test.difference,
        low=test.low,
        high=test.high,
        p_adjusted=test.p_value,
    )
