"""Gates for pipelines: figures that must not be below, or above, a mark.

Gates are checked last, when the outputs are published, so that a run that fails its gate can be
read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Final

from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.errors import GateError, MissedMark, UsageError
from dpo_pipeline.evaluation.estimates import BASELINES, DISPLACEMENT, ESTIMATED_FIGURES
from dpo_pipeline.options import Gates
from dpo_pipeline.sums import SUMMARY_FIGURES, TRL_METRICS

if TYPE_CHECKING:
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
    check_gates(gates, result.gated)
    known, why = result.gated, result.no_verdict
    if why is not None and (no_verdict or gates.under or gates.over):
        raise GateError(result.name, why=why)
    missed = [
        MissedMark(
            name=name,
            side=side,
            mark=float(mark),
            value=value,
            interval=interval,
            by_interval=by_interval,
        )
        for side, marks in (("below", gates.under), ("above", gates.over))
        for name, mark in marks.items()
        for value, interval in [result.figure(name if name in known else TRL_METRICS[name])]
        if _misses(name, side, float(mark), value, interval if by_interval else (value, value))
    ]
    if missed:
        raise GateError(result.name, tuple(missed))


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


def _misses(
    name: str, side: str, mark: float, value: float, ends: tuple[float, float] | None
) -> bool:
    if ends is None:
        raise UsageError(f"by_interval: {name} has no interval here")
    value = ends[0] if side == "below" else ends[1]
    # Written with `not`, so that a NaN value fails the gate.
    return not (value >= mark if side == "below" else value <= mark)
