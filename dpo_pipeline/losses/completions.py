"""Losses of completions, one a row, as Polars expressions: unpaired, and listwise over a prompt.

As in `pairwise`, positional arguments say what a loss compares and keywords are its parameters:

    score      log-ratio of the completion; without a reference its log-prob
    reward     beta * score
    label      whether the completion is desirable
    kl         the KL term in nats, before beta
    goodness   how good a completion is said to be: more is better
    prompt     the prompt's key; its completions are whole, in any order

A listwise loss is a sum over the completions of a prompt, and these functions return each one's
term: the loss of the prompt is the sum of its terms. Null and NaN propagate.
"""

from __future__ import annotations

import polars as pl

from dpo_pipeline.exact import exact_sum, mean_of
from dpo_pipeline.losses.dpo import sigmoid_loss, softplus
from dpo_pipeline.losses.pairwise import sigmoid


def batch_kl(
    policy: pl.Expr, reference: pl.Expr, batch: pl.Expr, *, without_zeros: bool
) -> pl.Expr:
    """Return the KL term of each batch: the mean log-ratio of mismatched completions, at least 0.

    The log-probs are those of other completions for the prompts of the batch (arXiv 2402.01306,
    section 4.1), desirable or not. `without_zeros` leaves out log-ratios of 0, as HALOs does; a
    batch of zeros alone has a KL of 0.
    """
    ratio = policy - reference
    kept = pl.when(ratio != 0.0).then(ratio) if without_zeros else ratio
    mean = mean_of(exact_sum(kept), kept.count()).over(batch)
    is_there = ratio.count().over(batch) > 0
    return pl.when(is_there).then(mean.fill_null(0.0).clip(lower_bound=0.0))


def kto(
    score: pl.Expr,
    label: pl.Expr,
    kl: pl.Expr,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> pl.Expr:
    """Return w (1 - sigma(beta (h - K))) if desirable, else w (1 - sigma(beta (K - h))).

    Source: arXiv 2402.01306, Eq. 7 and 8, the log-ratio being h and the KL term K.
    """
    desired = desirable_weight * sigmoid(-beta * (score - kl))
    undesired = undesirable_weight * sigmoid(-beta * (kl - score))
    return pl.when(label).then(desired).when(label.not_()).then(undesired)


def apo_zero_unpaired(
    reward: pl.Expr, label: pl.Expr, *, desirable_weight: float, undesirable_weight: float
) -> pl.Expr:
    """Return w (1 - sigma(r)) if desirable, else w sigma(r), r the reward (arXiv 2408.06266)."""
    desired, undesired = desirable_weight * sigmoid(-reward), undesirable_weight * sigmoid(reward)
    return pl.when(label).then(desired).when(label.not_()).then(undesired)


def plackett_luce(reward: pl.Expr, goodness: pl.Expr, prompt: pl.Expr) -> pl.Expr:
    """Return each completion's -log of its chance to be the best of those that are not better.

    Source: arXiv 2305.18290, Appendix A.3. The worst has a term of 0. Null for prompts of which two
    completions are equally good: the loss is of one ranking.
    """
    better_by = goodness.implode().over(prompt) - goodness
    not_better = better_by.list.eval(pl.when(pl.element() <= 0).then(pl.lit(0.0)))
    is_ranking = goodness.n_unique().over(prompt) == pl.len().over(prompt)
    return pl.when(is_ranking).then(_log_sum_exp(reward, prompt, not_better))


def infonca(reward: pl.Expr, goodness: pl.Expr, prompt: pl.Expr, *, temperature: float) -> pl.Expr:
    """Return -p log softmax(r), p the completion's share of the target (arXiv 2402.05369, Eq. 8).

    `temperature` makes the target: softmax(goodness / temperature), or, at 0, all on the best one.
    """
    return _share(goodness, prompt, temperature) * _log_sum_exp(reward, prompt)


def nca(reward: pl.Expr, goodness: pl.Expr, prompt: pl.Expr, *, temperature: float) -> pl.Expr:
    """Return p sp(r) + sp(-r) / K, K the prompt's completions (arXiv 2402.05369, Eq. 12)."""
    pulled = _share(goodness, prompt, temperature) * sigmoid_loss(reward)
    return pulled + softplus(reward) / pl.len().over(prompt)


def _share(goodness: pl.Expr, prompt: pl.Expr, temperature: float) -> pl.Expr:
    """Return the completion's share of its prompt's target; several best ones share it alike."""
    best = goodness.max().over(prompt)
    if temperature == 0.0:
        is_best = (goodness == best).cast(pl.Float64)
        return is_best / is_best.sum().over(prompt)
    weight = ((goodness - best) / temperature).exp()
    return weight / weight.sum().over(prompt)


def _log_sum_exp(reward: pl.Expr, prompt: pl.Expr, of: pl.Expr | None = None) -> pl.Expr:
    """Return log(sum exp(r_j)) - r over the prompt's completions, or those that `of` has as 0."""
    others = reward.implode().over(prompt) - reward
    # Sorted, so that the largest stands apart and small terms keep their digits.
    falling = (others if of is None else others + of).list.drop_nulls().list.sort(descending=True)
    largest = falling.list.first()
    rest = (falling - largest).list.eval(pl.element().exp()).list.slice(1).list.sum()
    return pl.when(reward.is_not_nan()).then(largest + rest.log1p()).otherwise(reward)
