"""What `evaluate` and `score_parquet` return, and its projections: dictionary, metrics, text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import check_extra, check_page_path
from dpo_pipeline.columns import LOSS, N_INVALID, N_PAIRS, REWARD_ACCURACY, REWARD_MARGIN
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation.estimates import Intervals, Statistics
from dpo_pipeline.evaluation.findings import Finding, findings_of
from dpo_pipeline.evaluation.gating import ADVANTAGE, GATED
from dpo_pipeline.exact import quantile
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.statistics import Estimate
from dpo_pipeline.sums import SUMMARY_FIGURES, TRL_METRICS, Summary
from dpo_pipeline.tables import aligned, as_json, rows_by_key


class Reported:
    """A result whose figures can have marks, with charts and a report.

    Drawing libraries are imported on first use.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """What errors call it."""
        raise NotImplementedError

    @property
    def gated(self) -> tuple[str, ...]:
        """The names that a mark can be set for."""
        raise NotImplementedError

    @property
    def no_verdict(self) -> str | None:
        """Why the figures decide nothing; None if they may."""
        return None

    def figure(self, name: str) -> tuple[float, tuple[float, float] | None]:
        """Return a figure and its interval."""
        raise NotImplementedError

    @property
    def sources(self) -> tuple[str, ...]:
        """What it was made from. A report never replaces one of these."""
        raise NotImplementedError

    def charts(self) -> dict[str, Any]:
        """Return the charts of the report as altair objects, by name.

        Raises:
            UsageError: It is an evaluation without statistics, or the extra `report` is not
                installed.
        """
        check_extra()
        from dpo_pipeline.report import charts_of

        return charts_of(self)

    def report(
        self, path: str | os.PathLike[str] | None = None, *, overwrite: bool = False
    ) -> str | None:
        """Make the report: one HTML page that opens without a network.

        Args:
            path: Write it to this file, whole or not at all.
            overwrite: Replace the file if it exists.

        Returns:
            The page; None if it was written to a file.

        Raises:
            UsageError: It is an evaluation without statistics, the path is `-`, or the extra
                `report` is not installed.
            StorageError: The file exists, cannot be written, or is what the result was made from.
        """
        check_extra()
        if path is not None:
            check_page_path(path)
        from dpo_pipeline.report import page_of, publish_page

        if path is None:
            return page_of(self)
        publish_page(self, path, overwrite=overwrite, protected=self.sources)
        return None

    def _repr_html_(self) -> str:
        """Return the figures as tables, for notebooks."""
        from dpo_pipeline.report import result_html

        return result_html(self)


DOCUMENT_VERSION: Final = 1
"""Changes when a field of the document is removed or changes its meaning."""


