"""Preference losses of one pair, as Polars expressions; `dpo` has the DPO loss itself.

A loss is a function from what it compares to nats. Its positional arguments say what that is,
its keywords are its parameters, and `catalogue` names it:

    margin              beta * (chosen score - rejected score)
    chosen_score        log-ratio of the chosen completion, or its substitute
    rejected_score      the same of the rejected completion
    chosen_reward       beta * chosen_score
    rejected_reward     beta * rejected_score
    chosen_tokens       tokens of the chosen completion
    rejected_tokens     tokens of the rejected completion
    chosen_logp         log-prob of the chosen completion under the policy
    rejected_logp       the same of the rejected completion
    beta                KL strength, greater than 0 where it divides

and columns that no other loss reads: `offset` and `preference_probability`.

The score of a completion is the log-ratio of policy and reference unless something else is asked
for: without a reference it is the policy's log-prob, under another f-divergence it is
f'(exp(log-ratio)) (`F_DIVERGENCES`), and a token's mean divides by the tokens, in that order.

Null and NaN propagate through every one of them. Two infinite scores have no difference, so the
loss is NaN where both overflow; such a pair is invalid, by the rule that scores are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import polars as pl

from dpo_pipeline.losses.dpo import sigmoid_loss, softplus


def sigmoid(x: pl.Expr) -> pl.Expr:
    """Return 1 / (1 + exp(-x)), to full relative precision wherever it is not 0."""
    return 1.0 / (1.0 + (-x).exp())


def expm1(x: pl.Expr) -> pl.Expr:
    """Return exp(x) - 1 without cancellation near 0; inf above 709."""
    near_zero = 2.0 * (x / 2.0).sinh() * (x / 2.0).exp()
    return pl.when(x.abs() < 1.0).then(near_zero).otherwise(x.exp() - 1.0)


def log1mexp(x: pl.Expr) -> pl.Expr:
    """Return log(1 - exp(x)) for x below 0; -inf at 0, NaN above."""
    near_zero = x > -math.log(2.0)  # where both forms are equally good
    return pl.when(near_zero).then((-expm1(x)).log()).otherwise((-x.exp()).log1p())


def smoothed_sigmoid(margin: pl.Expr, *, label_smoothing: float) -> pl.Expr:
    """Return the conservative DPO loss: (1-e) sp(m) + e sp(-m), sp being the DPO loss.

    Source: Mitchell, "A note on DPO with noisy preferences and relationship to IPO". The DPO loss
    (arXiv 2305.18290, Eq. 7) for e = 0.
    """
    if label_smoothing == 0.0:
        return sigmoid_loss(margin)
    kept, flipped = sigmoid_loss(margin), sigmoid_loss(-margin)
    return (1.0 - label_smoothing) * kept + label_smoothing * flipped


def robust(margin: pl.Expr, *, label_smoothing: float) -> pl.Expr:
    """Return ((1-e) sp(m) - e sp(-m)) / (1-2e), unbiased for labels that flip with chance e.

    Source: arXiv 2403.00409. It can be negative.
    """
    if label_smoothing == 0.0:  # 0 times an infinite margin is NaN
        return sigmoid_loss(margin)
    # sp(-m) is sp(m) + m, and so the difference needs no two large terms.
    return sigmoid_loss(margin) - label_smoothing / (1.0 - 2.0 * label_smoothing) * margin


def hinge(margin: pl.Expr) -> pl.Expr:
    """Return max(0, 1 - m) (SLiC-HF, arXiv 2305.10425; RSO, arXiv 2309.06657)."""
    return (1.0 - margin).clip(lower_bound=0.0)


def ipo(chosen_score: pl.Expr, rejected_score: pl.Expr, *, beta: float) -> pl.Expr:
    """Return (chosen - rejected score - 1/(2 beta))^2 (arXiv 2310.12036, Eq. 17; tau is beta)."""
    return (chosen_score - rejected_score - 0.5 / beta).pow(2)


def exo_pair(margin: pl.Expr, *, label_smoothing: float) -> pl.Expr:
    """Return KL(Bernoulli(sigma(m)) || Bernoulli(1-e)) (arXiv 2402.00856, Eq. 16)."""
    smoothed = pl.lit(label_smoothing)
    margin = margin.clip(-800.0, 800.0)  # beyond, nothing changes, and 0 times inf is NaN
    kept = sigmoid(margin) * (-sigmoid_loss(margin) - (-smoothed).log1p())
    return kept + sigmoid(-margin) * (-sigmoid_loss(-margin) - smoothed.log())


def nca_pair(chosen_reward: pl.Expr, rejected_reward: pl.Expr) -> pl.Expr:
    """Return sp(c) + sp(-c)/2 + sp(-r)/2 on the rewards (arXiv 2402.05369)."""
    repelled = softplus(chosen_reward) + softplus(rejected_reward)
    return sigmoid_loss(chosen_reward) + 0.5 * repelled


def bco_pair(
    chosen_reward: pl.Expr, rejected_reward: pl.Expr, *, baseline: float | pl.Expr
) -> pl.Expr:
    """Return sp(c - d) + sp(d - r) on the rewards, d being the baseline (arXiv 2404.04656)."""
    return sigmoid_loss(chosen_reward - baseline) + softplus(rejected_reward - baseline)


def sppo_hard(chosen_score: pl.Expr, rejected_score: pl.Expr, *, beta: float) -> pl.Expr:
    """Return (chosen - 1/(2 beta))^2 + (rejected + 1/(2 beta))^2 (arXiv 2405.00675, Eq. 4.7).

    The probability that the winner wins is taken to be 1.
    """
    return (chosen_score - 0.5 / beta).pow(2) + (rejected_score + 0.5 / beta).pow(2)


def apo_zero(chosen_reward: pl.Expr, rejected_reward: pl.Expr) -> pl.Expr:
    """Return 1 - sigma(c) + sigma(r) on the rewards (arXiv 2408.06266, Eq. 7)."""
    return sigmoid(-chosen_reward) + sigmoid(rejected_reward)


def apo_down(chosen_reward: pl.Expr, margin: pl.Expr) -> pl.Expr:
    """Return sigma(c) + 1 - sigma(m) on the chosen reward and margin (arXiv 2408.06266, Eq. 8)."""
    return sigmoid(chosen_reward) + sigmoid(-margin)


def discopop(margin: pl.Expr, *, tau: float) -> pl.Expr:
    """Return sp(m) (1 - s) + exp(-m) s with s = sigma(m / tau) (arXiv 2406.08414, Eq. 5).

    Overflows to inf for very negative margins if tau is above 1.
    """
    falling = sigmoid(-margin / tau)
    # exp(-m) alone would overflow at -709 where its product with sigma(m / tau) is nothing.
    faster = 1.0 / tau - 1.0
    below = falling if faster == 0.0 else (margin * faster).exp() * falling
    above = (-margin).exp() * sigmoid(margin / tau)
    return sigmoid_loss(margin) * falling + pl.when(margin < 0.0).then(below).otherwise(above)


def dpop(chosen_score: pl.Expr, rejected_score: pl.Expr, *, beta: float, penalty: float) -> pl.Expr:
    """Return sp(beta (chosen - rejected - penalty * max(0, -chosen))) (arXiv 2402.13228)."""
    fallen = (-chosen_score).clip(lower_bound=0.0)
    return sigmoid_loss(beta * (chosen_score - rejected_score - penalty * fallen))


def length_regularised(
    margin: pl.Expr, chosen_tokens: pl.Expr, rejected_tokens: pl.Expr, *, length_penalty: float
) -> pl.Expr:
    """Return sp(m + a (chosen tokens - rejected tokens)): R-DPO (arXiv 2403.19159).

    Regularising the objective by - a * tokens adds + a * tokens to the implied reward.
    """
    return sigmoid_loss(margin + length_penalty * (chosen_tokens - rejected_tokens))


def length_regularised_reward(
    score: pl.Expr, tokens: pl.Expr, *, beta: float, length_penalty: float
) -> pl.Expr:
    """Return the reward that R-DPO's objective implies: beta * score + a * tokens."""
    return beta * score + length_penalty * tokens


