"""The statistics of an evaluation: what `evaluate(statistics=True)` returns beside the figures."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import LOGPS, LOSS, N_VALID, REWARD_ACCURACY
from dpo_pipeline.defaults import BAGS
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation.gathering import Gathered
from dpo_pipeline.statistics import (
    BestScale,
    Estimate,
    Heterogeneity,
    LabelNoise,
    Line,
    counted,
    percent,
)
from dpo_pipeline.sums import FIGURES, SQUARED, in_words
from dpo_pipeline.tables import (
    Column,
    Figure,
    Limits,
    Name,
    Part,
    Printable,
    Table,
    Unit,
    key_columns,
    rows_by_key,
)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a benchmark: the weight of each subset in it, and its own in the score."""

    name: str
    subsets: Mapping[str, float]
    weight: float = 1.0


_CHAT: Final = {
    "alpacaeval-easy": 100,
    "alpacaeval-length": 95,
    "alpacaeval-hard": 95,
    "mt-bench-easy": 28,
    "mt-bench-med": 40,
}
_CHAT_HARD: Final = {
    "mt-bench-hard": 37,
    "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134,
    "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
}
_SAFETY: Final = {
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 250,
    "donotanswer": 136,
}
_HEP: Final = {f"hep-{code}": 164 for code in ("cpp", "go", "java", "js", "python", "rust")}
_CORE: Final = (
    Section("Chat", _CHAT),
    Section("Chat Hard", _CHAT_HARD),
    Section("Safety", _SAFETY),
    Section("Reasoning", {"math-prm": 984, **_HEP}),  # weighted as so many pairs; it has 447
)
_PRIOR: Final = Section(
    "Prior Sets",
    dict.fromkeys(("anthropic_helpful", "anthropic_hhh", "shp", "summarize"), 1),
    weight=0.5,
)

BENCHMARKS: Final[Mapping[str, tuple[Section, ...]]] = MappingProxyType(
    {"rewardbench": _CORE, "rewardbench-with-prior-sets": (*_CORE, _PRIOR)}
)
"""The sections of each benchmark that is known by name."""


def check_subsets(benchmark: str, found: Iterable[Any]) -> None:
    """Raise a UsageError if the subsets with a valid pair are not those of the benchmark."""
    known, there = weights_of(benchmark), set(found)
    missing = [name for name in known if name not in there]
    unknown = sorted(map(str, there - set(known)))
    problems = [
        f"{len(names)} {what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("not of it", unknown))
        if names
    ]
    if problems:
        raise UsageError(
            f"sections: {benchmark} has {len(known)} subsets; {'; '.join(problems)}. "
            "A mean of other subsets would be another score: leave sections out, or weigh the "
            "subsets yourself (weights=)"
        )


def weights_of(benchmark: str) -> dict[str, float]:
    """Return subset to its weight in the score; the weights add up to 1."""
    sections = BENCHMARKS[benchmark]
    total = sum(section.weight for section in sections)
    return {
        name: section.weight / total * count / sum(section.subsets.values())
        for section in sections
        for name, count in section.subsets.items()
    }


ESTIMATED_FIGURES: Final = (
    *("loss", "reward_accuracy", "reward_accuracy_half", "tie_rate"),
    *("chosen_reward", "rejected_reward", "reward_margin", "log_loss", "brier"),
    *LOGPS,
)
"""Figures that have an interval."""

BASELINES: Final = {
    "longer": "accuracy of preferring the longer completion",
    "shorter": "accuracy of preferring the shorter completion",
    "reference": "accuracy of the reference's own log-probs",
    "policy": "accuracy of the policy's own log-probs, without the reference",
}
"""Rules that use no rewards, to compare the reward accuracy with. A tie counts as wrong."""

DISPLACEMENT: Final = ("chosen_down", "rejected_down", "both_down")
"""Likelihood displacement (arXiv 2410.08847)."""


