"""From the tables of common pairs to differences, intervals and tests, no data read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import polars as pl

from dpo_pipeline.columns import LOSS, N_VALID, REWARD_ACCURACY, REWARD_MARGIN
from dpo_pipeline.comparison.comparison_result import (
    COMPARED,
    REWARD_ACCURACY_HALF,
    SUBSET_FIGURES,
    McNemar,
)
from dpo_pipeline.comparison.paired_gathering import (
    BOTH_RIGHT,
    HALVES,
    MEANS,
    ONLY_A,
    ONLY_B,
    Paired,
)
from dpo_pipeline.comparison.verdict import EXACT, MID_P, SIGN_FLIPS, Difference
from dpo_pipeline.defaults import BAGS, MID_P_FROM
from dpo_pipeline.errors import UsageError
from dpo_pipeline.exact import QUANTA_PER_NAT
from dpo_pipeline.statistics import (
    CLUSTERED,
    STUDENT,
    DifferencesTest,
    DifferenceTest,
    Estimate,
    adjusted_for_many,
    agreeing,
    counted,
    cut_to,
    differences_test,
    limit_columns,
    mcnemar_exact,
    mcnemar_mid_p,
    of_independent,
    paired_difference,
    rate_difference,
    rate_difference_of_clusters,
    sign_flip_exact,
    smallest_effect,
    smallest_effect_of_flips,
    without_interval,
)
from dpo_pipeline.sums import Summary, across_subsets

T = TypeVar("T")

_COUNTS: Final = {"n_valid", "n_clusters", "only_a", "only_b"}
"""The whole numbers of a subset."""


def differences_of(
    paired: Paired,
    a: Summary,
    b: Summary,
    level: float,
    *,
    rounding: float = 0.0,
    is_tested: bool = True,
) -> Mapping[str, Difference]:
    """Return `COMPARED` of both sides; at least one pair must be valid.

    Sides that cannot be compared are not tested: their p-values would be taken for a verdict. Nor
    are means whose difference varies by no more than `rounding`, in nats a pair.
    """
    tested = _tested(_whole(paired), paired, level, rounding)
    return {
        name: Difference(
            a=_figure(name, a),
            b=_figure(name, b),
            estimate=tested[name].estimate,
            p_value=tested[name].p_value if is_tested else None,
            test=tested[name].test,
            smallest_effect=tested[name].smallest_effect if is_tested else None,
        )
        for name in COMPARED
    }


def mcnemar_of(paired: Paired, *, is_tested: bool) -> McNemar:
    """Return who has which pairs right."""
    whole = _whole(paired)
    n, both, only_a, only_b = _counts(whole)
    return McNemar(
        both_right=both,
        only_a=only_a,
        only_b=only_b,
        neither=n - both - only_a - only_b,
        exact=mcnemar_exact(only_b, only_a) if is_tested else None,
        mid_p=mcnemar_mid_p(only_b, only_a) if is_tested else None,
        applies=not _is_clustered(whole, paired),
    )


def subsets_of(
    paired: Paired, level: float, *, rounding: float, is_tested: bool
) -> pl.DataFrame | None:
    """Return `SUBSET_FIGURES` of each subset; None without `by`."""
    if not paired.by:
        return None
    rows: list[dict[str, Any]] = []
    for key, part in paired.clusters.group_by(paired.by, maintain_order=True):
        tested = _tested(part, paired, level, rounding)
        accuracy = tested[REWARD_ACCURACY]
        n, both, only_a, only_b = _counts(part)
        row: dict[str, Any] = {
            **dict(zip(paired.by, key, strict=True)),
            "n_valid": n,
            "n_clusters": part.height if paired.is_exact else None,
            "accuracy_a": (both + only_a) / n,
            "accuracy_b": (both + only_b) / n,
            **_limits("accuracy", accuracy.estimate),
            "p_value": accuracy.p_value if is_tested else None,
            "smallest_effect": accuracy.smallest_effect if is_tested else None,
            "only_a": only_a,
            "only_b": only_b,
            **_limits("loss", tested[LOSS].estimate),
            **_limits("margin", tested[REWARD_MARGIN].estimate),
        }
        rows.append(row)
    schema = {name: paired.clusters.schema[name] for name in paired.by}
    figures = {n: pl.Int64 if n in _COUNTS else pl.Float64 for n in SUBSET_FIGURES}
    table = pl.DataFrame(rows, schema={**schema, **figures}, orient="row")
    return table.with_columns(**adjusted_for_many(table["p_value"].to_list()))


def heterogeneity_of(paired: Paired, *, is_tested: bool) -> DifferencesTest | None:
    """Return the test that the difference of accuracy is the same in all subsets."""
    if not paired.by or not is_tested:
        return None
    whole = _whole(paired)
    parts = paired.clusters.partition_by(paired.by, maintain_order=True)
    return differences_test(
        ((part[ONLY_B], part[ONLY_A], part[N_VALID]) for part in parts),
        is_independent=not _is_clustered(whole, paired),
    )


def clusters_in_words(n: int | None, *, is_by_prompt: bool) -> str:
    """Return what was taken as independent; `n` is None where they are in bags."""
    unit = "prompt" if is_by_prompt else "pair"
    return f"{BAGS:,} bags of {unit}s" if n is None else counted(n, unit)


def n_clusters_of(paired: Paired) -> int | None:
    """Return the number of clusters, if they were few enough to be counted."""
    return _whole(paired).height if paired.is_exact else None


def _whole(paired: Paired) -> pl.DataFrame:
    return across_subsets(paired.clusters, paired.by)


def _counts(part: pl.DataFrame) -> tuple[int, ...]:
    return part.select(N_VALID, BOTH_RIGHT, ONLY_A, ONLY_B).sum().row(0)


def _is_clustered(part: pl.DataFrame, paired: Paired) -> bool:
    """Return whether pairs may depend on each other: prompts repeat, or are not known not to."""
    return paired.is_by_prompt and not (paired.is_exact and part.height == part[N_VALID].sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tested:
    estimate: Estimate
    p_value: float | None
    test: str
    smallest_effect: float | None


def _tested(
    part: pl.DataFrame, paired: Paired, level: float, rounding: float
) -> dict[str, _Tested]:
    """Return each figure's difference, its test, and the smallest effect the test could find."""
    n, is_clustered = part[N_VALID], _is_clustered(part, paired)
    strict = _of_accuracy(part, is_clustered=is_clustered, level=level)
    half = strict
    # Where ties make no difference, one figure has one test and one interval.
    if (part[HALVES] != 2 * (part[ONLY_B] - part[ONLY_A])).any():
        half = _of_counts(part[HALVES], part, is_clustered=is_clustered, unit=0.5, level=level)
        half = replace(half, estimate=cut_to(half.estimate, -1.0, 1.0))
    found = {REWARD_ACCURACY: strict, REWARD_ACCURACY_HALF: half}
    for name in MEANS:
        mean = _there(paired_difference(part[name].cast(pl.Float64) / QUANTA_PER_NAT, n, level))
        found[name] = _by_student(
            _without_rounding(mean, n, rounding), is_clustered=is_clustered, level=level
        )
    return found


