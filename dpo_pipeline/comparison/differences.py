"""From the tables of common pairs to differences, intervals and tests, no data read."""

from __future__ import annotations

from collections.abc import Mapping
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
from dpo_pipeline.comparison.verdict import Difference
from dpo_pipeline.defaults import BAGS, MID_P_FROM
from dpo_pipeline.errors import UsageError
from dpo_pipeline.exact import QUANTA_PER_NAT
from dpo_pipeline.statistics import (
    CLUSTERED,
    STUDENT,
    DifferenceTest,
    Estimate,
    adjusted_for_many,
    counted,
    cut_to,
    limit_columns,
    mcnemar_exact,
    mcnemar_mid_p,
    paired_difference,
    rate_difference,
    rate_difference_of_clusters,
    sign_flip_exact,
    smallest_effect,
    without_interval,
)
from dpo_pipeline.sums import Summary, across_subsets

T = TypeVar("T")

EXACT: Final = "McNemar, exact"
MID_P: Final = "McNemar, mid-p"
SIGN_FLIPS: Final = "sign flips, exact"

_COUNTS: Final = {"n_valid", "n_clusters", "only_a", "only_b"}
"""The whole numbers of a subset."""


def differences_of(
    paired: Paired, a: Summary, b: Summary, level: float
) -> Mapping[str, Difference]:
    """Return `COMPARED` of both sides; at least one pair must be valid."""
    tested = _tested(_whole(paired), paired, level)
    return {
        name: Difference(
            a=_figure(name, a),
            b=_figure(name, b),
            estimate=tested[name][0],
            p_value=tested[name][1],
            test=tested[name][2],
            smallest_effect=_shown(tested[name][0], level),
        )
        for name in COMPARED
    }


def mcnemar_of(paired: Paired) -> McNemar:
    """Return who has which pairs right."""
    whole = _whole(paired)
    n, both, only_a, only_b = _counts(whole)
    return McNemar(
        both_right=both,
        only_a=only_a,
        only_b=only_b,
        neither=n - both - only_a - only_b,
        exact=mcnemar_exact(only_b, only_a),
        mid_p=mcnemar_mid_p(only_b, only_a),
        applies=not _is_clustered(whole, paired),
    )


def subsets_of(paired: Paired, level: float) -> pl.DataFrame | None:
    """Return `SUBSET_FIGURES` of each subset; None without `by`."""
    if not paired.by:
        return None
    rows: list[dict[str, Any]] = []
    for key, part in paired.clusters.group_by(paired.by, maintain_order=True):
        tested = _tested(part, paired, level)
        accuracy, p_value, _ = tested[REWARD_ACCURACY]
        n, both, only_a, only_b = _counts(part)
        row: dict[str, Any] = {
            **dict(zip(paired.by, key, strict=True)),
            "n_valid": n,
            "n_clusters": part.height if paired.is_exact else None,
            "accuracy_a": (both + only_a) / n,
            "accuracy_b": (both + only_b) / n,
            **_limits("accuracy", accuracy),
            "p_value": p_value,
            "smallest_effect": _shown(accuracy, level),
            "only_a": only_a,
            "only_b": only_b,
            **_limits("loss", tested[LOSS][0]),
            **_limits("margin", tested[REWARD_MARGIN][0]),
        }
        rows.append(row)
    schema = {name: paired.clusters.schema[name] for name in paired.by}
    figures = {n: pl.Int64 if n in _COUNTS else pl.Float64 for n in SUBSET_FIGURES}
    table = pl.DataFrame(rows, schema={**schema, **figures}, orient="row")
    return table.with_columns(**adjusted_for_many(table["p_value"].to_list()))


def clusters_in_words(paired: Paired) -> str:
    """Return what was taken as independent."""
    unit, n = "prompt" if paired.is_by_prompt else "pair", n_clusters_of(paired)
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


def _tested(
    part: pl.DataFrame, paired: Paired, level: float
) -> dict[str, tuple[Estimate, float | None, str]]:
    """Return the difference of each figure with its p-value and how that was made."""
    n = part[N_VALID]
    found = {REWARD_ACCURACY: _of_accuracy(part, paired, level)}
    halves = _there(paired_difference(part[HALVES] / 2.0, n, level))
    half = cut_to(_with_spread(halves.difference), -1.0, 1.0)
    found[REWARD_ACCURACY_HALF] = half, *_p_of_counts(part[HALVES], halves, part)
    for name in MEANS:
        mean = _there(paired_difference(part[name].cast(pl.Float64) / QUANTA_PER_NAT, n, level))
        found[name] = _with_spread(mean.difference), mean.p_value, _student(part)
    return found


def _of_accuracy(
    part: pl.DataFrame, paired: Paired, level: float
) -> tuple[Estimate, float | None, str]:
    gains, losses, n = part[ONLY_B], part[ONLY_A], part[N_VALID]
    if not _is_clustered(part, paired):
        gained, lost = int(gains.sum()), int(losses.sum())
        estimate = _there(rate_difference(gained, lost, int(n.sum()), level))
        if gained + lost < MID_P_FROM:
            return estimate, mcnemar_exact(gained, lost), EXACT
        return estimate, mcnemar_mid_p(gained, lost), MID_P
    estimate = _there(rate_difference_of_clusters(gains, losses, n, level))
    test = _there(paired_difference(gains - losses, n, level))
    return estimate, *_p_of_counts(gains - losses, test, part)


def _p_of_counts(
    nets: pl.Series, test: DifferenceTest, part: pl.DataFrame
) -> tuple[float | None, str]:
    """Return the p-value of whole-number differences and how it was made.

    It is exact if few clusters differ, else Student's. On a few differences of one size, t gives
    too many false alarms: four of the same sign, which happens one time in eight, have t = 2.
    """
    differ = nets.filter(nets != 0)
    exact = None
    # Where all clusters have the same difference, t is not defined.
    if part.height > 1 and (differ.len() < MID_P_FROM or test.p_value is None):
        exact = sign_flip_exact(differ)
    if exact is None and test.p_value is None and part.height > 1:
        # All differences have the same size and sign, so only their number counts.
        exact = mcnemar_exact(differ.len(), 0)
    return (test.p_value, _student(part)) if exact is None else (exact, SIGN_FLIPS)


def _there(found: T | None) -> T:
    """Return the estimate, which exists because at least one pair is valid."""
    if found is None:
        raise UsageError("without a valid pair nothing can be compared")
    return found


def _student(part: pl.DataFrame) -> str:
    return STUDENT if part.height == part[N_VALID].sum() else STUDENT + CLUSTERED


def _with_spread(estimate: Estimate) -> Estimate:
    """Drop an error of 0: clusters that are all alike tell nothing about the spread."""
    return estimate if estimate.standard_error != 0.0 else without_interval(estimate)


def _shown(estimate: Estimate, level: float) -> float | None:
    error = estimate.standard_error
    return None if error is None else smallest_effect(error, level=1.0 - level)


def _limits(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {f"{name}_difference": estimate.value, **limit_columns(name, estimate.interval)}


def _figure(name: str, side: Summary) -> float:
    if name == REWARD_ACCURACY_HALF:
        return float(side.reward_accuracy or 0.0) + side.n_ties / (2 * side.n_valid)
    return float(getattr(side, name))
