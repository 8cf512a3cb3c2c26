"""What a loss compares: from log-probs to the score of one completion.

The score is the log-ratio of policy and reference unless something else is asked for: without a
reference it is the policy's log-prob, under another f-divergence it is f'(exp(log-ratio)), and
a token's mean divides by the number of tokens, in that order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import polars as pl

from dpo_pipeline.losses.dpo import sigmoid_loss
from dpo_pipeline.losses.pairwise import expm1

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
