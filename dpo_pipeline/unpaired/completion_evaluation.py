"""What `evaluate` returns of completions, and its projections: dictionary, metrics, text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

import polars as pl

from dpo_pipeline.defaults import CONFIDENCE_LEVEL
from dpo_pipeline.errors import UsageError
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.plan import Origin
from dpo_pipeline.statistics import Estimate, counted, percent
from dpo_pipeline.tables import (
    Column,
    Figure,
    Limits,
    Part,
    Printable,
    Table,
    key_columns,
    rows_by_key,
    whole,
)
from dpo_pipeline.unpaired.sums_of_completions import (
    COMPLETION_FIGURES,
    KTO_METRICS,
    CompletionSummary,
)

_VERSION: Final = 1
"""Changes when a field of the document is removed or changes its meaning."""
AUC: Final = "auc"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CompletionEvaluation(Printable):
    """The figures of completions, for an unpaired or a listwise loss.

    Attributes:
        source: What was evaluated.
        reference: Where the reference's log-probs came from, if not from `source`.
        objective: The loss with its parameters.
        max_logp: Largest log-probability accepted, in nats.
        columns: Canonical column name to the input column it came from.
        summary: The figures over all completions.
        auc: Chance that a desirable completion has a larger reward than an undesirable one, equal
            ones half, with DeLong's interval. None without both kinds, or for a listwise loss.
        auc_error: How far the area may be off, as rewards that differ by less than about 0.03% are
            counted as equal.
        intervals: Loss, rewards and margin with their intervals, by prompt where completions have
            prompts; empty unless asked for.
        invalid: Which rules were broken, how often, and where first.
        subsets: One row a subset: the columns of `by`, then the fields of `CompletionSummary`.
        origin: The command and the fingerprint of the input. Not in the document.
    """

    source: str
    reference: str | None
    objective: CheckedObjective
    max_logp: float
    columns: Mapping[str, str]
    summary: CompletionSummary
    auc: Estimate | None
    auc_error: float | None
    invalid: InvalidReport
    subsets: pl.DataFrame | None = None
    origin: Origin | None = None
    intervals: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.source

    @property
    def sources(self) -> tuple[str, ...]:
        """The completions, and the reference if it was elsewhere."""
        return (self.source,) if self.reference is None else (self.source, self.reference)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is surely wrong in the valid completions, a sentence each."""
        return self.invalid.warnings

    @property
    def no_verdict(self) -> str | None:
        """Why the figures decide nothing: there is no verdict on completions to be withheld."""
        return None

    @property
    def gated(self) -> tuple[str, ...]:
        """The figures that a gate can have a mark for."""
        return GATED_OF_COMPLETIONS

    def figure(self, name: str) -> tuple[float, tuple[float, float] | None]:
        """Return a figure, by TRL's name or the library's, and its interval if it has one."""
        if name == AUC and self.auc is not None:
            ends = self.auc.interval
            return self.auc.value, None if ends is None else (ends.low, ends.high)
        name = KTO_METRICS.get(name, name)
        value = getattr(self.summary, name, None)
        if value is None:
            raise UsageError(f"{self.source}: this evaluation has no {name}")
        return float(value), self._ends(name)

    def _ends(self, name: str) -> tuple[float, float] | None:
        ends = None if name not in self.intervals else self.intervals[name].interval
        return None if ends is None else (ends.low, ends.high)

    @property
    def level(self) -> float:
        """Confidence level of the intervals."""
        ends = None if self.auc is None else self.auc.interval
        return CONFIDENCE_LEVEL if ends is None else ends.level

    def to_metrics(self, prefix: str = "") -> dict[str, float | None]:
        """Return the figures under the names of TRL's KTOTrainer; its own `prefix` is `eval_`."""
        return self.summary.to_metrics(prefix)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "document_version": _VERSION,
            "warnings": list(self.invalid.all_warnings),
            "not_looked_for": self.invalid.not_looked_for,
            "dpo_pipeline": version("dpo_pipeline"),
            "source": self.source,
            "reference": self.reference,
            "row": "completion",
            "loss": str(self.objective),
            "beta": self.objective.beta,
            "objective": self.objective.to_dict(),
            "max_logp": self.max_logp,
            "columns": dict(self.columns),
            "summary": self.summary.to_dict(),
            "metrics": self.to_metrics(),
            "auc": None if self.auc is None else {**_plain(self.auc), "error": self.auc_error},
            "intervals": {name: _plain(each) for name, each in self.intervals.items()},
            "invalid": self.invalid.to_dict()["invalid"],
            "subsets": None if self.subsets is None else rows_by_key(self.subsets, self._by),
        }

    @property
    def _by(self) -> list[str]:
        names = [] if self.subsets is None else self.subsets.columns
        return [name for name in names if name not in COMPLETION_FIGURES]

    def to_frame(self) -> pl.DataFrame:
        """Return one row a subset with `by`, else one row a figure."""
        if self.subsets is not None:
            return self.subsets
        found = {k: v for k, v in self.summary.to_dict().items() if v is not None}
        if self.auc is not None:
            found[AUC] = self.auc.value
        return pl.DataFrame({"figure": list(found), "value": [float(v) for v in found.values()]})

    def to_parts(self) -> Iterator[Part]:
        """Yield what is wrong, and the figures."""
        yield from self.invalid.warning_parts()
        yield from self.invalid.rule_parts()
        yield self._figures()
        if self.subsets is not None:
            there = self.subsets.columns
            count = "n_valid" if "n_valid" in there else "n_prompts"
            names = [
                n
                for n in KTO_METRICS.values()
                if n in there and self.subsets[n].null_count() < self.subsets.height
            ]
            shown = self.subsets.select(*self._by, count, *names)
            rows = [
                (*row[:-n], *map(Figure, row[-n:])) for n in [len(names)] for row in shown.rows()
            ]
            columns = (*key_columns(self._by), *map(Column, (count, *names)))
            yield Table(columns=columns, rows=rows, title="by subset")

    def _figures(self) -> Table:
        s, rows = self.summary, list[tuple[Any, ...]]()
        for metric, name in KTO_METRICS.items():
            value = getattr(s, name)
            if value is not None:
                ends = self._ends(name)
                rows.append((metric, Figure(value), "" if ends is None else Limits(*ends)))
        if self.auc is not None:
            of_auc = self.auc.interval
            limits = "" if of_auc is None else Limits(of_auc.low, of_auc.high)
            rows.append((AUC, Figure(self.auc.value), limits))
        kinds = {"desirable": s.n_chosen, "not": s.n_rejected}
        kinds |= {"prompts": s.n_prompts, "prompts without a loss": s.n_prompts_without_loss}
        rows += [(kind, n, "") for kind, n in kinds.items() if n is not None]
        counts = f"{counted(s.n_completions, 'completion')}, {s.n_invalid:,} invalid"
        title = (
            f"{whole(self.source)}: {counts}, {self.objective} loss, beta {self.objective.beta:g}"
        )
        heads = ("figure", "mean", f"{percent(self.level)} interval")
        return Table(columns=tuple(map(Column, heads)), rows=rows, title=title)


GATED_OF_COMPLETIONS: Final = (*KTO_METRICS, *COMPLETION_FIGURES, AUC)
"""Figures of completions that can have a mark."""


def _plain(estimate: Estimate) -> dict[str, Any]:
    ends = estimate.interval
    return {
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "low": None if ends is None else ends.low,
        "high": None if ends is None else ends.high,
        "level": None if ends is None else ends.level,
        "method": None if ends is None else ends.method,
        "n": estimate.n,
    }
