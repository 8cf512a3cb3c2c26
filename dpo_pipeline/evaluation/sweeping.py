"""`sweep`: the figures of one dataset for several betas and losses, reading it once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Final, Literal

import polars as pl

from dpo_pipeline.arguments import checked_choice
from dpo_pipeline.columns import (
    CHOSEN_REWARD,
    LOGPS,
    LOSS,
    N_PAIRS,
    N_VALID,
    PAIR_ID,
    REJECTED_REWARD,
    REWARD_MARGIN,
    Needs,
    did_you_mean,
)
from dpo_pipeline.contract import Binding, Schema, bind
from dpo_pipeline.defaults import LOSS_NAME, MAX_LOGP, ON_INVALID, OnInvalid
from dpo_pipeline.engine import ProgressCallback, Watch
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation.evaluating import warn_of
from dpo_pipeline.evaluation.measuring import Measured, judge
from dpo_pipeline.evaluation.shards import ShardTask
from dpo_pipeline.exact import exact_sum, exact_sum_of_wide
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import (
    LOSSES,
    TOKEN_ARGUMENTS,
    LossArguments,
    LossLike,
    CheckedObjective,
    is_correct,
    scores_of,
)
from dpo_pipeline.sources import FrameLike, Shard, SourcePath, as_dataset, with_reference
from dpo_pipeline.storage import Access, CredentialProvider, reading
from dpo_pipeline.sums import SUMMARY_FIGURES, figures, merge, tally
from dpo_pipeline.tables import aligned, as_json

OBJECTIVE: Final = "objective"
BETA_COLUMN: Final = "beta"
_SHOWN: Final = (LOSS, "reward_accuracy", CHOSEN_REWARD, REJECTED_REWARD, REWARD_MARGIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The figures for several objectives, each over the same pairs.

    Attributes:
        source: What was evaluated.
        objectives: What was computed, in the order of the rows of `table`.
        table: One row an objective: `objective`, `beta`, then the fields of `Summary`.
        invalid: Which rules were broken; a pair that one objective cannot sum is left out of all.
    """

    source: str
    objectives: tuple[CheckedObjective, ...]
    table: pl.DataFrame
    invalid: InvalidReport

    @property
    def best(self) -> dict[str, float]:
        """The beta with the smallest mean loss, for each loss, of those that were tried.

        Losses of different betas are on one scale only for losses that are likelihoods of the
        labels (`sigmoid` and those made from it); for others, and at an end of the betas that
        were tried, a minimum says little.
        """
        smallest = self.table.filter(pl.col(LOSS) == pl.col(LOSS).min().over(OBJECTIVE))
        first = smallest.unique(OBJECTIVE, keep="first", maintain_order=True)
        return dict(first.select(OBJECTIVE, BETA_COLUMN).iter_rows())

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        rows = self.table.drop(OBJECTIVE, BETA_COLUMN).to_dicts()
        return {
            "source": self.source,
            "rows": [
                {"objective": objective.to_dict(), "summary": row}
                for objective, row in zip(self.objectives, rows, strict=True)
            ],
            "best_beta": self.best,
            "invalid": self.invalid.to_dict()["invalid"],
            "warnings": list(self.invalid.warnings),
        }

    def to_json(self) -> str:
        """Return the same as JSON; what is not finite is null."""
        return as_json(self.to_dict())

    def __str__(self) -> str:
        """Return the figures as aligned text."""
        shown = self.table.select(OBJECTIVE, BETA_COLUMN, *_SHOWN)
        n_pairs, n_invalid = self.invalid.n_pairs, self.invalid.n_invalid
        lines = [f"{self.source}: {n_pairs:,} pairs, {n_invalid:,} invalid", ""]
        lines += aligned(shown.columns, shown.rows())
        best = [f"{name}: beta {beta:g}" for name, beta in self.best.items()]
        return "\n".join([*lines, "", f"smallest loss of those tried: {'; '.join(best)}"])


