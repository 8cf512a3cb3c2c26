"""`score` and `token_kl`: a plan of pairs in, a plan with more columns out."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from dpo_pipeline import token_sums
from dpo_pipeline.batches import Batching
from dpo_pipeline.binding import bind
from dpo_pipeline.columns import (
    MASK_OF,
    POLICY_CHOSEN,
    POLICY_REJECTED,
    REF_CHOSEN,
    REF_REJECTED,
    SCORED,
    TOKENS_OF,
)
from dpo_pipeline.defaults import LOSS_NAME, MAX_LOGP
from dpo_pipeline.errors import ColumnError, UsageError
from dpo_pipeline.intake import FrameLike, as_lazy
from dpo_pipeline.io_errors import reading
from dpo_pipeline.objective import LossArguments, LossLike, Objective
from dpo_pipeline.shard_scoring import ShardScorer
from dpo_pipeline.storage import Shard


def score(
    pairs: FrameLike,
    beta: float | None = None,
    *,
    loss: LossLike = LOSS_NAME,
    loss_args: LossArguments | None = None,
    dialect: str | None = None,
    batch_size: int | None = None,
    columns: Mapping[str, str] | None = None,
    replace: bool = False,
) -> pl.LazyFrame:
    """Add the log-ratios, implicit rewards, margin and loss of each pair.

    Nothing is read: the result is a plan, to be chained with `pipe` and run by a sink. Rows are
    neither dropped nor judged; null gives null and NaN gives NaN. `score_parquet` and
    `evaluate` check the rows as well.

    Args:
        pairs: One row a pair, with four log-probs in nats under canonical names or aliases;
            a Polars frame or any dataframe.
        beta: KL strength, at least 0 (arXiv 2305.18290, Eq. 7); 0.1, or the dialect's.
        loss: Name of a loss, or names with weights; `dpo-pipeline losses` lists them.
        loss_args: Arguments of the losses, by name.
        dialect: "trl", "dpo-paper" or "rewardbench": the conventions of that system.
        batch_size: Consecutive rows of a batch, for a loss that depends on the other pairs of
            its batch; such a plan holds all rows in memory.
        columns: Role to column, where names and aliases do not say it.
        replace: Overwrite input columns that have the name of an added one.

    Returns:
        The pairs with role columns under canonical names (log-probs as Float64), all other
        columns as they were, and `chosen_logratio`, `rejected_logratio`, `chosen_reward`,
        `rejected_reward`, `reward_margin` and `loss` as Float64, in nats.

    Raises:
        UsageError: beta is negative or not finite, pairs is not a dataframe, or there is no
            such loss, argument or dialect, or a loss of batches lacks its batch size.
        ColumnError: A log-prob column is missing, ambiguous or not numeric, or an input
            column has the name of an output column.
    """
    objective = Objective.of(loss, beta, loss_args=loss_args, dialect=dialect)
    frame = as_lazy(pairs)
    with reading("pairs"):
        binding = bind(
            frame,
            source="pairs",
            max_logp=MAX_LOGP,
            columns=columns,
            adds=[added.name for added in SCORED],
            replace=replace,
            needs=objective.needs,
        )
    batching = Batching.of(batch_size=batch_size, batch_by=None, to_file=False)
    if batching is not None and not objective.is_of_batches:
        raise UsageError(f"batch_size: {objective} does not depend on batches")
    scorer = ShardScorer(
        binding=binding, objective=objective, batching=batching if objective.is_of_batches else None
    )
    scored = scorer.scored(Shard(frame=frame, first_row=0, rows=None))
    return scored.select(*binding.columns.names(), *(added.name for added in SCORED))


def token_kl(
    pairs: FrameLike,
    *,
    columns: Mapping[str, str] | None = None,
    max_logp: float = MAX_LOGP,
    replace: bool = False,
) -> pl.LazyFrame:
    """Add estimates of the divergence from the reference, from lists of per-token log-probs.

    Nothing is read: the result is a plan. They are means over the tokens that count of one
    completion; k1 is d, k2 is d^2 / 2, k3 is exp(-d) - 1 + d, with d the log-ratio of a token
    (Schulman, "Approximating KL divergence"). They estimate KL(policy || reference) on tokens
    sampled from the policy; those of a dataset are not, so compare them between datasets or
    checkpoints, and do not call them the models' KL.

    Args:
        pairs: One row a pair, with lists of per-token log-probs of policy and reference.
        columns: Role to column, where names and aliases do not say it.
        max_logp: As in `evaluate`.
        replace: Overwrite input columns that have the name of an added one.

    Returns:
        The pairs under canonical names, with `chosen_k1`, `chosen_k2`, `chosen_k3`, and the same
        for the rejected completion, in nats; null where lists have two lengths, or no token.

    Raises:
        ColumnError: A list is missing, or is none, or an input column has the name of an added
            one.
    """
    frame = as_lazy(pairs)
    with reading("pairs"):
        binding = bind(
            frame,
            source="pairs",
            max_logp=max_logp,
            columns=columns,
            adds=[f"{side}_{k}" for side in ("chosen", "rejected") for k in ("k1", "k2", "k3")],
            replace=replace,
        )
    lacking = [role.name for role in TOKENS_OF.values() if role.name not in binding.columns]
    if lacking:
        raise ColumnError("pairs", tuple(f"{n}: missing, and KL is one of tokens" for n in lacking))
    estimates = {}
    for policy, reference in ((POLICY_CHOSEN, REF_CHOSEN), (POLICY_REJECTED, REF_REJECTED)):
        mask = MASK_OF[policy.name].name
        counts = pl.col(mask) if mask in binding.columns else None
        ours, theirs = (
            token_sums.kept(pl.col(TOKENS_OF[role.name].name), counts)
            for role in (policy, reference)
        )
        side = "chosen" if policy is POLICY_CHOSEN else "rejected"
        lengths = [pl.col(TOKENS_OF[r.name].name).list.len() for r in (policy, reference)]
        for estimate in (token_sums.k1, token_sums.k2, token_sums.k3):
            estimates[f"{side}_{estimate.__name__}"] = pl.when(lengths[0] == lengths[1]).then(
                estimate(ours, theirs)
            )
    return binding.prepare(frame).with_columns(**estimates)
