"""`dpo_loss`: lists of numbers in, the specification's dictionary out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias, TypedDict

import polars as pl

from dpo_pipeline.arguments import checked_beta
from dpo_pipeline.columns import LOGPS
from dpo_pipeline.defaults import BETA
from dpo_pipeline.errors import ArgumentError, DataWarning
from dpo_pipeline.losses.dpo import implicit_reward, logratio, reward_margin, sigmoid_loss

DECIMALS: Final = 4

_SCALE: Final = 10.0**DECIMALS

_NEAR: Final = 1e-6
"""Distance from a tie, in units of the last decimal. Below `_LARGE` the product's error is at
most 2**-53 * 1e9 = 1.2e-7 of them."""

_LARGE: Final = 1e5

_SMALL: Final = 512
"""Pairs of a batch that Python computes as fast as Polars, whose start costs a millisecond."""


def needs_python(x: pl.Expr) -> pl.Expr:
    """Return true where Polars may not round like Python: near a tie, or a large value."""
    scaled = x * _SCALE
    return ((scaled - scaled.floor() - 0.5).abs() < _NEAR) | (x.abs() > _LARGE)


def python_rounded(exact: pl.Series, rounded: pl.Series, marked: pl.Series) -> list[float]:
    """Return `[round(x, 4) for x in exact]` to the last bit, `marked` being `needs_python`."""
    result: list[float] = rounded.to_list()
    if marked.any():
        positions = marked.arg_true()
        for position, value in zip(positions.to_list(), exact.gather(positions), strict=True):
            result[position] = round(value, DECIMALS)
    return result


ARGUMENTS: Final = (
    "log_probs_chosen_policy",
    "log_probs_rejected_policy",
    "log_probs_chosen_ref",
    "log_probs_rejected_ref",
)


LogProbs: TypeAlias = Sequence[float] | pl.Series | Any
"""A list, tuple, numpy array, Polars Series or Arrow array of numbers, one a pair, in nats."""


class DpoLoss(TypedDict):
    """What `dpo_loss` returns: plain floats rounded to four decimals, in nats."""

    loss: float
    chosen_rewards: list[float]
    rejected_rewards: list[float]


def dpo_loss(
    log_probs_chosen_policy: LogProbs,
    log_probs_rejected_policy: LogProbs,
    log_probs_chosen_ref: LogProbs,
    log_probs_rejected_ref: LogProbs,
    beta: float = BETA,
) -> DpoLoss:
    """Return the mean DPO loss of a batch and the implicit rewards of its pairs.

    loss = mean of -log sigmoid(chosen reward - rejected reward), a reward being
    beta * (policy - reference) log-probability (arXiv 2305.18290, Eq. 7). Stable for any
    finite margin.

    Args:
        log_probs_chosen_policy: Log-probability of each chosen completion under the policy,
            in nats, summed over its tokens: a list, tuple, numpy array, Polars or Arrow column.
        log_probs_rejected_policy: The same of each rejected completion.
        log_probs_chosen_ref: The same of each chosen completion under the reference.
        log_probs_rejected_ref: The same of each rejected completion.
        beta: KL strength, finite and at least 0. 0 gives rewards of 0 and a loss of log 2.

    Returns:
        `{"loss", "chosen_rewards", "rejected_rewards"}`, plain floats rounded to 4 decimals
        exactly as Python rounds: a reward is `round(beta * (policy - ref), 4)`, the loss
        `round(math.fsum(row_losses) / n, 4)`.

    Raises:
        ArgumentError: Lengths differ, the batch is empty, a value is null, NaN, infinite or no
            number, beta is negative or not finite, or a result is not finite. It names the
            argument, the position and the value.

    Warns:
        DataWarning: A log-probability is positive. It is used as it is.

    Examples:
        >>> import dpo_pipeline
        >>> dpo_pipeline.dpo_loss([-10.0], [-14.0], [-11.0], [-12.0], beta=0.1)
        {'loss': 0.5544, 'chosen_rewards': [0.1], 'rejected_rewards': [-0.2]}
    """
    beta = checked_beta(beta)
    given = (
        log_probs_chosen_policy,
        log_probs_rejected_policy,
        log_probs_chosen_ref,
        log_probs_rejected_ref,
    )
    if all(isinstance(values, (list, tuple)) for values in given):
        small = _small(given, beta)
        if small is not None:
            return small
    series = [_column(n, name, v) for n, name, v in zip(LOGPS, ARGUMENTS, given, strict=True)]
    _check_lengths(series)
    rewards, results = _plan(beta)
    # select_seq starts no threads, which for a training batch would be most of the time.
    scored = pl.DataFrame(series).select_seq(rewards).select_seq(results)
    if not all(_is_finite(scored[name]) for name in ("chosen", "rejected", "loss")):
        for argument, column in zip(ARGUMENTS, series, strict=True):
            _refuse_non_finite(argument, column)
        _refuse_results(scored, beta=beta)
    for argument, column in zip(ARGUMENTS, series, strict=True):
        _warn_of_positive(argument, column)
    try:
        mean = math.fsum(scored["loss"].to_list()) / len(scored)
    except OverflowError:
        problem = f"= {beta!r} makes the sum of the losses overflow"
        raise ArgumentError("beta", problem, value=beta) from None
    chosen_rewards, rejected_rewards = (
        python_rounded(scored[name], scored[f"{name}_rounded"], scored[f"{name}_marked"])
        for name in ("chosen", "rejected")
    )
    return {
        "loss": round(mean, DECIMALS),
        "chosen_rewards": chosen_rewards,
        "rejected_rewards": rejected_rewards,
    }


def _small(given: Sequence[Any], beta: float) -> DpoLoss | None:
    """Return the result of a small batch without Polars; None if anything is to be said about it.

    The formulas are those of `dpo`, and a test holds the two to one result.
    """
    length = len(given[0])
    if not 0 < length <= _SMALL or any(len(values) != length for values in given):
        return None
    types = set().union(*(map(type, values) for values in given))
    if not types <= {float, int}:
        return None
    try:
        if int in types:
            given = [list(map(float, values)) for values in given]
        policy_chosen, policy_rejected, ref_chosen, ref_rejected = given
        chosen = [beta * (p - r) for p, r in zip(policy_chosen, ref_chosen, strict=True)]
        rejected = [beta * (p - r) for p, r in zip(policy_rejected, ref_rejected, strict=True)]
        # Not a number is what a fault leaves in a sum, and infinite what it or an overflow does.
        if not math.isfinite(sum(chosen) + sum(rejected)) or max(map(max, given)) > 0:
            return None
        losses = [
            max(r - c, 0.0) + math.log1p(math.exp(-abs(c - r)))
            for c, r in zip(chosen, rejected, strict=True)
        ]
        mean = math.fsum(losses) / length
    except OverflowError:
        return None
    return {
        "loss": round(mean, DECIMALS),
        "chosen_rewards": [round(x, DECIMALS) for x in chosen],
        "rejected_rewards": [round(x, DECIMALS) for x in rejected],
    }


@lru_cache(maxsize=16)
def _plan(beta: float) -> tuple[list[pl.Expr], list[pl.Expr]]:
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = map(pl.col, LOGPS)
    chosen, rejected = pl.col("chosen"), pl.col("rejected")
    rewards = [
        implicit_reward(logratio(policy_chosen, ref_chosen), beta=beta).alias("chosen"),
        implicit_reward(logratio(policy_rejected, ref_rejected), beta=beta).alias("rejected"),
    ]
    results = [
        chosen,
        rejected,
        sigmoid_loss(reward_margin(chosen, rejected)).alias("loss"),
        chosen.round(DECIMALS).alias("chosen_rounded"),
        rejected.round(DECIMALS).alias("rejected_rounded"),
        needs_python(chosen).alias("chosen_marked"),
        needs_python(rejected).alias("rejected_marked"),
    ]
    return rewards, results


def _is_finite(column: pl.Series) -> bool:
    # A sum costs a hundredth of is_finite on a short column. Finite values can add up to
    # infinity, which the slow way then finds to be no fault.
    return column.null_count() == 0 and math.isfinite(column.sum())


def _column(column: str, argument: str, values: LogProbs) -> pl.Series:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise _no_sequence(argument, values)
    # Polars would read True as 1.0. A set of types costs a tenth of a loop.
    is_plain = isinstance(values, (list, tuple)) and bool not in set(map(type, values))
    try:
        series = pl.Series(column, values, dtype=pl.Float64 if is_plain else None)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        raise _not_a_number(argument, values) from None
    if series.dtype.is_float() or series.dtype.is_integer() or series.dtype == pl.Null:
        return series.cast(pl.Float64)
    raise _not_a_number(argument, values)


def _no_sequence(argument: str, values: Any) -> ArgumentError:
    problem = f"must be a sequence of numbers, found {type(values).__name__}"
    return ArgumentError(argument, problem, value=values)


def _not_a_number(argument: str, values: Any) -> ArgumentError:
    for position, value in enumerate(values):
        plain = value.as_py() if hasattr(value, "as_py") else value
        if isinstance(plain, (bool, str)) or not _floats(plain):
            problem = f"must be a number, found {plain!r}"
            return ArgumentError(argument, problem, position=position, value=plain)
    return _no_sequence(argument, values)


def _floats(value: Any) -> bool:
    try:
        float(0.0 if value is None else value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _check_lengths(series: Sequence[pl.Series]) -> None:
    first, length = ARGUMENTS[0], len(series[0])
    for name, column in zip(ARGUMENTS, series, strict=True):
        if len(column) != length:
            problem = f"has {len(column):,} values, and {first} has {length:,}"
            raise ArgumentError(name, problem, value=len(column))
    if length == 0:
        raise ArgumentError(first, "is empty: a batch has at least one pair", value=0)


def _refuse_non_finite(argument: str, column: pl.Series) -> None:
    bad = column.is_finite().fill_null(value=False).not_().arg_true()
    if len(bad):
        value = column[bad[0]]
        problem = f"must be finite, found {value!r}"
        raise ArgumentError(argument, problem, position=bad[0], value=value)


def _warn_of_positive(argument: str, column: pl.Series) -> None:
    highest = column.max()
    if isinstance(highest, float) and highest > 0:
        positions = (column > 0).arg_true()
        warnings.warn(
            f"{argument}[{positions[0]}] is {column[positions[0]]!r}: a log-probability is at "
            f"most 0 ({len(positions):,} of {len(column):,} are above)",
            DataWarning,
            stacklevel=3,
        )


def _refuse_results(scored: pl.DataFrame, *, beta: float) -> None:
    for name in ("chosen", "rejected", "loss"):
        bad = scored[name].is_finite().not_().arg_true()
        if len(bad):
            what = "loss" if name == "loss" else f"{name} reward"
            found = f"a {what} of {scored[name][bad[0]]!r} at position {bad[0]}"
            raise ArgumentError("beta", f"= {beta!r} gives {found}", position=bad[0], value=beta)