def sweep(
    pairs: FrameLike | SourcePath,
    beta: Sequence[float] | float | None = None,
    *,
    loss: LossLike | Sequence[LossLike] = LOSS_NAME,
    loss_args: LossArguments | None = None,
    dialect: str | None = None,
    on_invalid: OnInvalid = "raise",
    max_invalid: float | None = None,
    columns: Mapping[str, str] | None = None,
    reference: FrameLike | SourcePath | None = None,
    on: str = PAIR_ID.name,
    reference_columns: Mapping[str, str] | None = None,
    contract: Schema | None = None,
    max_logp: float = MAX_LOGP,
    storage_options: Mapping[str, Any] | None = None,
    credential_provider: CredentialProvider | Literal["auto"] | None = "auto",
    progress: ProgressCallback | None = None,
    cancel: Event | None = None,
) -> Sweep:
    """Return the figures of pairs for every beta with every loss, reading the data once.

    Args:
        pairs: A dataframe of any kind, or Parquet: a path, a list, a glob or a folder.
        beta: One or several; each at least 0.
        loss: One or several; each a name, or names with weights. Losses of batches cannot be
            swept.
        loss_args: Arguments, each for the losses that take it.
        dialect: As in `evaluate`.
        on_invalid: As in `evaluate`.
        max_invalid: As in `evaluate`.
        columns: As in `evaluate`.
        reference: As in `evaluate`.
        on: As in `evaluate`.
        reference_columns: As in `evaluate`.
        contract: As in `evaluate`.
        max_logp: As in `evaluate`.
        storage_options: As in `evaluate`.
        credential_provider: As in `evaluate`.
        progress: As in `evaluate`.
        cancel: As in `evaluate`.

    Raises:
        UsageError, ContractError, StorageError, Cancelled: As `evaluate`.
    """
    checked_choice(on_invalid, ON_INVALID, max_invalid)
    objectives = tuple(objectives_of(beta, loss, loss_args=loss_args, dialect=dialect))
    needs = needs_of(objectives)
    dataset = with_reference(
        as_dataset(
            pairs,
            columns,
            keys=(on,),
            access=Access(storage_options=storage_options, credential_provider=credential_provider),
        ),
        reference,
        on=on,
        columns=columns,
        reference_columns=reference_columns,
    )
    with reading(dataset.name):
        binding = bind(
            dataset.frame,
            source=dataset.name,
            max_logp=max_logp,
            columns=columns,
            contract=contract,
            needs=needs,
        )
    scorer = _SweepScorer(binding=binding, objectives=objectives)
    rules = binding.rules.with_scores_in_range(scorer.checked)
    watch = Watch(callback=progress, cancel=cancel)
    totals: list[pl.DataFrame] = []
    suspects: list[ShardTask] = []
    for shard in dataset.shards():
        plan = tally(
            scorer.scored(shard),
            valid=rules.valid,
            objective=None,
            needs=needs,
            extra=scorer.sums(rules.valid),
        )
        with reading(dataset.name):
            part = plan.collect(engine="streaming")
        totals.append(part)
        if part[N_PAIRS].item() > part[N_VALID].item():
            suspects.append(
                ShardTask(index=len(suspects), first_row=shard.first_row, rows=shard.rows)
            )
        watch.step("evaluating", shard.rows or 0, dataset.rows)
    measured = Measured(
        dataset=dataset,
        binding=binding,
        rules=rules,
        objective=None,
        scorer=scorer,
        by=(),
        totals=merge(totals),
        subsets=None,
        batches=None,
        bins=None,
        suspects=tuple(suspects),
    )
    judge(measured, on_invalid=on_invalid, max_invalid=max_invalid, watch=watch)
    report = measured.report(watch)
    warn_of(report)
    return Sweep(
        source=dataset.name,
        objectives=objectives,
        table=scorer.table(measured.totals),
        invalid=report,
    )


def needs_of(objectives: Sequence[CheckedObjective]) -> Needs:
    """Return the columns that any of them asks for."""
    return replace(
        objectives[0].needs,
        reference=any(each.needs.reference for each in objectives),
        tokens=any(each.needs.tokens for each in objectives),
    )


