"""Implicit rewards and the DPO loss, as Polars expressions.

Source: Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a
Reward Model", arXiv 2305.18290. Every function takes and returns expressions, one value a
row, in nats; none names a column. Null and NaN propagate.
"""

from __future__ import annotations

import polars as pl


def softplus(x: pl.Expr) -> pl.Expr:
    """Return log(1 + exp(x)), which is -log sigmoid(-x), without overflow for any finite x.

    Stable from -1.8e308 (gives 0) to 1.8e308 (gives x), because exp only ever sees -|x|.
    """
    # clip keeps null and NaN; max_horizontal would turn both into 0.
    return x.clip(lower_bound=0.0) + (-x.abs()).exp().log1p()


def logratio(policy: pl.Expr, reference: pl.Expr) -> pl.Expr:
    """Return log(pi(y|x) / pi_ref(y|x)) of summed log-probs: a reward without beta (section 4)."""
    return policy - reference


def implicit_reward(logratio: pl.Expr, *, beta: float) -> pl.Expr:
    """Return the reward that a policy implies for one completion (section 5, Theorem 1).

    It is defined up to a constant per prompt, so only differences within a pair mean anything.
    """
    return beta * logratio


def reward_margin(chosen_reward: pl.Expr, rejected_reward: pl.Expr) -> pl.Expr:
    """Return chosen minus rejected reward, the argument of the sigmoid in Eq. 7."""
    return chosen_reward - rejected_reward


def sigmoid_loss(margin: pl.Expr) -> pl.Expr:
    """Return the DPO loss of one pair, -log sigmoid(margin) (Eq. 7).

    0 for a large positive margin, -margin for a large negative one, log 2 at a tie.
    """
    # The same bits as softplus(-margin), without negating first.
    return (-margin.abs()).exp().log1p() - margin.clip(upper_bound=0.0)


def is_correct(margin: pl.Expr) -> pl.Expr:
    """Return whether the chosen reward is above the rejected one; a tie is not, nor is NaN.

    Strict, as in TRL and in every peer. Null stays null.
    """
    # Polars orders NaN above every number, so that NaN > 0 is true.
    return (margin > 0.0) & margin.is_not_nan()