def odpo(margin: pl.Expr, offset: pl.Expr) -> pl.Expr:
    """Return the DPO loss of m - offset (arXiv 2402.10571, Eq. 8), the offset being the pair's.

    The offset is in units of the margin: beta does not multiply it.
    """
    return sigmoid_loss(margin - offset)


def soft_labels(margin: pl.Expr, preference_probability: pl.Expr) -> pl.Expr:
    """Return p sp(m) + (1-p) sp(-m): cDPO with the pair's own p (arXiv 2409.06691, Eq. 5)."""
    flipped = 1.0 - preference_probability
    return preference_probability * sigmoid_loss(margin) + flipped * sigmoid_loss(-margin)


def wpo(
    margin: pl.Expr,
    chosen_logp: pl.Expr,
    rejected_logp: pl.Expr,
    chosen_tokens: pl.Expr,
    rejected_tokens: pl.Expr,
) -> pl.Expr:
    """Return min(1, exp(c / L_c + r / L_r)) sp(m): WPO without its alignment (arXiv 2406.11827).

    The weight says how likely the policy itself is to write the pair. It has no gradient there, and
    here it only weighs.
    """
    likelihood = chosen_logp / chosen_tokens + rejected_logp / rejected_tokens
    return likelihood.exp().clip(upper_bound=1.0) * sigmoid_loss(margin)


