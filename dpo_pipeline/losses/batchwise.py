"""Losses that depend on the other pairs of a batch, as expressions over its rows.

`batch` names the batch of each row; a batch is whole, and its rows stand in order. A null takes
no part, and has no loss. Positional arguments besides those of `losses`:

    policy_difference     c - r, chosen less rejected log-prob under the policy
    reference_difference  C - R, the same under the reference
    batch                 the batch's number
    seen                  quanta of all scores before this frame, and how many they are
"""

from __future__ import annotations

import polars as pl

from dpo_pipeline.exact import exact_sum, mean_of, quanta
from dpo_pipeline.losses.pairwise import bco_pair, sigmoid, smoothed_sigmoid


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

    K is the mean log-ratio of a side over the batch, at least 0 (arXiv 2402.01306). The report
    has two values a pair, whose mean over a batch is that of this one.
    """
    chosen_kl, rejected_kl = (
        mean_of(exact_sum(score), score.count()).clip(lower_bound=0.0).over(batch)
        for score in (chosen_score, rejected_score)
    )
    desired = sigmoid(-beta * (chosen_score - rejected_kl))
    return 0.5 * (desired + sigmoid(-beta * (chosen_kl - rejected_score)))


def bco_pair_running(
    chosen_score: pl.Expr,
    rejected_score: pl.Expr,
    batch: pl.Expr,
    seen: tuple[pl.Expr, pl.Expr],
    *,
    beta: float,
) -> pl.Expr:
    """Return `bco_pair` with the mean of all rewards up to the end of the batch as baseline.

    Source: arXiv 2404.04656, with the running mean of TRL up to 0.24. It depends on the
    order of the batches.
    """
    scores = quanta(chosen_score) + quanta(rejected_score)
    total = seen[0] + _up_to_the_end_of_its_batch(scores.fill_null(0), batch)
    n_scores = 2 * scores.is_not_null().cast(pl.Int64)
    count = seen[1] + _up_to_the_end_of_its_batch(n_scores, batch)
    return bco_pair(
        beta * chosen_score, beta * rejected_score, baseline=beta * mean_of(total, count)
    )


def _up_to_the_end_of_its_batch(values: pl.Expr, batch: pl.Expr) -> pl.Expr:
    # A running sum inside the window would start anew in each batch.
    begins = batch.ne_missing(batch.shift())
    return pl.when(begins).then(values.sum().over(batch)).otherwise(0).cum_sum()
