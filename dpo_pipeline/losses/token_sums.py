"""Sums over lists of per-token log-probs, as expressions: from tokens to a completion.

Every function takes and returns expressions, a list or a number a row; none names a column. A
null list gives null. Computed in Float64, whatever the lists hold.
"""

from __future__ import annotations

import polars as pl


def kept_tokens(tokens: pl.Expr, mask: pl.Expr | None) -> pl.Expr:
    """Return the tokens that the mask keeps (all without one), as a list of Float64."""
    numbers = tokens.cast(pl.List(pl.Float64))
    if mask is None:
        return numbers
    places = mask.cast(pl.List(pl.Boolean)).list.eval(pl.element().arg_true())
    return numbers.list.gather(places, null_on_oob=True)


def sum_of_tokens(tokens: pl.Expr) -> pl.Expr:
    """Return the log-prob of a completion: the sum over its tokens; null if one is null."""
    has_null = tokens.list.drop_nulls().list.len() != tokens.list.len()
    # Polars adds in another order when a chunk holds nulls: drop them, so that sums are the same.
    return pl.when(has_null.not_()).then(tokens.list.drop_nulls().list.sum())


def number_of_tokens(tokens: pl.Expr) -> pl.Expr:
    """Return the number of tokens as Int64."""
    return tokens.list.len().cast(pl.Int64)


def length_desensitised(tokens: pl.Expr, other: pl.Expr, *, alpha: float) -> pl.Expr:
    """Return the sum in which tokens beyond the length of `other` count alpha times.

    Source: LD-DPO, arXiv 2409.06411, with `other` the completion of the other side. The plain
    sum for alpha = 1.
    """
    shared = tokens.list.head(pl.min_horizontal(tokens.list.len(), other.list.len()))
    return alpha * sum_of_tokens(tokens) + (1.0 - alpha) * sum_of_tokens(shared)


def clamped_logratio(
    policy: pl.Expr, reference: pl.Expr, *, low: float = -1.0, high: float = 1.5
) -> pl.Expr:
    """Return the sum of per-token log-ratios, each clamped to low and high (HALOs, humanline).

    Null if the lists differ in length.
    """
    return sum_of_tokens(_differences(policy, reference).list.eval(pl.element().clip(low, high)))


def k1(policy: pl.Expr, reference: pl.Expr) -> pl.Expr:
    """Return the mean of d = policy - reference over tokens, in nats.

    k1, k2 and k3 estimate KL(policy || reference) on tokens sampled from the policy. Those of a
    preference dataset are not, so this is no KL of the models. Null if the lists differ in length.
    """
    return _differences(policy, reference).list.mean()


def k2(policy: pl.Expr, reference: pl.Expr) -> pl.Expr:
    """Return the mean of d^2 / 2 over tokens (Schulman, "Approximating KL divergence")."""
    return _differences(policy, reference).list.eval(pl.element().pow(2) / 2.0).list.mean()


def k3(policy: pl.Expr, reference: pl.Expr) -> pl.Expr:
    """Return the mean of exp(-d) - 1 + d over tokens (Schulman, as above); at least 0."""
    d = pl.element()
    series = d.pow(2) * (0.5 - d / 6.0 + d.pow(2) / 24.0)
    # The three terms cancel near 0.
    each = pl.when(d.abs() < 1e-3).then(series).otherwise((-d).exp() - 1.0 + d)  # noqa: PLR2004
    return _differences(policy, reference).list.eval(each).list.mean()


def _differences(policy: pl.Expr, reference: pl.Expr) -> pl.Expr:
    # Lists of different lengths cannot be subtracted: one such row would end the query.
    length = pl.min_horizontal(policy.list.len(), reference.list.len())
    aligned = policy.list.head(length) - reference.list.head(length)
    return pl.when(policy.list.len() == reference.list.len()).then(aligned)