_SHOWN: Final = (N_PAIRS, N_INVALID, LOSS, REWARD_ACCURACY, REWARD_MARGIN)
"""The figures of a subset that the text shows; the document has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Reported):
    """The figures of a dataset.

    Attributes:
        source: What was evaluated.
        reference: Where the reference's log-probs came from, if not from `source`.
        objective: The loss with its parameters.
        max_logp: Largest log-probability accepted, in nats.
        columns: Canonical column name to the input column it came from.
        summary: The figures over all pairs.
        invalid: Which rules were broken, how often, and where first.
        subsets: One row a subset, in the order of its key: the columns of `by`, then the
            fields of `Summary`. None without `by`.
        histogram: The valid pairs by margin, if asked for: the columns of `by`, `bin`, its
            edges `lower` and `upper` in nats, `n_pairs`. `dpo_pipeline.exact` defines the bins
            and states their error.
        batches: One row a batch, in order. None without batches, or where they went to a file.
        intervals: The main figures with their intervals, always of the accuracy. None in what
            `score_parquet` returns.
        statistics: Intervals, baselines, calibration and the like, if asked for.
    """

    source: str
    reference: str | None
    objective: CheckedObjective
    max_logp: float
    columns: Mapping[str, str]
    summary: Summary
    invalid: InvalidReport
    subsets: pl.DataFrame | None
    batches: pl.DataFrame | None
    histogram: pl.DataFrame | None
    intervals: Intervals | None = None
    statistics: Statistics | None = None

    @property
    def beta(self) -> float:
        """KL strength, dimensionless."""
        return self.objective.beta

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is surely wrong in the valid pairs, a sentence each."""
        return self.invalid.warnings

    @property
    def findings(self) -> tuple[Finding, ...] | None:
        """What is wrong or can mislead, gravest first; None without statistics."""
        return (
            None
            if self.statistics is None
            else findings_of(self.statistics, self.invalid.doubts, beta=self.beta)
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """The pairs, and the reference if it was elsewhere."""
        return (self.source,) if self.reference is None else (self.source, self.reference)

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.source

    @property
    def gated(self) -> tuple[str, ...]:
        """The figures that a gate can have a mark for."""
        return GATED

    def figure(self, name: str) -> tuple[float, tuple[float, float] | None]:
        """Return a figure, by TRL's name or the library's, and its interval.

        Raises:
            UsageError: The evaluation has no such figure.
        """
        name = TRL_METRICS.get(name, name)
        estimate = self._estimate(name)
        # The summary is exact; the sums of an estimate are Float64.
        value = None if estimate is None else estimate.value
        if name in SUMMARY_FIGURES:
            value = getattr(self.summary, name)
        if value is None:
            without = "; it needs statistics" if self.statistics is None else ""
            raise UsageError(f"{self.source}: this evaluation has no {name}{without}")
        interval = None if estimate is None else estimate.interval
        return float(value), None if interval is None else (interval.low, interval.high)

    def _estimate(self, name: str) -> Estimate | None:
        if (statistics := self.statistics) is None:
            return None if self.intervals is None else self.intervals.figures.get(name)
        means = {"macro": statistics.macro, "weighted": statistics.weighted}
        if statistics.sections is not None:
            means["score"] = statistics.sections.score
        if name in means:
            return means[name]
        advantages = {ADVANTAGE + key: each for key, each in statistics.advantages.items()}
        return {**statistics.figures, **statistics.displacement, **advantages}.get(name)

    def to_metrics(self, prefix: str = "") -> dict[str, float | None]:
        """Return the overall figures under TRL's names; TRL's own `prefix` is `eval_`."""
        return self.summary.to_metrics(prefix)

    def quantile(self, q: float) -> float | None:
        """Return the q-quantile of the margins of all valid pairs, in nats.

        Raises:
            UsageError: The evaluation was made without a histogram, or q is not from 0 to 1.
        """
        if self.histogram is None:
            raise UsageError("quantiles need an evaluation with by=Subsets(histogram=True)")
        if not 0 <= q <= 1:
            raise UsageError(f"q must be from 0 to 1, found {q!r}")
        return quantile(self.histogram, q)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary document that `schemas/summary.schema.json` describes."""
        findings = self.findings
        return {
            "document_version": DOCUMENT_VERSION,
            "warnings": list(self.invalid.all_warnings),
            "dpo_pipeline": version("dpo_pipeline"),
            "source": self.source,
            "reference": self.reference,
            "loss": str(self.objective),
            "beta": self.beta,
            "objective": self.objective.to_dict(),
            "max_logp": self.max_logp,
            "columns": dict(self.columns),
            "summary": self.summary.to_dict(),
            "metrics": self.to_metrics(),
            "invalid": self.invalid.to_dict()["invalid"],
            "subsets": None if self.subsets is None else rows_by_key(self.subsets, self._by),
            "batches": None if self.batches is None else self.batches.to_dicts(),
            "histogram": None if self.histogram is None else rows_by_key(self.histogram, self._by),
            "intervals": None if self.intervals is None else self.intervals.to_dict(),
            "statistics": None if self.statistics is None else self.statistics.to_dict(),
            "findings": None if findings is None else [each.to_dict() for each in findings],
        }

    @property
    def _by(self) -> list[str]:
        if self.subsets is None:
            return []
        return [name for name in self.subsets.columns if name not in SUMMARY_FIGURES]

    def to_json(self) -> str:
        """Return the summary document as JSON; what is not finite is null."""
        return as_json(self.to_dict())

    def __str__(self) -> str:
        """Return the figures as aligned text."""
        s = self.summary
        counts = f"{s.n_pairs:,} pairs, {s.n_invalid:,} invalid"
        lines = [f"warning: {text}" for text in self.warnings]
        lines += [f"{self.source}: {counts}, {self.objective} loss, beta {self.beta:g}"]
        lines += aligned(("", ""), [*self.to_metrics().items(), ("ties", s.n_ties)])
        if self.subsets is not None:
            shown = self.subsets.select(*self._by, *_SHOWN)
            lines += ["", *aligned(shown.columns, shown.rows())]
        if self.batches is not None:
            lines += ["", *aligned(self.batches.columns, self.batches.rows())]
        if self.statistics is not None:
            lines += ["", *self.statistics.lines(), ""]
            lines += [line for each in self.findings or () for line in each.lines()]
            lines += [] if self.findings else ["no findings"]
        return "\n".join(lines)