_SAME: Final = {"log_loss": LOSS, "reward_accuracy_half": REWARD_ACCURACY}
"""A figure to the one that it equals for the DPO loss, or without ties."""
_BEST_BETA: Final = "best beta"
_JUDGE_RANKS: Final = "judge: rank correlation"
_JUDGE_AUC: Final = "judge: AUC"
_DIGITS: Final = {_BEST_BETA: 3, _JUDGE_RANKS: 3, _JUDGE_AUC: 3}
"""Significant digits of figures made from binned margins, which are within 0.25%."""
_SHARES: Final = frozenset(
    {
        *("reward_accuracy", "reward_accuracy_half", "tie_rate", "macro mean", "weighted mean"),
        *("calibration error", "share of flipped labels"),
        *DISPLACEMENT,
    }
)
"""Figures that are written in per cent."""
_COUNTS: Final = frozenset({"n_pairs", "n_invalid"})
_SHOWN_OF_SUBSETS: Final = {
    "n_pairs": "pairs",
    "n_invalid": "invalid",
    "reward_accuracy": "accuracy",
    "limits": "interval",
    "p_holm": "p (Holm)",
    "loss": "mean loss",
    "reward_margin": "margin",
}
"""Figures of a subset that the text shows with their titles, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """The score of a benchmark: means of accuracies, a tie counting as wrong."""

    benchmark: str  # its name
    scores: Mapping[str, Estimate]  # by section, the weighted mean over its subsets
    score: Estimate  # the weighted mean over the sections


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Pairs by which models give the chosen completion the larger log-prob; equal is not larger."""

    both: int
    reference_only: int
    policy_only: int
    neither: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How well sigmoid(margin) predicts the chance that the chosen completion is the better one.

    Attributes:
        reliability: Rows of nearly equal size: `n_pairs`, `confidence` = mean sigmoid(|margin|),
            `accuracy`, `accuracy_low`, `accuracy_high`.
        error: Folded expected calibration error, less what chance adds to it.
        error_measured: The same as measured; chance alone makes it larger where pairs are few.
        error_by_chance: What would be measured, in the mean, if the margins were calibrated.
        best_beta: The beta of the smallest log loss on these pairs.
        best: `best_beta` with its log loss, or why there is none. None if margins are not
            proportional to beta.
    """

    reliability: pl.DataFrame
    error: Estimate | None
    error_measured: float | None
    error_by_chance: float | None
    best_beta: Estimate | None
    best: BestScale | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far margins agree with the judge's scores.

    Attributes:
        columns: Where the scores were.
        spearman: Rank correlation of margin and score gap.
        auc: Chance that a pair whose chosen completion the judge prefers has a larger margin than
            a pair whose rejected completion it prefers.
        by_gap: `gap_low`, `gap_high`, `n_pairs`, `n_correct`, `accuracy`, `accuracy_low`,
            `accuracy_high`.
    """

    columns: tuple[str, ...]
    spearman: Estimate | None
    auc: Estimate | None
    by_gap: pl.DataFrame


