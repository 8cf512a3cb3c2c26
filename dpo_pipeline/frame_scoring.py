"""`score`: a plan of pairs in, a plan of scored pairs out."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from dpo_pipeline.batches import Batching
from dpo_pipeline.binding import bind
from dpo_pipeline.columns import SCORED
from dpo_pipeline.defaults import LOSS_NAME, MAX_LOGP
from dpo_pipeline.errors import UsageError
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