def _of_accuracy(part: pl.DataFrame, *, is_clustered: bool, level: float) -> _Tested:
    gains, losses, n = part[ONLY_B], part[ONLY_A], part[N_VALID]
    if is_clustered:
        found = _of_counts(gains - losses, part, is_clustered=True, unit=1.0, level=level)
        estimate = _there(rate_difference_of_clusters(gains, losses, n, level))
        return replace(found, estimate=agreeing(estimate, found.p_value, level))
    gained, lost, of = int(gains.sum()), int(losses.sum()), int(n.sum())
    is_exact = gained + lost < MID_P_FROM
    p_value = (mcnemar_exact if is_exact else mcnemar_mid_p)(gained, lost)
    estimate = _there(rate_difference(gained, lost, of, level))
    if is_exact:
        steps = [1] * (gained + lost)
        smallest = smallest_effect_of_flips(steps, n_clusters=of, n=of, level=1.0 - level)
    else:
        smallest = smallest_effect(math.sqrt(gained + lost) / of, math.inf, level=1.0 - level)
    return _Tested(
        estimate=agreeing(estimate, p_value, level),
        p_value=p_value,
        test=EXACT if is_exact else MID_P,
        smallest_effect=smallest,
    )


def _of_counts(
    nets: pl.Series, part: pl.DataFrame, *, is_clustered: bool, unit: float, level: float
) -> _Tested:
    """Return the difference of whole numbers of units.

    Its test is exact if few clusters differ, else Student's. On a few differences of one size, t
    gives too many false alarms: four of the same sign, which happens one time in eight, have t = 2.
    """
    difference = _there(paired_difference(nets * unit, part[N_VALID], level))
    found = _by_student(difference, is_clustered=is_clustered, level=level)
    differ = nets.filter(nets != 0)
    exact = None
    # Where all clusters have the same difference, t is not defined.
    if part.height > 1 and (differ.len() < MID_P_FROM or difference.p_value is None):
        exact = sign_flip_exact(differ)
    if exact is None and difference.p_value is None and part.height > 1:
        # All differences have the same size and sign, so only their number counts.
        exact = mcnemar_exact(differ.len(), 0)
    if difference.difference.standard_error == 0.0 and part.height > 1:
        found = replace(found, estimate=_alike(nets, part, is_clustered=is_clustered, level=level))
    if exact is None:
        return found
    n = int(part[N_VALID].sum())
    n_clusters = part.height if is_clustered else n
    smallest = smallest_effect_of_flips(differ, n_clusters=n_clusters, n=n, level=1.0 - level)
    return _Tested(
        estimate=agreeing(found.estimate, exact, level),
        p_value=exact,
        test=SIGN_FLIPS,
        smallest_effect=None if smallest is None else smallest * unit,
    )