def objectives_of(
    beta: Sequence[float] | float | None,
    loss: LossLike | Sequence[LossLike],
    *,
    loss_args: LossArguments | None,
    dialect: str | None,
) -> Iterator[CheckedObjective]:
    """Yield what is swept: every loss with every beta.

    Raises:
        UsageError: An argument is not one that can be used, or an objective is there twice.
    """
    betas = beta if isinstance(beta, Sequence) and not isinstance(beta, str) else [beta]
    losses = [loss] if isinstance(loss, (str, Mapping)) else loss
    if not betas or not losses:
        raise UsageError("sweep needs a beta and a loss at least")
    untaken = set(loss_args or ())
    made = []
    for each in losses:
        taken = {
            name: value
            for name, value in (loss_args or {}).items()
            if name in TOKEN_ARGUMENTS or any(name in LOSSES[term].takes for term in _names(each))
        }
        untaken -= set(taken)
        made += [CheckedObjective.of(each, b, loss_args=taken, dialect=dialect) for b in betas]
    if untaken:
        there = {name for each in losses for term in _names(each) for name in LOSSES[term].takes}
        hint = did_you_mean(min(untaken), sorted(there))
        raise UsageError(f"loss_args: none of these losses has {min(untaken)!r}{hint}")
    for i, objective in enumerate(made):
        if objective in made[:i]:
            raise UsageError(f"{objective} with beta {objective.beta:g} is there twice")
        if objective.is_of_batches:
            raise UsageError(f"{objective} is a loss of batches, and cannot be swept")
    yield from made


def _names(loss: LossLike) -> list[str]:
    return [name for name in ([loss] if isinstance(loss, str) else loss) if name in LOSSES]


@dataclass(frozen=True, slots=True, kw_only=True)
class _SweepScorer:
    """Scores pairs for all objectives side by side, in columns that carry their names."""

    binding: Binding
    objectives: tuple[CheckedObjective, ...]

    @property
    def checked(self) -> list[str]:
        """The columns whose values may be too large to be summed."""
        return [
            _column(name, objective)
            for objective in self.objectives
            for name in objective.columns_to_check(self.binding.max_logp)
        ]

    def scored(self, shard: Shard) -> pl.LazyFrame:
        """Return a shard under canonical names, with the scores for every objective."""
        return self.binding.prepare(shard.frame).with_columns(
            value.alias(_column(name, objective))
            for objective in self.objectives
            for name, value in scores_of(objective).items()
        )

    def sums(self, valid: pl.Expr) -> list[pl.Expr]:
        """Return the partial sums of log-probs and of every objective."""
        logps = (pl.when(valid).then(pl.col(name)) for name in self.binding.needs.logps)
        sums = [
            exact_sum(values).alias(f"sum_{name}")
            for name, values in zip(self.binding.needs.logps, logps, strict=True)
        ]
        for i, objective in enumerate(self.objectives):
            margin = pl.col(_column(REWARD_MARGIN, objective))
            is_wide = bool(objective.columns_to_check(self.binding.max_logp))
            sum_of = exact_sum_of_wide if is_wide else exact_sum
            linear = objective.reward_basis.is_linear
            summed = (LOSS, *(() if linear else (CHOSEN_REWARD, REJECTED_REWARD)))
            sums += [
                (is_correct(margin) & valid).sum().cast(pl.Int64).alias(f"n_correct_{i}"),
                ((margin == 0.0) & valid).sum().cast(pl.Int64).alias(f"n_ties_{i}"),
                *(
                    sum_of(pl.when(valid).then(pl.col(_column(n, objective)))).alias(f"sum_{n}_{i}")
                    for n in summed
                ),
            ]
        return sums

    def table(self, totals: pl.DataFrame) -> pl.DataFrame:
        """Return one row of figures an objective."""
        rows = []
        shared = [N_PAIRS, N_VALID, *(f"sum_{name}" for name in LOGPS)]
        for i, objective in enumerate(self.objectives):
            own = {n: n.removesuffix(f"_{i}") for n in totals.columns if n.endswith(f"_{i}")}
            sums = totals.select(*(n for n in shared if n in totals.columns), *own).rename(own)
            rows.append(
                figures(sums, objective).select(
                    pl.lit(str(objective)).alias(OBJECTIVE),
                    pl.lit(objective.beta).alias(BETA_COLUMN),
                    *SUMMARY_FIGURES,
                )
            )
        return pl.concat(rows)


def _column(name: str, objective: CheckedObjective) -> str:
    return f"{name} of {objective} at beta {objective.beta!r}"
