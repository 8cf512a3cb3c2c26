"""Gates for pipelines: figures that must not be below, or above, a mark.

Gates are checked last, when the outputs are published, so that a run that fails its gate can be
read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, Literal

from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.errors import GateError, MissedMark, UsageError
from dpo_pipeline.evaluation.estimates import BASELINES, DISPLACEMENT, ESTIMATED_FIGURES
from dpo_pipeline.options import Gates
from dpo_pipeline.statistics import counted
from dpo_pipeline.sums import SUMMARY_FIGURES, TRL_METRICS
from dpo_pipeline.tables import Column, Part, Printable, Sentence, Table, Tone

if TYPE_CHECKING:
    import polars as pl

    from dpo_pipeline.evaluation.evaluation_result import Reported

_COUNTS: Final = ("n_pairs", "n_valid", "n_invalid", "n_ties")
ADVANTAGE: Final = "advantage/"
_MEANS: Final = ("macro", "weighted", "score")
SUMMED: Final = (*TRL_METRICS, *SUMMARY_FIGURES)
"""Figures that can have a mark in every evaluation, also in that of `score_parquet`."""
_OF_STATISTICS: Final = (
    *(name for name in ESTIMATED_FIGURES if name not in SUMMARY_FIGURES),
    *DISPLACEMENT,
    *(ADVANTAGE + name for name in BASELINES),
    *_MEANS,
)
_SHARES: Final = frozenset(
    {
        *("reward_accuracy", "reward_accuracy_half", "rewards/accuracies", "tie_rate"),
        *DISPLACEMENT,
        *(ADVANTAGE + name for name in BASELINES),
        *_MEANS,
    }
)
GATED: Final = (*SUMMED, *_OF_STATISTICS)
"""Figures that can have a mark in an evaluation with statistics."""


def gate(
    result: Reported,
    *,
    under: Mapping[str, float] | None = None,
    over: Mapping[str, float] | None = None,
    by_interval: bool = False,
    no_verdict: bool = False,
) -> None:
    """Raise a GateError if a figure of an evaluation, or of a comparison, misses its mark.

    Names are TRL's (`rewards/accuracies`) or those of figures (`reward_accuracy`, `n_invalid`);
    with statistics also `reward_accuracy_half`, `tie_rate`, `log_loss`, `brier`, `chosen_down`,
    `rejected_down`, `both_down`, the means over subsets `macro` and `weighted`, the benchmark's
    `score`, and `advantage/longer` (`shorter`, `reference`, `policy`): the accuracy above that
    rule's. Those of a comparison stand for B - A.

    Args:
        result: What `evaluate`, `score_parquet` or `compare` returned.
        under: Name to the smallest value that passes.
        over: Name to the largest value that passes.
        by_interval: Compare the end of the interval that is nearer to failing: a figure passes
            only if the data show that it is good enough. Needs statistics.
        no_verdict: Fail a comparison that gives no verdict.

    Raises:
        GateError: A figure misses its mark, as NaN does; the error lists all that do.
        UsageError: There is no such figure, or the result was made without it.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> pairs = pl.DataFrame({"policy_chosen_logps": [-10.0], "policy_rejected_logps": [-14.0],
        ...                       "ref_chosen_logps": [-11.0], "ref_rejected_logps": [-12.0]})
        >>> dpo_pipeline.gate(dpo_pipeline.evaluate(pairs), under={"reward_accuracy": 0.5})
    """
    gates = Gates(
        under=under or {}, over=over or {}, by_interval=by_interval, no_verdict=no_verdict
    )
    error = Gated.of(result, gates).error
    if error is not None:
        raise error


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A figure and the mark that it was held to.

    Attributes:
        name: The name of the figure, as given.
        at: Whether the mark is the smallest value that passes ("least") or the largest ("most").
        mark: That value, in the figure's unit.
        value: The figure.
        low: The lower limit of its interval; None without one.
        high: The upper limit.
        by_interval: Whether the limit nearer to failing, not the value, has to keep the mark.
        is_met: Whether it does.
    """

    name: str
    at: Literal["least", "most"]
    mark: float
    value: float
    low: float | None
    high: float | None
    by_interval: bool
    is_met: bool

    @property
    def missed(self) -> MissedMark:
        """The same as errors have it."""
        return MissedMark(
            name=self.name,
            side="below" if self.at == "least" else "above",
            mark=self.mark,
            value=self.value,
            interval=None if self.low is None or self.high is None else (self.low, self.high),
            by_interval=self.by_interval,
        )

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table; numbers as errors write them."""
        end = "" if not self.by_interval else "lower end " if self.at == "least" else "upper end "
        limits = "" if self.low is None else f" ({self.low:.6g} to {self.high:.6g})"
        found = f"{self.value:.6g}{limits}"
        result = "met" if self.is_met else "missed"
        return self.name, f"{end}at {self.at} {self.mark:g}", found, result


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Gated(Printable):
    """A result with what its gates say of it.

    Attributes:
        result: The result.
        marks: What its figures were held to; empty where it gives no verdict.
        why: Why it gives no verdict, where that fails a gate.
    """

    result: Reported
    marks: tuple[Mark, ...]
    why: str | None

    @classmethod
    def of(cls, result: Reported, gates: Gates) -> Gated:
        """Hold a result to its gates."""
        check_gates(gates, result.gated)
        why, has_marks = result.no_verdict, bool(gates.under or gates.over)
        if why is not None and (gates.no_verdict or has_marks):
            return cls(result=result, marks=(), why=why)
        sides: tuple[tuple[Literal["least", "most"], Mapping[str, float]], ...]
        sides = (("least", gates.under), ("most", gates.over))
        marks = [
            _judged(result, name, at, float(mark), by_interval=gates.by_interval)
            for at, given in sides
            for name, mark in given.items()
        ]
        return cls(result=result, marks=tuple(marks), why=None)

    @property
    def error(self) -> GateError | None:
        """The error that a missed gate is; None if all are passed."""
        missed = tuple(each.missed for each in self.marks if not each.is_met)
        if not missed and self.why is None:
            return None
        return GateError(self.result.name, missed, why=self.why)

    def to_dict(self) -> dict[str, Any]:
        """Return the document of the result, and `gates`."""
        gates = {
            "passed": self.error is None,
            "why": self.why,
            "marks": [asdict(each) for each in self.marks],
        }
        return {**self.result.to_dict(), "gates": gates}

    def to_frame(self) -> pl.DataFrame:
        """Return the table of the result."""
        return self.result.to_frame()

    def to_parts(self) -> Iterator[Part]:
        """Yield what the gates say, then the result."""
        n, n_missed = len(self.marks), sum(not each.is_met for each in self.marks)
        if self.why is not None:
            text = "missed: without a verdict nothing passes"
        elif n_missed:
            text = f"missed: {n_missed:,} of {counted(n, 'mark')}"
        else:
            text = f"passed: {counted(n, 'mark')} met" if n else "passed: there is a verdict"
        tone: Tone = "good" if self.error is None else "bad"
        yield Sentence(text=f"gate {text}", tone=tone, leads=True)
        if self.marks:
            heads = map(Column, ("figure", "mark", "found", "result"))
            yield Table(columns=tuple(heads), rows=[each.cells() for each in self.marks])
        yield from self.result.to_parts()


def _judged(
    result: Reported, name: str, at: Literal["least", "most"], mark: float, *, by_interval: bool
) -> Mark:
    value, ends = result.figure(name if name in result.gated else TRL_METRICS[name])
    if by_interval and ends is None:
        raise UsageError(f"by_interval: {name} has no interval here")
    low, high = (None, None) if ends is None else ends
    held = value
    if by_interval and ends is not None:
        held = ends[0] if at == "least" else ends[1]
    return Mark(
        name=name,
        at=at,
        mark=mark,
        value=value,
        low=low,
        high=high,
        by_interval=by_interval,
        # NaN meets no mark.
        is_met=held >= mark if at == "least" else held <= mark,
    )


def check_gates(gates: Gates, names: Sequence[str]) -> None:
    """Raise a UsageError if a mark is no number, or for none of the names that a result has."""
    for argument, marks in (("under", gates.under), ("over", gates.over)):
        flag = f"{argument} (--fail-{argument})"
        if marks and not names:
            raise UsageError(
                f"{flag}: a mark is of B - A: compare two policies, such as the one that ships "
                "now and the one that is to; several can fail by no_verdict (--fail-on-no-verdict)"
            )
        for name, mark in marks.items():
            if name not in names and TRL_METRICS.get(name) not in names:
                near = _did_you_mean(str(name), names)
                there = "" if near else f"; there are {', '.join(dict.fromkeys(names))}"
                raise UsageError(f"{flag}: there is no figure {name!r}{near}{there}")
            is_number = isinstance(mark, Real) and not isinstance(mark, bool)
            if not is_number or math.isnan(mark):
                raise UsageError(f"{flag}: the mark of {name} must be a number, found {mark!r}")
            if name in _SHARES and 1.0 < abs(mark) < math.inf:
                raise UsageError(
                    f"{flag}: {name} is a share from 0 to 1, found the mark {mark:g}; for "
                    f"{mark:g}% give {mark / 100.0:g}"
                )
            if gates.by_interval and name in _COUNTS:
                raise UsageError(f"by_interval: {name} is a count and has no interval")
    if gates.by_interval and not (gates.under or gates.over):
        raise UsageError(
            "by_interval (--fail-on-interval) needs a mark: under (--fail-under) or "
            "over (--fail-over)"
        )


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    """Suggest a near miss, else the figures whose names hold the word: `accuracy`, `margins`."""
    near = did_you_mean(name, names)
    stem = name.lower().rstrip("s").removesuffix("ie").removesuffix("y")
    among = [each for each in dict.fromkeys(names) if len(stem) > 2 and stem in each.lower()]  # noqa: PLR2004
    if near or not among:
        return near
    return f" (did you mean {' or '.join(map(repr, among[:3]))}?)"


def needs_statistics(gates: Gates) -> bool:
    """Return whether these marks need an evaluation with statistics."""
    names = {*gates.under, *gates.over}
    return gates.by_interval or bool(names & set(_OF_STATISTICS))


def check_gates_asked(gates: Gates, *, by: object, weights: object, sections: object) -> None:
    """Raise a UsageError if a mark needs a figure that the other options do not ask for."""
    asked = {"macro": (by, "--by"), "weighted": (weights, "--weight")}
    asked["score"] = (sections, "--sections")
    for name in (*gates.under, *gates.over):
        given, option = asked.get(name, (True, ""))
        if not given:
            raise UsageError(f"there is a mark for {name}, which needs {option}")
