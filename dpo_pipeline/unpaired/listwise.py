"""Listwise losses: prompts brought together from rows in any order, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from dpo_pipeline.columns import LOSS, PREFERENCES, PROMPT_ID
from dpo_pipeline.contract import Binding
from dpo_pipeline.engine import Watch
from dpo_pipeline.exact import exact_sum, mean_of
from dpo_pipeline.losses import CheckedObjective, with_scores
from dpo_pipeline.sources import KEY, Dataset, Partitions
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import VALID


class Listed(NamedTuple):
    """What a listwise loss comes to."""

    n_prompts: int
    n_prompts_without_loss: int
    loss: float | None  # mean over the prompts that have one


def listwise_sums(
    dataset: Dataset, binding: Binding, objective: CheckedObjective, watch: Watch
) -> Listed:
    """Return the mean loss of prompts, reading the completions once more.

    Prompts are held a part of them at a time. One with an invalid completion, or without a loss,
    such as one of tied ranks, is counted and has none.
    """
    better = next(each.name for each in PREFERENCES if each.name in binding.columns)
    rows = binding.prepare(dataset.frame).select(
        *(PROMPT_ID.name, better, *objective.needs.logps),
        pl.col(PROMPT_ID.name).alias(KEY),
        binding.rules.valid.alias(VALID),
    )
    term = pl.col(LOSS)
    of_prompt = {"has_loss": pl.col(VALID).all() & (term.null_count() == 0), "sum": exact_sum(term)}
    found: list[pl.DataFrame] = []
    with Partitions({"": rows.collect_schema()}) as parts, reading(dataset.read_from):
        for chunk in rows.collect_batches(maintain_order=False):
            watch.check()
            parts.add("", chunk.filter(pl.col(KEY).is_not_null()))
        for part in parts:
            watch.check()
            sound = part[""].with_columns(
                pl.when(VALID).then(pl.col(name)).alias(name) for name in objective.needs.logps
            )
            prompts = with_scores(sound.lazy(), objective).group_by(KEY).agg(**of_prompt)
            has_loss = pl.col("has_loss")
            found.append(
                prompts.select(
                    n_prompts=has_loss.sum().cast(pl.Int64),
                    n_prompts_without_loss=has_loss.not_().sum().cast(pl.Int64),
                    sum=pl.col("sum").filter(has_loss).sum(),
                ).collect(engine="streaming")
            )
    total = pl.concat(found).sum()
    loss = mean_of(pl.col("sum"), pl.col("n_prompts"))
    return Listed(*total.select("n_prompts", "n_prompts_without_loss", loss=loss).row(0))
