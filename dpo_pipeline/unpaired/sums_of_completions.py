"""Exact sums over completions, and the figures that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Self

import polars as pl

from dpo_pipeline.columns import (
    KL,
    LABEL,
    LOGRATIO,
    LOSS,
    N_CHOSEN,
    N_PAIRS,
    N_VALID,
    POLICY,
    REF,
)
from dpo_pipeline.exact import exact_sum, mean_of
from dpo_pipeline.losses import FIRST_OF_BATCH, CheckedObjective, name_of_score
from dpo_pipeline.sums import VALID, suffix_of

_SIDES: Final = ("chosen", "rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionSummary:
    """The figures of a group of completions. Means are over its valid ones, each counting once.

    A figure is None where there is nothing to make it from.
    """

    n_completions: int  # completions read
    n_valid: int  # completions that keep every rule
    n_invalid: int  # completions that break a rule or more
    n_chosen: int | None  # valid completions that are desirable; None for a listwise loss
    n_rejected: int | None  # those that are not
    n_prompts: int | None  # prompts with a loss, for a listwise loss
    n_prompts_without_loss: int | None  # with tied ranks, or with an invalid completion
    loss: float | None  # per completion; of a listwise loss per prompt
    kl: float | None  # the KL term, mean over batches, in nats before beta
    chosen_reward: float | None  # nats
    rejected_reward: float | None  # nats
    reward_margin: float | None  # nats; the difference of the two means
    policy_chosen_logps: float | None  # nats
    policy_rejected_logps: float | None  # nats
    ref_chosen_logps: float | None  # nats
    ref_rejected_logps: float | None  # nats

    @classmethod
    def of(cls, sums: pl.DataFrame, objectives: Sequence[CheckedObjective]) -> Self:
        """Make it from one row of merged sums; without an objective these are counts alone."""
        counted = sums.select(
            n_completions=pl.col(N_PAIRS),
            n_valid=pl.col(N_VALID),
            n_invalid=pl.col(N_PAIRS) - pl.col(N_VALID),
        )
        found = completion_figures(sums, objectives[0]) if objectives else counted
        row: dict[str, Any] = dict.fromkeys(COMPLETION_FIGURES) | found.row(0, named=True)
        return cls(**row)

    def to_dict(self) -> dict[str, int | float | None]:
        """Return the fields by name."""
        return {name: getattr(self, name) for name in COMPLETION_FIGURES}

    def to_metrics(self, prefix: str = "") -> dict[str, float | None]:
        """Return the figures that TRL's KTOTrainer logs, under its names."""
        return {prefix + metric: getattr(self, name) for metric, name in KTO_METRICS.items()}


COMPLETION_FIGURES: Final = tuple(field.name for field in fields(CompletionSummary))
KTO_METRICS: Final[Mapping[str, str]] = {
    "loss": "loss",
    "kl": "kl",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "rewards/margins": "reward_margin",
    "logps/chosen": "policy_chosen_logps",
    "logps/rejected": "policy_rejected_logps",
}
"""The names of TRL's KTOTrainer and the figures they stand for."""


def completion_sums(objectives: Sequence[CheckedObjective]) -> list[pl.Expr]:
    """Return the sums over scored completions that have `VALID`, for unpaired losses."""
    if not objectives:
        return []
    desirable = pl.col(VALID) & pl.col(LABEL.name)
    where = dict(zip(_SIDES, (desirable, pl.col(VALID) & ~pl.col(LABEL.name)), strict=True))
    sums = [
        desirable.sum().cast(pl.Int64).alias(N_CHOSEN),
        *(
            exact_sum(pl.when(rows).then(pl.col(role.name))).alias(f"sum_{side}_{role.name}")
            for side, rows in where.items()
            for role in (POLICY, REF)
        ),
    ]
    for i, each in enumerate(objectives):
        loss = pl.col(name_of_score(LOSS, each, objectives))
        sum_of_loss = exact_sum(pl.when(VALID).then(loss))
        sums.append(sum_of_loss.alias(f"sum_{LOSS}{suffix_of(i, objectives)}"))
    if (kl := _kl_of_batches(objectives)) is not None:
        # The term of a batch counts once, whichever of its rows are valid.
        term = pl.when(FIRST_OF_BATCH).then(pl.col(kl))
        sums += [term.count().cast(pl.Int64).alias("n_batches"), exact_sum(term).alias(f"sum_{KL}")]
    return sums


def columns_of_completions(objectives: Sequence[CheckedObjective]) -> list[str]:
    """Return the scored columns that the sums of unpaired losses are made of."""
    if not objectives:
        return []
    kl = _kl_of_batches(objectives)
    losses = [name_of_score(LOSS, each, objectives) for each in objectives]
    return [LABEL.name, LOGRATIO, *losses, *([] if kl is None else (kl, FIRST_OF_BATCH))]


def _kl_of_batches(objectives: Sequence[CheckedObjective]) -> str | None:
    """Return the column of a batch's KL term, which is the same for all that have one."""
    found = (name_of_score(KL, each, objectives) for each in objectives if each.is_of_batches)
    return next(found, None)


def completion_figures(
    sums: pl.DataFrame, objective: CheckedObjective, *, keys: Sequence[str] = (), suffix: str = ""
) -> pl.DataFrame:
    """Return the figures beside the keys, from merged sums; `suffix` as in `figures`."""
    counts = {"chosen": pl.col(N_CHOSEN), "rejected": pl.col(N_VALID) - pl.col(N_CHOSEN)}
    logps = {
        f"{model}_{side}_logps": mean_of(pl.col(f"sum_{side}_{role.name}"), counts[side])
        for side in _SIDES
        for model, role in (("policy", POLICY), ("ref", REF))
    }
    # Of a difference of sums the mean has no rounding but its own.
    rewards = {
        side: objective.beta
        * mean_of(pl.col(f"sum_{side}_{POLICY.name}") - pl.col(f"sum_{side}_{REF.name}"), n)
        for side, n in counts.items()
    }
    given = pl.lit(objective.terms[0].kl, dtype=pl.Float64)
    kl = mean_of(pl.col(f"sum_{KL}"), pl.col("n_batches")) if objective.is_of_batches else given
    return sums.select(
        *keys,
        n_completions=pl.col(N_PAIRS),
        n_valid=pl.col(N_VALID),
        n_invalid=pl.col(N_PAIRS) - pl.col(N_VALID),
        **{f"n_{side}": n for side, n in counts.items()},
        loss=mean_of(pl.col(f"sum_{LOSS}{suffix}"), pl.col(N_VALID)),
        kl=kl,
        **{f"{side}_reward": mean for side, mean in rewards.items()},
        reward_margin=rewards["chosen"] - rewards["rejected"],
        **logps,
    )
