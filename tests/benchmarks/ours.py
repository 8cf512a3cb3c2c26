"""The package, called as a user calls it. Outputs go to the working folder."""

from __future__ import annotations

import floors
import polars as pl

import dpo_pipeline
from dpo_pipeline import Batches, Contract, Scored

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
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


def evaluate_sense_of_all(source: str) -> None:
    """Totals, and all pairs looked at for what no two models give."""
    dpo_pipeline.evaluate(source, contract=Contract(sense="all"))


def evaluate_reference(source: str) -> None:
    """Totals of policy log-probs with the reference's in another file, in the same order."""
    rows = pl.scan_parquet(source)
    policy = floors.made(source, "policy.parquet", rows.select("pair_id", *LOGPS[:2]))
    reference = floors.made(source, "reference.parquet", rows.select("pair_id", *LOGPS[2:]))
    dpo_pipeline.evaluate(policy, reference=reference)


def evaluate_reference_shuffled(source: str) -> None:
    """Totals with the reference's log-probs in another file, in another order."""
    rows = pl.scan_parquet(source)
    policy = floors.made(source, "policy.parquet", rows.select("pair_id", *LOGPS[:2]))
    theirs = rows.select("pair_id", *LOGPS[2:]).sort(pl.col("pair_id").hash(1))
    reference = floors.made(source, "shuffled.parquet", theirs)
    dpo_pipeline.evaluate(policy, reference=reference)


def evaluate_lines(source: str) -> None:
    """Totals of JSON lines."""
    evaluate(floors.lines_of(source, ".jsonl"))


def evaluate_csv(source: str) -> None:
    """Totals of CSV."""
    evaluate(floors.lines_of(source, ".csv"))


def evaluate_without_prompts(source: str) -> None:
    """Totals of the same pairs where nothing says which are of one prompt."""
    rows = pl.scan_parquet(source).drop("prompt_id")
    evaluate(floors.made(source, "no-prompts.parquet", rows))


def rank(source: str) -> None:
    """How rewards rank the completions of each prompt."""
    dpo_pipeline.rank(floors.completions_of(source))


def evaluate_pairing(source: str) -> None:
    """Totals of the pairs that are made of completions."""
    dpo_pipeline.evaluate(dpo_pipeline.Pairs(floors.completions_of(source), pairing="best-rest"))


def read_dump(source: str) -> None:
    """Sums of the tokens that a server answered."""
    dpo_pipeline.read(floors.dump_of(source), "token-dump").collect(engine="streaming")


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


def sweep_of_1_beta(source: str) -> None:
    """Totals for one beta."""
    dpo_pipeline.sweep(source, [0.1])


def sweep_of_8_large_betas(source: str) -> None:
    """Totals for eight betas beyond 0.5."""
    dpo_pipeline.sweep(source, [0.6 * number for number in range(1, 9)])


def sweep_of_8_betas(source: str) -> None:
    """Totals for eight betas."""
    dpo_pipeline.sweep(source, [0.05 * number for number in range(1, 9)])


def compare(source: str) -> None:
    """Two policies, whose files have the same keys in one order."""
    dpo_pipeline.compare(*floors.policies(source))


def score(source: str) -> None:
    """Score data in which an invalid pair would be an error."""
    dpo_pipeline.score_parquet(source, "scored.parquet")


def select_half(source: str) -> None:
    """The half of the pairs that is nearest to a tie."""
    dpo_pipeline.select(source, "selected.parquet", "nearest_tie", 0.5)


def score_snappy(source: str) -> None:
    """Score data into files that are written faster."""
    dpo_pipeline.score_parquet(source, "scored.parquet", scored=Scored(compression="snappy"))


def score_quarantine(source: str) -> None:
    """Score data and set invalid pairs apart."""
    dpo_pipeline.score_parquet(source, "scored.parquet", on_invalid="quarantine")