def simpo(margin: pl.Expr, *, gamma: float, label_smoothing: float) -> pl.Expr:
    """Return the DPO loss of m - gamma (arXiv 2405.14734), m from mean log-probs."""
    return smoothed_sigmoid(margin - gamma, label_smoothing=label_smoothing)


def alphapo(
    chosen_score: pl.Expr, rejected_score: pl.Expr, *, beta: float, gamma: float, alpha: float
) -> pl.Expr:
    """Return sp(beta (r_c - r_r) - gamma), r = (1 - p^-alpha) / alpha (arXiv 2501.03884).

    p is the exponential of the score, the mean log-prob; SimPO for alpha = 0. NaN where both
    rewards overflow.
    """
    chosen, rejected = (_of_power(score, alpha) for score in (chosen_score, rejected_score))
    return sigmoid_loss(beta * (chosen - rejected) - gamma)


def alphapo_reward(
    score: pl.Expr,
    tokens: pl.Expr,  # noqa: ARG001  as of all rewards
    *,
    beta: float,
    gamma: float,  # noqa: ARG001  it is on the margin
    alpha: float,
) -> pl.Expr:
    """Return the reward that `alphapo` compares: beta (1 - p^-alpha) / alpha."""
    return beta * _of_power(score, alpha)


def _of_power(score: pl.Expr, alpha: float) -> pl.Expr:
    return score if alpha == 0.0 else -expm1(-alpha * score) / alpha


def orpo_odds_ratio(chosen_score: pl.Expr, rejected_score: pl.Expr, *, beta: float) -> pl.Expr:
    """Return beta * sp(log odds ratio) of the mean probabilities (arXiv 2403.07691).

    The scores are mean log-probs. inf where the rejected one is 0, NaN where both are or where
    one is above 0, which `max_logp` can allow.
    """
    odds = log1mexp(chosen_score) - log1mexp(rejected_score)
    return beta * sigmoid_loss(chosen_score - rejected_score - odds)


def sft(chosen_score: pl.Expr) -> pl.Expr:
    """Return minus the mean log-prob of the chosen completion's tokens: its NLL a token."""
    return -chosen_score


def orpo(chosen_score: pl.Expr, rejected_score: pl.Expr, *, beta: float) -> pl.Expr:
    """Return the NLL a token plus `orpo_odds_ratio` (arXiv 2403.07691)."""
    return sft(chosen_score) + orpo_odds_ratio(chosen_score, rejected_score, beta=beta)


REVERSE_KL: Final = "reverse_kl"
ALPHA_DIVERGENCE: Final = "alpha_divergence"


def reverse_kl(logratio: pl.Expr, _alpha: float) -> pl.Expr:
    """Return the log-ratio h: log u, up to a constant, for u = exp(h). The divergence of DPO."""
    return logratio


def forward_kl(logratio: pl.Expr, _alpha: float) -> pl.Expr:
    """Return 1 - exp(-h); -inf below a log-ratio of -709."""
    return -expm1(-logratio)


def js_divergence(logratio: pl.Expr, _alpha: float) -> pl.Expr:
    """Return log 2 + log sigma(h), of the Jensen-Shannon divergence."""
    near_zero = -(expm1(-logratio) / 2.0).log1p()
    far = math.log(2.0) - sigmoid_loss(logratio)
    return pl.when(logratio.abs() < 1.0).then(near_zero).otherwise(far)


def alpha_divergence(logratio: pl.Expr, alpha: float) -> pl.Expr:
    """Return (exp((alpha-1) h) - 1) / (alpha-1); the log-ratio itself for alpha = 1.

    This alpha is TRL's; the paper's is 1 - alpha.
    """
    return logratio if alpha == 1.0 else expm1((alpha - 1.0) * logratio) / (alpha - 1.0)


F_DIVERGENCES: Final[Mapping[str, Callable[[pl.Expr, float], pl.Expr]]] = MappingProxyType(
    {
        REVERSE_KL: reverse_kl,
        "forward_kl": forward_kl,
        "js_divergence": js_divergence,
        ALPHA_DIVERGENCE: alpha_divergence,
    }
)
"""f' of each divergence, as a function of the log-ratio (arXiv 2309.16240).

All are 0 where policy and reference agree, so that dividing by tokens keeps them comparable."""
