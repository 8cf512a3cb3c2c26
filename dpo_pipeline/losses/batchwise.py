"""Losses that depend on the other pairs of a batch, as expressions over its rows.

`batch` names the batch of each row; a batch is whole, and its rows stand in order. A null takes
no part and gives a null loss. Positional arguments besides those of `pairwise`:

    policy_difference     c - r, chosen less rejected log-prob under the policy
    reference_difference  C - R, the same under the reference
    batch                 the batch's number
"""

from __future__ import annotations

import polars as pl

from dpo_pipeline.exact import exact_sum, mean_of
from dpo_pipeline.losses.pairwise import sigmoid, smoothed_sigmoid


def aot(
    policy_difference: pl.Expr,
    reference_difference: pl.Expr,
    batch: pl.Expr,
    *,
    beta: float,
    label_smoothing: float,
) -> pl.Expr:
    """Return the loss of beta (u - v), u and v of equal rank (arXiv 2406.05882).

    The pair gets the loss of its own u = c - r, with the v = C - R that has the same rank.
    """
    matched = _of_equal_rank(reference_difference, policy_difference).over(batch)
    return smoothed_sigmoid(beta * (policy_difference - matched), label_smoothing=label_smoothing)


def aot_unpaired(
    chosen_score: pl.Expr,
    rejected_score: pl.Expr,
    batch: pl.Expr,
    *,
    beta: float,
    label_smoothing: float,
) -> pl.Expr:
    """Return the loss of beta (h_c - h_r), both of equal rank (arXiv 2406.05882)."""
    matched = _of_equal_rank(rejected_score, chosen_score).over(batch)
    return smoothed_sigmoid(beta * (chosen_score - matched), label_smoothing=label_smoothing)


def _of_equal_rank(values: pl.Expr, ranked: pl.Expr) -> pl.Expr:
    return values.sort(nulls_last=True).gather(ranked.rank("ordinal") - 1)


def kto_pair(
    chosen_score: pl.Expr, rejected_score: pl.Expr, batch: pl.Expr, *, beta: float
) -> pl.Expr:
    """Return the mean of 1 - sigma(beta (h_c - K_r)) and 1 - sigma(beta (K_c - h_r)).

    K is the mean log-ratio of chosen or rejected over the batch, at least 0 (arXiv 2402.01306). The
    paper has two losses a pair; over a batch, their mean is the mean of this one.
    """
    chosen_kl, rejected_kl = (
        mean_of(exact_sum(score), score.count()).clip(lower_bound=0.0).over(batch)
        for score in (chosen_score, rejected_score)
    )
    desired = sigmoid(-beta * (chosen_score - rejected_kl))
    return 0.5 * (desired + sigmoid(-beta * (chosen_kl - rejected_score)))
