"""The package, called as a user calls it. Outputs go to the working folder."""

from __future__ import annotations

import polars as pl

import dpo_pipeline
from dpo_pipeline import Batches

MEANS = (
    "loss",
    "reward_accuracy",
    "chosen_reward",
    "rejected_reward",
    "reward_margin",
    "policy_chosen_logps",
)


def check(source: str) -> None:
    """Check only."""
    dpo_pipeline.check(source)


def evaluate(source: str) -> dict[str, float | None]:
    """Totals."""
    summary = dpo_pipeline.evaluate(source).summary
    return {name: getattr(summary, name) for name in MEANS}


def evaluate_by_subset(source: str) -> None:
    """Totals and subsets."""
    dpo_pipeline.evaluate(source, by="subset")


def evaluate_batches_of_64(source: str) -> None:
    """Totals and batch means, in a file, as there can be more of them than a result holds."""
    dpo_pipeline.evaluate(source, batches=Batches(64, file="batches.parquet"))


def evaluate_batches_of_2(source: str) -> None:
    """Totals and half as many batch means as there are pairs."""
    dpo_pipeline.evaluate(source, batches=Batches(2, file="batches.parquet"))


def evaluate_statistics(source: str) -> None:
    """Totals and all statistics."""
    dpo_pipeline.evaluate(source, statistics=True)


def sweep_of_8_betas(source: str) -> None:
    """Totals for eight betas."""
    dpo_pipeline.sweep(source, [0.05 * number for number in range(1, 9)])


def compare(source: str) -> None:
    """Two policies, of which the second differs from the first by 0.1 nats a pair."""
    a = pl.scan_parquet(source)
    b = a.with_columns(pl.col("policy_rejected_logps") - 0.1)
    dpo_pipeline.compare(a, b)


def score(source: str) -> None:
    """Score data in which an invalid pair would be an error."""
    dpo_pipeline.score_parquet(source, "scored.parquet")


def score_quarantine(source: str) -> None:
    """Score data and set invalid pairs apart."""
    dpo_pipeline.score_parquet(source, "scored.parquet", on_invalid="quarantine")