def _alike(nets: pl.Series, part: pl.DataFrame, *, is_clustered: bool, level: float) -> Estimate:
    """Return a difference of halves that all clusters have, with an interval.

    It is that of the share of pairs that differ, which is all or none, times the difference.
    """
    counts, total = part[N_VALID], int(nets.sum())
    n, none = int(counts.sum()), 0 * counts
    gains, losses = (counts if total > 0 else none), (counts if total < 0 else none)
    if is_clustered:
        share = _there(rate_difference_of_clusters(gains, losses, counts, level))
    else:
        share = _there(rate_difference(int(gains.sum()), int(losses.sum()), n, level))
    size, interval, error = abs(total) / (2 * n) or 1.0, share.interval, share.standard_error
    if interval is not None:
        interval = replace(interval, low=interval.low * size, high=interval.high * size)
    return replace(
        share,
        value=share.value * size,
        standard_error=None if error is None else error * size,
        interval=interval,
    )


def _without_rounding(found: DifferenceTest, counts: pl.Series, rounding: float) -> DifferenceTest:
    """Return a difference without error and test if it varies by rounding alone."""
    error, weights = found.difference.standard_error, counts.cast(pl.Float64)
    if not error or error > rounding * math.sqrt(float((weights**2).sum())) / float(weights.sum()):
        return found
    return replace(found, difference=without_interval(found.difference), t=None, p_value=None)


def _by_student(found: DifferenceTest, *, is_clustered: bool, level: float) -> _Tested:
    estimate = found.difference if is_clustered else of_independent(found.difference)
    error, freedom, smallest = estimate.standard_error, found.degrees_of_freedom, None
    if error == 0.0:
        # Clusters that are all alike tell nothing about the spread.
        estimate = without_interval(estimate)
    elif error is not None:
        smallest = smallest_effect(error, freedom, level=1.0 - level)
    return _Tested(
        estimate=estimate,
        p_value=found.p_value,
        test=STUDENT + CLUSTERED if is_clustered else STUDENT,
        smallest_effect=smallest if smallest is not None and math.isfinite(smallest) else None,
    )


def _there(found: T | None) -> T:
    """Return the estimate, which exists because at least one pair is valid."""
    if found is None:
        raise UsageError("without a valid pair nothing can be compared")
    return found


def _limits(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {f"{name}_difference": estimate.value, **limit_columns(name, estimate.interval)}


def _figure(name: str, side: Summary) -> float:
    if name == REWARD_ACCURACY_HALF:
        return float(side.reward_accuracy or 0.0) + side.n_ties / (2 * side.n_valid)
    return float(getattr(side, name))