MAIN_FIGURES: Final = (REWARD_ACCURACY, *SQUARED)
"""Figures that have an interval without statistics; by prompt, only the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """The main figures with their intervals.

    Attributes:
        level: Confidence level of all intervals.
        clusters: What was taken as independent, in words.
        figures: Of `loss`, `reward_accuracy`, `chosen_reward`, `rejected_reward` and
            `reward_margin`, those that have an interval. Where there is a `prompt_id`, pairs of
            one prompt are one sample, and only the accuracy is here: the others come with
            statistics.
    """

    level: float
    clusters: str
    figures: Mapping[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        figures = {name: asdict(each) for name, each in self.figures.items()}
        return {"level": self.level, "clusters": self.clusters, "figures": figures}


def words_of_clusters(n: int | None, *, by_prompt: bool) -> str:
    """Return what was taken as independent, in words; `n` is None for bags."""
    unit = "prompt" if by_prompt else "pair"
    if n is None:
        return f"{BAGS:,} bags of {unit}s, which are taken as independent"
    return f"{n:,} {unit if n == 1 else unit + 's'}, taken as independent"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Statistics(Printable):
    """Intervals, baselines, calibration and findings, over valid pairs.

    Attributes:
        level: Confidence level of all intervals.
        clusters: What was taken as independent, in words.
        figures: `ESTIMATED_FIGURES` that the loss has, each with its interval.
        baselines: `BASELINES` that can be computed.
        advantages: By baseline, the accuracy of the rewards minus that of the baseline on the same
            pairs, with the interval of a paired difference.
        displacement: `DISPLACEMENT`; empty without a reference.
        flips: None without a reference.
        subsets: One row a subset: the columns of `by`, `n_valid`, then `reward_accuracy`,
            `reward_margin` and `loss` with their limits (`..._low`, `..._high`), and the p-value of
            an accuracy (ties half) other than 1/2, as it is (`p_value`) and adjusted for the
            number of subsets (`p_holm`, `p_benjamini_hochberg`). None without `by`.
        heterogeneity: The test that all subsets have one accuracy. None without `by`, for one
            subset, and where all pairs are right or none is.
        macro: Mean accuracy over the subsets, each counting once. None without `by`.
        weighted: The same with the weights given. None without weights.
        sections: The score of the benchmark asked for. None without one.
        calibration: None without a valid pair.
        length: The line of margin over the difference of lengths, chosen less rejected, in nats a
            token: its intercept is the mean margin at equal length. None without token counts.
        noise: The share of flipped labels that the margins make likeliest; None unless the loss
            is the DPO loss, whose margins are log-odds. Its p-value takes pairs as independent.
        flip_rate: That share with an interval that takes prompts as independent; None without it,
            and where the likeliest share is 0.
        judge: None without a judge.
        gathered: The tables that all this and the charts are made from.
    """

    level: float
    clusters: str
    figures: Mapping[str, Estimate]
    baselines: Mapping[str, Estimate]
    advantages: Mapping[str, Estimate]
    displacement: Mapping[str, Estimate]
    flips: Flips | None
    subsets: pl.DataFrame | None
    heterogeneity: Heterogeneity | None
    macro: Estimate | None
    weighted: Estimate | None
    sections: Sections | None
    calibration: Calibration
    length: Line | None
    noise: LabelNoise | None
    flip_rate: Estimate | None
    judge: Agreement | None
    gathered: Gathered

    @property
    def intervals(self) -> Intervals:
        """The main figures, as an evaluation without statistics has them, and all by prompt."""
        figures = {
            name: self.figures[name]
            for name in MAIN_FIGURES
            if name in self.figures and self.figures[name].interval is not None
        }
        words = self.clusters
        if not self.gathered.is_by_prompt:  # these are made from all pairs, not from bags
            words = words_of_clusters(int(self.gathered.groups[N_VALID].sum()), by_prompt=False)
        return Intervals(level=self.level, clusters=words, figures=figures)

    @property
    def tie_rate(self) -> float:
        """The share of pairs with equal rewards; 0 without a valid pair."""
        ties = self.figures.get("tie_rate")
        return 0.0 if ties is None else ties.value

    def to_dict(self) -> dict[str, Any]:
        """Return all but the gathered tables as plain data."""
        found = {
            field.name: _plain_data(getattr(self, field.name))
            for field in fields(self)
            if field.name != "gathered"
        }
        if self.subsets is not None:
            found["subsets"] = rows_by_key(self.subsets, self.gathered.by)
        return found

    def to_frame(self) -> pl.DataFrame:
        """Return one row a figure: `figure`, `value`, `low`, `high`, `method`."""
        return frame_of_estimates(self.rows)

    def to_parts(self) -> Iterator[Part]:
        """Yield the figures with their intervals, and the subsets."""
        yield self.table()
        if self.subsets is not None:
            yield subset_table(self.subsets, self.gathered.by, self)

    def table(self, but: Collection[str] = ()) -> Table:
        """Return the figures with their intervals, all but some that are shown elsewhere.

        Nor are the log loss where it is the loss, and the accuracy of ties half without ties.
        """
        rows: list[tuple[Any, ...]] = []
        for name, each in self.rows.items():
            same = self.rows.get(_SAME.get(name, ""))
            if name in but or (same is not None and math.isclose(same.value, each.value)):
                continue
            method = "" if each.interval is None else each.interval.method
            rows.append((name, *cells_of(name, each), method))
        heads = ("figure", "value", f"{percent(self.level)} interval")
        columns = (*map(Column, heads), Column("interval by", wraps=True, optional=True))
        note = f"intervals from {self.clusters}"
        if not self.gathered.has_lengths:
            note += "; length statistics are left out: no token counts"
        return Table(columns=columns, rows=rows, title="statistics", note=note, most=None)

    @property
    def rows(self) -> dict[str, Estimate]:
        """Every estimate by what it is of, in the order of the text."""
        return {name: each for name, each in self._rows().items() if each is not None}

    def _rows(self) -> dict[str, Estimate | None]:
        rows: dict[str, Estimate | None] = {
            **self.figures,
            **{f"prefer: {name}": each for name, each in self.baselines.items()},
            **{f"better than: {name}": each for name, each in self.advantages.items()},
            **self.displacement,
            "macro mean": self.macro,
            "weighted mean": self.weighted,
            "calibration error": self.calibration.error,
            _BEST_BETA: self.calibration.best_beta,
        }
        if self.length is not None:
            rows["margin at equal length"] = self.length.intercept
            rows["margin per token longer"] = self.length.slope
        rows["share of flipped labels"] = self.flip_rate
        if self.sections is not None:
            rows |= {f"section: {name}": each for name, each in self.sections.scores.items()}
            rows[f"score of {self.sections.benchmark}"] = self.sections.score
        if self.judge is not None:
            rows |= {_JUDGE_RANKS: self.judge.spearman, _JUDGE_AUC: self.judge.auc}
        return rows


def cells_of(name: str, each: Estimate) -> tuple[Figure, Limits | None]:
    """Return an estimate and its limits, as they are written everywhere."""
    interval, unit, digits = each.interval, _unit_of(name), _DIGITS.get(name, 4)
    ends = None if interval is None else (interval.low, interval.high)
    limits = None if ends is None else Limits(*ends, unit, digits)
    return Figure(each.value, unit, ends, digits), limits


def words_of(name: str, unit: str | None = None) -> str:
    """Return what an estimate of `Statistics.rows` is; `unit` is that of the loss."""
    kind, _, of = name.partition(": ")
    if kind == "prefer":
        return BASELINES[of]
    if kind == "better than":
        return f"reward accuracy less the {BASELINES[of]}, on the same pairs"
    return in_words(name, unit) if name in FIGURES else "of the benchmark"


def _unit_of(name: str) -> Unit:
    if name.startswith("better than: "):
        return "points"
    is_share = name in _SHARES or name.startswith(("prefer: ", "section: ", "score of "))
    return "share" if is_share else "number"


def frame_of_estimates(rows: Mapping[str, Estimate | float | None]) -> pl.DataFrame:
    """Return one row a figure, with the limits of its interval where it has one."""
    made = []
    for name, each in rows.items():
        interval = each.interval if isinstance(each, Estimate) else None
        value = each.value if isinstance(each, Estimate) else each
        limits: tuple[Any, ...] = (None,) * 4
        if interval is not None:
            limits = (interval.low, interval.high, interval.level, interval.method)
        made.append((name, value, *limits))
    numbers = dict.fromkeys(("value", "low", "high", "level"), pl.Float64)
    schema = {"figure": pl.String, **numbers, "method": pl.String}
    return pl.DataFrame(made, schema=schema, orient="row")


def subset_table(subsets: pl.DataFrame, by: Sequence[str], statistics: Statistics | None) -> Table:
    """Return the main figures of each subset, with what the statistics say of it."""
    shown = [name for name in _SHOWN_OF_SUBSETS if name in subsets.columns]
    rows = []
    for row in subsets.iter_rows(named=True):
        low, high = row.get("reward_accuracy_low"), row.get("reward_accuracy_high")
        ends = None if low is None or high is None else (low, high)
        cells: dict[str, Any] = {
            name: row[name] if name in _COUNTS else Figure(row[name]) for name in shown
        }
        cells["reward_accuracy"] = Figure(row["reward_accuracy"], "share", ends)
        if statistics is not None:
            cells["limits"] = None if ends is None else Limits(*ends, "share")
            cells["p_holm"] = Figure(row["p_holm"], "p")
        ordered = [cells[name] for name in _SHOWN_OF_SUBSETS if name in cells]
        rows.append((*(Name(row[name]) for name in by), *ordered))
    there = [
        name
        for name in _SHOWN_OF_SUBSETS
        if name in shown or (statistics is not None and name == "limits")
    ]
    titles = [_SHOWN_OF_SUBSETS[name] for name in there]
    note = ""
    if statistics is not None:
        titles = [t if t != "interval" else f"{percent(statistics.level)} interval" for t in titles]
        note = (
            "p (Holm): two-sided, of an accuracy of 1/2 with ties half, adjusted for "
            f"{counted(subsets.height, 'subset')}"
        )
    columns = (*key_columns(by), *map(Column, titles))
    return Table(columns=columns, rows=rows, title="by subset", note=note, n_keys=len(by))


def table_of_batches(batches: pl.DataFrame) -> Table:
    """Return the means of batches."""
    columns = [Column(name) for name in batches.columns]
    return Table(columns=columns, rows=batches.rows(), title="batches")


def _plain_data(value: Any) -> Any:
    if isinstance(value, pl.DataFrame):
        return value.to_dicts()
    if isinstance(value, Mapping):
        return {name: _plain_data(each) for name, each in value.items()}
    if is_dataclass(value):
        return {each.name: _plain_data(getattr(value, each.name)) for each in fields(value)}
    return value
