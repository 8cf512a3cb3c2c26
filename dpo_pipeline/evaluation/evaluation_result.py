"""What `evaluate` and `score_parquet` return, and its projections: dictionary, metrics, text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import check_extra, check_page_path
from dpo_pipeline.columns import PAIR_ID, PROMPT_ID, REWARD_ACCURACY, REWARD_MARGIN, SHOWN
from dpo_pipeline.defaults import COIN, VERDICT_UP_TO
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation.estimates import (
    Intervals,
    Statistics,
    frame_of_estimates,
    subset_table,
    table_of_batches,
)
from dpo_pipeline.evaluation.findings import Finding, advised_once, findings_of
from dpo_pipeline.evaluation.gating import ADVANTAGE, GATED
from dpo_pipeline.exact import quantile
from dpo_pipeline.invalid_report import Doubt, InvalidReport
from dpo_pipeline.losses import CheckedObjective
from dpo_pipeline.plan import Origin, own_version
from dpo_pipeline.statistics import (
    Estimate,
    between,
    counted,
    percent,
    rate_with_ties,
    share,
    share_within,
)
from dpo_pipeline.sums import SUMMARY_FIGURES, TRL_METRICS, AsTrainer, Summary
from dpo_pipeline.tables import (
    Column,
    Figure,
    Limits,
    Name,
    Part,
    Printable,
    Sentence,
    Table,
    Tone,
    Unit,
    rows_by_key,
    whole,
)


class Reported(Printable):
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


DOCUMENT_VERSION: Final = 1
"""Changes when a field of the document is removed or changes its meaning."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
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
        intervals: The main figures with their intervals, always of the accuracy.
        as_trainer: The figures as a trainer averages them, if asked for.
        statistics: Intervals, baselines, calibration and the like, if asked for.
        origin: The command and the fingerprint of the input, for the report. Not in the document.
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
    intervals: Intervals
    as_trainer: AsTrainer | None = None
    statistics: Statistics | None = None
    origin: Origin | None = None

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
            return self.intervals.figures.get(name)
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
            "made": list(self.invalid.made),
            "not_looked_for": self.invalid.not_looked_for,
            "dpo_pipeline": own_version(),
            "source": self.source,
            "reference": self.reference,
            "loss": str(self.objective),
            "beta": self.beta,
            "objective": self.objective.to_dict(),
            "max_logp": self.max_logp,
            "columns": dict(self.columns),
            "verdict": {
                "text": self.verdict,
                "better_than_chance": self.better_than_chance,
                "withheld": self.withheld,
                "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            },
            "summary": self.summary.to_dict(),
            "metrics": self.to_metrics(),
            "invalid": self.invalid.to_dict()["invalid"],
            "subsets": None if self.subsets is None else rows_by_key(self.subsets, self._by),
            "batches": None if self.batches is None else self.batches.to_dicts(),
            "as_trainer": None if self.as_trainer is None else self.as_trainer.to_dict(),
            "histogram": None if self.histogram is None else rows_by_key(self.histogram, self._by),
            "intervals": self.intervals.to_dict(),
            "statistics": None if self.statistics is None else self.statistics.to_dict(),
            "findings": None if findings is None else [each.to_dict() for each in findings],
        }

    @property
    def _by(self) -> list[str]:
        if self.subsets is None:
            return []
        return [name for name in self.subsets.columns if name not in SUMMARY_FIGURES]

    @property
    def level(self) -> float:
        """Confidence level of the intervals."""
        return self._sure.level

    @property
    def accuracy(self) -> Estimate | None:
        """The reward accuracy, a tie counting half, with its interval; None without a valid pair.

        Pairs of one prompt are one sample; without a `prompt_id` each pair is one.
        """
        s, known = self.summary, self._known
        if "reward_accuracy_half" in known:
            return known["reward_accuracy_half"]
        strict = known.get(REWARD_ACCURACY)
        if s.reward_accuracy is None or (strict is not None and not s.n_ties):
            return strict
        n_right = round(s.reward_accuracy * s.n_valid) + s.n_ties / 2.0
        return rate_with_ties(n_right, s.n_valid, self.level, like=strict)

    @property
    def _known(self) -> Mapping[str, Estimate]:
        """The figures that have intervals, by the library's names."""
        return self._sure.figures

    @property
    def _sure(self) -> Statistics | Intervals:
        """What has intervals: all statistics, or the main figures."""
        return self.intervals if self.statistics is None else self.statistics

    @property
    def no_verdict(self) -> str | None:
        """The verdict, if what is surely wrong with the log-probs withholds it: no gate passes."""
        return None if self._decisive_doubt is None else self.verdict

    @property
    def withheld(self) -> str | None:  # noqa: PLR0911  one reason after the other
        """Why there is no verdict; None if there is one."""
        doubt, summary = self._decisive_doubt, self.summary
        if doubt is not None:
            return str(doubt)
        if summary.n_invalid > VERDICT_UP_TO * summary.n_pairs:
            bad, every = summary.n_invalid, counted(summary.n_pairs, "pair")
            return f"{bad:,} of {every} break the contract, and may not be missing at random"
        if self._contradictory > VERDICT_UP_TO:
            return (
                f"{share(self._contradictory)} of the pairs are there with chosen and rejected "
                "exchanged as well"
            )
        if self.beta == 0.0:
            return "beta is 0, so every reward is 0"
        if summary.n_ties == summary.n_valid:
            return "all pairs are ties"
        if self.accuracy is None or self.accuracy.interval is None:
            return "the pairs are of one prompt"
        return None

    @property
    def better_than_chance(self) -> bool | None:
        """Whether the accuracy, ties half, is shown to be above 1/2; False where it is below.

        None where its interval holds 1/2, or the verdict is withheld.
        """
        accuracy = self.accuracy
        if self.withheld is not None or accuracy is None or accuracy.interval is None:
            return None
        if accuracy.interval.low > COIN:
            return True
        return False if accuracy.interval.high < COIN else None

    @property
    def verdict(self) -> str:
        """Whether the policy is better than a coin toss, in a sentence."""
        accuracy = self.accuracy
        if self.withheld is not None or accuracy is None:
            return f"no verdict: {self.withheld}"
        found = {True: "better than a coin toss", False: "worse than a coin toss", None: ""}
        said = found[self.better_than_chance] or "not shown to differ from a coin toss"
        written, interval = share_within(accuracy.interval), accuracy.interval
        text = f"{said}: accuracy {written(accuracy.value)}"
        if self.summary.n_ties:
            text += " with ties half"
        limits = f"{percent(self.level)} interval {between(interval, written)}"
        return f"{text} ({limits}), from {self._sample(accuracy)}"

    def _sample(self, accuracy: Estimate) -> str:
        pairs, clusters = counted(accuracy.n, "pair"), self._sure.clusters
        return clusters if clusters.startswith(pairs) else f"{pairs} in {clusters}"

    @property
    def _decisive_doubt(self) -> Doubt | None:
        """The gravest doubt that can be the cause of the accuracy."""
        return self.invalid.decisive

    @property
    def _contradictory(self) -> float:
        found = None if self.statistics is None else self.statistics.gathered.contradictory
        return 0.0 if found is None else found

    def to_frame(self) -> pl.DataFrame:
        """Return one row a subset with `by`, else one row a figure with its interval."""
        if self.subsets is not None:
            return self._subsets_with_statistics(self.subsets)
        rows: dict[str, Estimate | float | None] = dict(self.summary.to_dict())
        if self.accuracy is not None and not self.summary.n_ties:
            rows[REWARD_ACCURACY] = self.accuracy
        if self.statistics is not None:
            rows |= self.statistics.rows
        return frame_of_estimates(rows)

    def _subsets_with_statistics(self, subsets: pl.DataFrame) -> pl.DataFrame:
        found = None if self.statistics is None else self.statistics.subsets
        if found is None:
            return subsets
        own = found.select(*self._by, pl.exclude(subsets.columns))
        return subsets.join(own, on=self._by, how="left", nulls_equal=True, maintain_order="left")

    def to_parts(self) -> Iterator[Part]:
        """Yield the verdict, what is wrong or can mislead, and the figures."""
        yield from self._verdict_parts()
        yield from self._warning_parts()
        yield from self.invalid.rule_parts()
        yield self._figures()
        if self.as_trainer is not None:
            yield self.as_trainer.table(self.to_metrics())
        if self.statistics is not None:
            yield self.statistics.table(but=tuple(TRL_METRICS.values()))
        yield from self._lowest_parts()
        if self.subsets is not None:
            every = self._subsets_with_statistics(self.subsets)
            yield subset_table(every, self._by, self.statistics)
        if self.batches is not None:
            yield table_of_batches(self.batches)

    def _lowest_parts(self) -> Iterator[Part]:
        """Yield the lowest margins, if columns of them were asked for."""
        found = None if self.statistics is None else self.statistics.gathered.lowest
        names = [] if found is None else [n for n in found.columns if n.startswith(SHOWN)]
        if found is None or not names:
            return
        heads = [Column(name.removeprefix(SHOWN), wraps=True) for name in names]
        ids = [PAIR_ID.name] if PAIR_ID.name in found.columns else []
        margins = found.select("row", REWARD_MARGIN).rows()
        yield Table(
            columns=(Column("row"), *map(Column, ids), Column("margin"), *heads),
            rows=[
                (row, *map(Name, known[: len(ids)]), margin, *map(Name, known[len(ids) :]))
                for (row, margin), known in zip(
                    margins, found.select(*ids, *names).rows(), strict=True
                )
            ],
            title="lowest margins",
        )

    def _verdict_parts(self) -> Iterator[Part]:
        tones: Mapping[bool | None, Tone] = {True: "good", False: "bad", None: "warning"}
        doubt = self._decisive_doubt
        yield Sentence(
            text=self.verdict,
            tone="bad" if self.withheld else tones[self.better_than_chance],
            more=() if doubt is None else (doubt.advice,),
            leads=True,
        )

    def _warning_parts(self) -> Iterator[Part]:
        n_invalid = self.summary.n_invalid
        if n_invalid and not (self.withheld or "").startswith(f"{n_invalid:,} of "):
            pairs = counted(self.summary.n_pairs, "pair")
            text = f"{n_invalid:,} of {pairs} break the contract and count in no figure"
            yield Sentence(text=text, label="warning", tone="warning")
        said = self._decisive_doubt
        yield from self.invalid.warning_parts(but=said)
        known = {each.title for each in self.invalid.doubts}
        for each in advised_once(self.findings or ()):
            if each.title not in known:
                yield each.sentence()
        if self.findings == ():
            yield Sentence(text="no findings")

    def _figures(self) -> Table:
        s, figures = self.summary, self._known
        rows: list[tuple[Any, ...]] = []
        for metric, name in TRL_METRICS.items():
            unit: Unit = "share" if name == REWARD_ACCURACY else "number"
            found = figures.get(name)
            if found is None and name == REWARD_ACCURACY and not s.n_ties:
                found = self.accuracy
            interval = None if found is None else found.interval
            ends = None if interval is None else (interval.low, interval.high)
            limits = "" if ends is None else Limits(*ends, unit)
            rows.append((metric, Figure(getattr(s, name), unit, ends), limits))
        rows.append(("ties", s.n_ties, ""))
        counts = f"{counted(s.n_pairs, 'pair')}, {s.n_invalid:,} invalid"
        source, heads = whole(self.source), ("figure", "mean", f"{percent(self.level)} interval")
        title = f"{source}: {counts}, {self.objective} loss, beta {self.beta:g}"
        note = "Pairs have a `prompt_id`: `evaluate --statistics` gives the other intervals."
        return Table(
            columns=tuple(map(Column, heads)),
            rows=rows,
            title=title,
            note=note if self.statistics is None and PROMPT_ID.name in self.columns else "",
        )
