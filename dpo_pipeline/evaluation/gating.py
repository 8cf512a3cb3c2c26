"""A gate for pipelines: figures that must not be below, or above, a mark.

A gate is looked at after everything else: the result is there, and what was to be written is
published, so that a run that fails at its gate can be read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.errors import GateError, MissedMark, UsageError
from dpo_pipeline.evaluation.estimates import BASELINES, DISPLACEMENT, ESTIMATED_FIGURES
from dpo_pipeline.statistics import Estimate
from dpo_pipeline.sums import SUMMARY_FIGURES, TRL_METRICS

if TYPE_CHECKING:
    from dpo_pipeline.evaluation.evaluation_result import Evaluation

_COUNTS: Final = ("n_pairs", "n_valid", "n_invalid", "n_ties")
_ADVANTAGE: Final = "advantage/"
_MEANS: Final = ("macro", "weighted", "score")
_OF_STATISTICS: Final = (
    *(name for name in ESTIMATED_FIGURES if name not in SUMMARY_FIGURES),
    *DISPLACEMENT,
    *(_ADVANTAGE + name for name in BASELINES),
    *_MEANS,
)
"""What only an evaluation with statistics has."""
GATED: Final = (*TRL_METRICS, *SUMMARY_FIGURES, *_OF_STATISTICS)
"""What a mark can be set for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Marks for figures.

    Attributes:
        fail_under: Name to the smallest value that passes. Names are TRL's (`rewards/accuracies`)
            or those of figures (`reward_accuracy`, `n_invalid`); with statistics also
            `reward_accuracy_half`, `tie_rate`, `log_loss`, `brier`, `chosen_down`,
            `rejected_down`, `both_down`, the means over subsets `macro` and `weighted`, the
            benchmark's `score`, and `advantage/longer` (`shorter`, `reference`, `policy`): the
            accuracy above that rule's.
        fail_over: Name to the largest value that passes.
        on_interval: Compare the interval's end that is nearer to failing, its lower one with
            `fail_under` and its upper one with `fail_over`: a figure passes only if the data show
            that it is good enough. Needs statistics.
    """

    fail_under: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    fail_over: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    on_interval: bool = False

    def __post_init__(self) -> None:
        for argument, marks in (("fail_under", self.fail_under), ("fail_over", self.fail_over)):
            for name, mark in marks.items():
                self._check(argument, name, mark)
        if self.on_interval and not (self.fail_under or self.fail_over):
            raise UsageError(
                "on_interval (--fail-on-interval) needs a mark: fail_under (--fail-under) or "
                "fail_over (--fail-over)"
            )

    @property
    def needs_statistics(self) -> bool:
        """Whether the evaluation has to be made with statistics."""
        names = {*self.fail_under, *self.fail_over}
        return self.on_interval or bool(names & set(_OF_STATISTICS))

    def check_asked(self, *, by: object, weights: object, sections: object) -> None:
        """Raise a UsageError if a mark is of a figure that the other arguments do not ask for."""
        asked = {"macro": (by, "--by"), "weighted": (weights, "--weight")}
        asked["score"] = (sections, "--sections")
        for name in (*self.fail_under, *self.fail_over):
            given, option = asked.get(name, (True, ""))
            if not given:
                raise UsageError(f"there is a mark for {name}, which needs {option}")

    def check(self, evaluation: Evaluation) -> None:
        """Raise if a figure misses its mark; a value equal to its mark passes.

        Raises:
            GateError: A figure misses its mark; all that do are in it.
            UsageError: The evaluation does not have a figure, or not its interval.
        """
        missed = [
            MissedMark(
                name=name,
                side=side,
                mark=float(mark),
                value=value,
                interval=interval,
                by_interval=self.on_interval,
            )
            for side, marks in (("below", self.fail_under), ("above", self.fail_over))
            for name, mark in marks.items()
            for value, interval in [_figure(evaluation, name)]
            if self._misses(name, side, float(mark), value, interval)
        ]
        if missed:
            raise GateError(evaluation.source, tuple(missed))

    def _misses(
        self,
        name: str,
        side: str,
        mark: float,
        value: float,
        interval: tuple[float, float] | None,
    ) -> bool:
        if self.on_interval:
            if interval is None:
                raise UsageError(f"on_interval: {name} has no interval here")
            value = interval[0] if side == "below" else interval[1]
        # Said so that NaN does not pass.
        return not (value >= mark if side == "below" else value <= mark)

    def _check(self, argument: str, name: str, mark: float) -> None:
        if name not in GATED:
            near = did_you_mean(str(name), GATED)
            there = ", ".join(GATED)
            raise UsageError(f"{argument}: there is no figure {name!r}{near}; there are {there}")
        is_number = isinstance(mark, Real) and not isinstance(mark, bool)
        if not is_number or math.isnan(mark):
            raise UsageError(f"{argument}: the mark of {name} must be a number, found {mark!r}")
        if self.on_interval and name in _COUNTS:
            raise UsageError(f"on_interval: {name} is a count and has no interval")


def gate(
    evaluation: Evaluation,
    *,
    fail_under: Mapping[str, float] | None = None,
    fail_over: Mapping[str, float] | None = None,
    on_interval: bool = False,
) -> None:
    """Raise a GateError if a figure of an evaluation misses its mark; `Gate` has the arguments.

    Raises:
        GateError: A figure is below its mark in `fail_under` or above that in `fail_over`.
        UsageError: There is no such figure, or the evaluation was made without it.
    """
    made = Gate(fail_under=fail_under or {}, fail_over=fail_over or {}, on_interval=on_interval)
    made.check(evaluation)


def _figure(evaluation: Evaluation, name: str) -> tuple[float, tuple[float, float] | None]:
    """Return a figure's value and interval."""
    name = TRL_METRICS.get(name, name)
    estimate = _estimate(evaluation, name)
    if name in SUMMARY_FIGURES:
        # Exact, where the estimate's sums are Float64.
        value = getattr(evaluation.summary, name)
    else:
        value = None if estimate is None else estimate.value
    if value is None:
        without = "; it needs statistics" if evaluation.statistics is None else ""
        raise UsageError(f"{evaluation.source}: this evaluation has no {name}{without}")
    interval = None if estimate is None else estimate.interval
    return float(value), None if interval is None else (interval.low, interval.high)


def _estimate(evaluation: Evaluation, name: str) -> Estimate | None:
    statistics = evaluation.statistics
    if statistics is None:
        return None
    means = {"macro": statistics.macro, "weighted": statistics.weighted}
    if statistics.sections is not None:
        means["score"] = statistics.sections.score
    if name in means:
        return means[name]
    advantages = {_ADVANTAGE + key: each for key, each in statistics.advantages.items()}
    return {**statistics.figures, **statistics.displacement, **advantages}.get(name)
