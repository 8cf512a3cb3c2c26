"""Listwise losses: prompts brought together from rows in any order, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import polars as pl

from dpo_pipeline.columns import LOSS, PROMPT_ID
from dpo_pipeline.contract import Binding
from dpo_pipeline.defaults import COUPLED_SHARD_ROWS, MAX_SUBSETS, WIDE_LIMIT
from dpo_pipeline.engine import Watch
from dpo_pipeline.errors import UsageError
from dpo_pipeline.exact import exact_sum, mean_of
from dpo_pipeline.losses import CheckedObjective, with_scores
from dpo_pipeline.sources import KEY, Dataset, Partitions
from dpo_pipeline.storage import reading
from dpo_pipeline.sums import VALID

_BY: Final = "__dpo_pipeline_by_"


def scored_prompts(
    dataset: Dataset,
    binding: Binding,
    objective: CheckedObjective,
    watch: Watch,
    copies: Sequence[pl.Expr] = (),
) -> Iterator[pl.DataFrame]:
    """Yield all completions with their scores, `VALID` and `KEY`, each prompt whole in one frame.

    Prompts are held a part of them at a time. A prompt with an invalid completion has no loss, nor
    has one whose loss is too large to be summed. Those without a prompt are left out: they are
    invalid. `copies` are further columns.
    """
    key, valid = pl.col(PROMPT_ID.name).alias(KEY), binding.rules.valid.alias(VALID)

    def prepared(rows: pl.LazyFrame) -> pl.LazyFrame:
        return binding.prepare(rows).with_columns(key, valid, *copies)

    schema = prepared(dataset.frame).collect_schema()
    held = Partitions({"": schema}, most=COUPLED_SHARD_ROWS)
    has_loss = pl.col(VALID).all() & (pl.col(LOSS).sum().abs() <= WIDE_LIMIT)
    with held as parts, reading(dataset.read_from):
        for chunk in dataset.batches(prepared):
            watch.check()
            parts.add("", chunk.filter(pl.col(KEY).is_not_null()))
        for part in parts:
            watch.check()
            scored = with_scores(part[""].lazy(), objective)
            kept = pl.when(has_loss.over(KEY)).then(LOSS).alias(LOSS)
            yield scored.with_columns(kept).sort(KEY, maintain_order=True).collect()


def listwise_sums(
    dataset: Dataset,
    binding: Binding,
    objective: CheckedObjective,
    watch: Watch,
    *,
    by: Sequence[str] = (),
) -> tuple[dict[str, Any], pl.DataFrame | None]:
    """Return the mean loss of prompts, and by subset, reading the completions once more.

    A prompt without a loss, such as one of tied ranks, is counted.
    """
    keys = {f"{_BY}{i}": name for i, name in enumerate(by)}
    copies = [pl.col(binding.source_of(name)).alias(key) for key, name in keys.items()]
    loss, found = pl.col(LOSS), list[pl.DataFrame]()
    for rows in scored_prompts(dataset, binding, objective, watch, copies):
        prompts = rows.group_by(KEY).agg(
            (loss.null_count() == 0).alias("has_loss"),
            exact_sum(loss).alias("sum"),
            *(pl.col(key).first() for key in keys),
            *(pl.col(key).n_unique().alias(f"{key}_n") for key in keys),
        )
        for key, name in keys.items():
            odd = prompts.filter(pl.col(f"{key}_n") > 1)
            if odd.height:
                raise UsageError(f"by: prompt {odd[KEY][0]!r} has several values of {name!r}")
        has_loss = pl.col("has_loss")
        found.append(
            prompts.group_by(list(keys) or pl.lit(0).alias("__dpo_pipeline_all")).agg(
                n_prompts=has_loss.sum().cast(pl.Int64),
                n_prompts_without_loss=has_loss.not_().sum().cast(pl.Int64),
                sum=pl.col("sum").filter(has_loss).sum(),
            )
        )
    counts = ("n_prompts", "n_prompts_without_loss")
    mean = mean_of(pl.col("sum"), pl.col("n_prompts")).alias(LOSS)
    rows = pl.concat(found)
    summary = rows.select(pl.col(*counts, "sum").sum()).select(*counts, mean).row(0, named=True)
    if not by:
        return summary, None
    subsets = rows.group_by(list(keys)).agg(pl.col(*counts, "sum").sum())
    if subsets.height > MAX_SUBSETS:
        raise UsageError(f"by: {', '.join(by)} has more than {MAX_SUBSETS:,} subsets")
    made = subsets.select(*keys, *counts, mean).sort(*keys, nulls_last=True)
    return summary, made.rename(keys)
