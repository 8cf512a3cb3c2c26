"""The verdict of a comparison in sentences, and the one test that decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from dpo_pipeline.defaults import POWER, TIES_DIFFER_FROM
from dpo_pipeline.statistics import (
    Estimate,
    between,
    counted,
    effect,
    fewest_that_reject,
    p_equation,
    percent,
    signed_points_within,
)
from dpo_pipeline.tables import half_up, half_up_digits

EXACT: Final = "McNemar, exact"
MID_P: Final = "McNemar, mid-p"
SIGN_FLIPS: Final = "sign flips, exact"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One figure of both sides, over the valid common pairs, and how far they differ.

    Without an interval and a p-value where all pairs are of one cluster, or no spread is seen.
    """

    a: float
    b: float
    estimate: Estimate  # B minus A with its interval, in the unit of the figure
    p_value: float | None  # two-sided, of no difference
    test: str  # how the p-value was made
    smallest_effect: float | None  # found with a chance of `POWER`, in data like these

    @property
    def is_constant(self) -> bool:
        """Whether it is the same everywhere, and not 0, so that no test has a spread."""
        estimate = self.estimate
        return (self.p_value, estimate.standard_error) == (None, None) and estimate.n_clusters > 1

    def shown(self, level: float) -> Literal["a", "b"] | None:
        """Return the side that is shown to have the larger figure."""
        if self.p_value is None or self.p_value >= 1.0 - level:
            return None
        return "b" if self.estimate.value > 0.0 else "a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracies:
    """The two accuracies of a comparison, and the verdict that follows.

    A tie counts as wrong in the strict accuracy, so that rounding or an untrained policy alone
    could decide by it. Where there are ties, the accuracy that counts them half decides.
    """

    strict: Difference  # of the accuracy in which a tie is wrong
    half: Difference  # of the accuracy in which a tie counts half
    ties_a: int  # ties of A among the valid common pairs
    ties_b: int
    n_pairs: int  # valid common pairs
    level: float  # confidence level of the intervals
    is_one: bool = False  # whether A and B seem one policy
    names: tuple[str, str] = ("A", "B")  # what sentences call them

    @property
    def better(self) -> Literal["a", "b"] | None:
        """The side whose accuracy is shown to be higher."""
        return self._decisive.shown(self.level)

    def sentence(self, on: str) -> str:
        """Return the result in a sentence; `on` says on which pairs."""
        found = self.strict
        interval = found.estimate.interval
        written = signed_points_within(interval)
        facts = f"{written(found.estimate.value)} points"
        if interval is not None:
            facts += f" ({percent(self.level)} interval {between(interval, written)})"
        if found.p_value is not None:
            facts += f", {p_equation(found.p_value)}"
        facts += f", {on}{self._of_ties()}"
        a, b = self.names
        if self.better is not None:
            how = "better" if self.better == "b" else "worse"
            return f"{b} is {how} than {a}: accuracy {facts}"
        text = f"no difference in accuracy shown: {b} minus {a} is {facts}"
        smallest = self._decisive.smallest_effect
        if smallest is None:
            return text + self._why_no_effect()
        if smallest > 1.0:
            return f"{text}; so few pairs could hardly have shown any"
        return (
            f"{text}; the smallest effect that these data could have shown at {POWER:.0%} power "
            f"is {effect(smallest)}"
        )

    def _why_no_effect(self) -> str:
        """Say it where the test could not have shown any difference, however large."""
        estimate, fewest = self._decisive.estimate, fewest_that_reject(1.0 - self.level)
        if self._decisive.test not in {EXACT, SIGN_FLIPS}:
            return ""
        is_clustered = estimate.n > estimate.n_clusters
        if estimate.n_clusters < fewest:
            unit = "prompt" if is_clustered else "pair"
            return f"; fewer than {counted(fewest, unit)} cannot show any"
        return "" if is_clustered or self.is_one else "; so few pairs could hardly have shown any"

    @property
    def _decisive(self) -> Difference:
        return self.half if self.ties_a or self.ties_b else self.strict

    def _of_ties(self) -> str:
        apart = abs(self.ties_a - self.ties_b) / self.n_pairs
        agree = self.strict.shown(self.level) == self.better
        if agree and apart < TIES_DIFFER_FROM:
            return ""
        ties = [
            f"{name} ties on {counted(n, 'pair')}"
            for name, n in (("A", self.ties_a), ("B", self.ties_b))
            if n
        ]
        count = "counts" if self.ties_a + self.ties_b == 1 else "count"
        interval = self.half.estimate.interval
        written = signed_points_within(interval)
        limits = "" if interval is None else f" ({between(interval, written)})"
        p = "" if self.half.p_value is None else f", {p_equation(self.half.p_value)}"
        return (
            f" ({' and '.join(ties)}, which {count} as wrong; with ties half the difference is "
            f"{written(self.half.estimate.value)}{limits}{p})"
        )


def loss_sentence(loss: Difference, beta: float) -> str:
    """Return the difference of mean loss in a sentence, in nats."""
    interval = loss.estimate.interval
    limits = "" if interval is None else f" ({_nats(interval.low)} to {_nats(interval.high)})"
    value = _nats(loss.estimate.value)
    return f"Loss: B minus A is {value}{limits} nats, at one beta of {beta:g} for both"


def _nats(value: float) -> str:
    """Return four decimals, or two digits of what would be 0 with a sign."""
    if not value or abs(value) >= 5e-5:  # noqa: PLR2004
        return f"{half_up(value, 4):.4f}"
    return f"{half_up_digits(value, 2):.2g}"
