"""Binds the columns to the formulas: the one place where rewards, margins and losses are named."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from dpo_pipeline import rewards
from dpo_pipeline.arguments import checked_beta
from dpo_pipeline.columns import POLICY_CHOSEN, POLICY_REJECTED, REF_CHOSEN, REF_REJECTED, SCORED
from dpo_pipeline.defaults import BETA, MAX_LOGP
from dpo_pipeline.intake import FrameLike, as_lazy
from dpo_pipeline.io_errors import reading


def with_scores(pairs: pl.LazyFrame, *, beta: float) -> pl.LazyFrame:
    """Add the scored columns to pairs under canonical names. Null and NaN propagate."""
    return (
        pairs.with_columns(
            chosen_logratio=rewards.logratio(pl.col(POLICY_CHOSEN.name), pl.col(REF_CHOSEN.name)),
            rejected_logratio=rewards.logratio(
                pl.col(POLICY_REJECTED.name), pl.col(REF_REJECTED.name)
            ),
        )
        .with_columns(
            chosen_reward=rewards.implicit_reward(pl.col("chosen_logratio"), beta=beta),
            rejected_reward=rewards.implicit_reward(pl.col("rejected_logratio"), beta=beta),
        )
        .with_columns(
            reward_margin=rewards.reward_margin(pl.col("chosen_reward"), pl.col("rejected_reward"))
        )
        .with_columns(loss=rewards.sigmoid_loss(pl.col("reward_margin")))
    )


def with_scores_if(pairs: pl.LazyFrame, beta: float | None) -> pl.LazyFrame:
    """Add the scored columns unless beta is None."""
    return pairs if beta is None else with_scores(pairs, beta=beta)


def score(
    pairs: FrameLike,
    beta: float = BETA,
    *,
    columns: Mapping[str, str] | None = None,
    replace: bool = False,
) -> pl.LazyFrame:
    """Add the log-ratios, implicit rewards, margin and DPO loss of each pair.

    Nothing is read: the result is a plan, to be chained with `pipe` and run by a sink. Rows are
    neither dropped nor judged; null gives null and NaN gives NaN. `score_parquet` and
    `evaluate` check the rows as well.

    Args:
        pairs: One row a pair, with four log-probs in nats under canonical names or aliases;
            a Polars frame or any dataframe.
        beta: KL strength, at least 0 (arXiv 2305.18290, Eq. 7).
        columns: Role to column, where names and aliases do not say it.
        replace: Overwrite input columns that have the name of an added one.

    Returns:
        The pairs with role columns under canonical names (log-probs as Float64), all other
        columns as they were, and `chosen_logratio`, `rejected_logratio`, `chosen_reward`,
        `rejected_reward`, `reward_margin` and `loss` as Float64, in nats.

    Raises:
        UsageError: beta is negative or not finite, or pairs is not a dataframe.
        ColumnError: A log-prob column is missing, ambiguous or not numeric, or an input
            column has the name of an output column.
    """
    from dpo_pipeline.binding import bind  # pandera costs as much as Polars to import

    beta = checked_beta(beta)
    frame = as_lazy(pairs)
    with reading("pairs"):
        binding = bind(
            frame,
            source="pairs",
            max_logp=MAX_LOGP,
            columns=columns,
            adds=[added.name for added in SCORED],
            replace=replace,
        )
    return with_scores(binding.prepare(frame), beta=beta)
