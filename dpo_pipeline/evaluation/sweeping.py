"""`sweep`: the figures of one dataset for several betas and losses, reading it once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from dpo_pipeline.arguments import given
from dpo_pipeline.columns import (
    ADDED_TO,
    CHOSEN_REWARD,
    KL,
    LOSS,
    REJECTED_REWARD,
    REWARD_MARGIN,
    Needs,
    did_you_mean,
)
from dpo_pipeline.defaults import LOSS_NAME
from dpo_pipeline.errors import UsageError
from dpo_pipeline.evaluation.estimates import table_of_batches
from dpo_pipeline.evaluation.evaluating import Measurement, MeasurementPlan
from dpo_pipeline.evaluation.measuring import Measured
from dpo_pipeline.evaluation.planning import Groups, refuse_what_pairs_have
from dpo_pipeline.invalid_report import InvalidReport
from dpo_pipeline.losses import EVERY_LOSS, TOKEN_ARGUMENTS, CheckedObjective, LossLike
from dpo_pipeline.options import Batches, Objective, Subsets
from dpo_pipeline.plan import Plan, planned
from dpo_pipeline.sums import BETA, OBJECTIVE
from dpo_pipeline.tables import (
    Column,
    Figure,
    Name,
    Part,
    Printable,
    Sentence,
    Table,
    key_columns,
    rows_by_key,
    warned,
    whole,
)

_SHOWN: Final = {
    LOSS: "mean loss",
    "reward_accuracy": "accuracy",
    KL: "KL",
    CHOSEN_REWARD: "chosen reward",
    REJECTED_REWARD: "rejected reward",
    REWARD_MARGIN: "margin",
}
"""Figures of the text with their titles, where they are; the document has them all."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sweep(Printable):
    """The figures for several objectives, each over the same pairs.

    Attributes:
        source: What was evaluated.
        objectives: What was computed, in the order of the rows of `table`.
        table: One row an objective: `objective`, `beta`, then the fields of `Summary`, or of
            `CompletionSummary`.
        invalid: Which rules were broken; a pair that one objective cannot sum is left out of all.
        subsets: The same by subset: `objective`, `beta`, the columns of `by`, the fields of
            `Summary`. None without `by`.
        batches: The same by batch. None without batches, or where they went to a file.
    """

    source: str
    objectives: tuple[CheckedObjective, ...]
    table: pl.DataFrame
    invalid: InvalidReport
    subsets: pl.DataFrame | None = None
    batches: pl.DataFrame | None = None

    @property
    def best(self) -> dict[str, float]:
        """Loss to the tried beta with its smallest mean loss; `notes` says where it says little.

        Empty where the log-probs are surely wrong: no beta is the best of wrong figures.
        """
        if self.invalid.decisive is not None:
            return {}
        smallest = self.table.filter(pl.col(LOSS) == pl.col(LOSS).min().over(OBJECTIVE))
        first = smallest.unique(OBJECTIVE, keep="first", maintain_order=True)
        return dict(first.select(OBJECTIVE, BETA).iter_rows())

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of `best`, such as why it is not the best beta: a sentence each."""
        return tuple(self._notes())

    def _notes(self) -> Iterator[str]:
        is_picked = False
        for name, best in self.best.items():
            objectives = self._tried(name)
            betas = [each.beta for each in objectives]
            losses = self.table.filter(pl.col(OBJECTIVE) == name)[LOSS].drop_nulls()
            if len(betas) == 1:
                continue
            if any(term.loss.beta_moves_scale for term in objectives[0].terms):
                yield (
                    f"{name}: the scale of this loss moves with beta, so that its losses for two "
                    "betas cannot be compared: no beta is shown to be the best"
                )
            elif losses.min() == losses.max():
                yield f"{name}: the loss is the same for all betas"
            else:
                is_picked = True
                if best in {min(betas), max(betas)}:
                    side = "smallest" if best == min(betas) else "largest"
                    yield (
                        f"{name}: {best:g} is the {side} beta tried, so that the loss may be "
                        f"smaller still for a {side[:-3]}er one"
                    )
        if is_picked:
            yield (
                "a beta is picked for its loss on these same pairs, so that the smallest loss is a "
                "little too small"
            )

    def _tried(self, name: str) -> list[CheckedObjective]:
        """Return what was computed of a loss, beta by beta."""
        return [each for each in self.objectives if str(each) == name]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        rows = self.table.drop(OBJECTIVE, BETA).to_dicts()
        return {
            "source": self.source,
            "warnings": list(self.invalid.all_warnings),
            "rows": [
                {"objective": objective.to_dict(), "summary": row}
                for objective, row in zip(self.objectives, rows, strict=True)
            ],
            "best_beta": self.best,
            "notes": list(self.notes),
            "subsets": None if self.subsets is None else rows_by_key(self.subsets, self._by),
            "batches": None if self.batches is None else self.batches.to_dicts(),
            "invalid": self.invalid.to_dict()["invalid"],
        }

    @property
    def _by(self) -> list[str]:
        if self.subsets is None:
            return []
        return [name for name in self.subsets.columns if name not in self.table.columns]

    def to_frame(self) -> pl.DataFrame:
        """Return the figures, one row an objective and, with `by`, a subset."""
        return self.table if self.subsets is None else self.subsets

    def to_parts(self) -> Iterator[Part]:
        """Yield the best betas, what is doubtful, and the figures."""
        doubt = self.invalid.decisive
        if doubt is None:
            best = [f"{name}: beta {b:g}" for name, b in self.best.items() if self._tried(name)[1:]]
            if best:
                text = f"smallest loss of those tried: {'; '.join(best)}"
                yield Sentence(text=text, leads=True)
        else:
            text = f"no beta is the best one: {doubt}"
            yield Sentence(text=text, leads=True, tone="bad", more=(doubt.advice,))
        yield from warned(self.notes, "note")
        yield from self.invalid.warning_parts(but=doubt)
        yield from self.invalid.rule_parts()
        n_pairs, n_invalid = self.invalid.n_pairs, self.invalid.n_invalid
        row = self.invalid.row
        title = f"{whole(self.source)}: {n_pairs:,} {row}s, {n_invalid:,} invalid"
        yield self._table(self.table, (), title)
        if self.subsets is not None:
            yield self._table(self.subsets, self._by, "by subset")
        if self.batches is not None:
            yield table_of_batches(self.batches)

    def _table(self, frame: pl.DataFrame, by: Sequence[str], title: str) -> Table:
        rows, shown = [], {name: title for name, title in _SHOWN.items() if name in frame.columns}
        for row in frame.iter_rows(named=True):
            names = (row[OBJECTIVE], Name(row[BETA]), *(Name(row[name]) for name in by))
            figures = [
                Figure(row[name], "share" if name == "reward_accuracy" else "number")
                for name in shown
            ]
            rows.append((*names, *figures))
        columns = [Column("loss"), Column("beta"), *key_columns(by)]
        columns += map(Column, shown.values())
        return Table(columns=columns, rows=rows, title=title, n_keys=2 + len(by))


@planned
def sweep(
    pairs: Any,
    beta: Sequence[float] | float | None = None,
    *,
    reference: Any = None,
    loss: Any = LOSS_NAME,
    by: Any = (),
    batches: Any = None,
    contract: Any = None,
    on_invalid: Any = "raise",
    outputs: Any = None,
    execution: Any = None,
) -> Plan[Sweep]:
    """Return the figures of pairs for every beta with every loss, reading the data once.

    Args:
        pairs: As in `evaluate`.
        beta: One or several; each at least 0.
        reference: As in `evaluate`.
        loss: One or several; each a name, or names with weights, all of pairs or all unpaired.
            Losses of batches of pairs, and listwise ones, cannot be swept. Arguments of
            `Objective` go to the losses that take them.
        by: As in `evaluate`, without a histogram.
        batches: As in `evaluate`.
        contract: As in `evaluate`.
        on_invalid: As in `evaluate`.
        outputs: As in `evaluate`, without a report.
        execution: As in `evaluate`.

    Raises:
        UsageError, ContractError, JoinError, StorageError, EngineError, Cancelled: As `evaluate`.

    Examples:
        >>> import polars as pl, dpo_pipeline
        >>> pairs = pl.DataFrame({"policy_chosen_logps": [-10.0], "policy_rejected_logps": [-14.0],
        ...                       "ref_chosen_logps": [-11.0], "ref_rejected_logps": [-12.0]})
        >>> dpo_pipeline.sweep(pairs, [0.1, 0.5]).best
        {'sigmoid': 0.5}
    """
    groups = Groups.of(locals())
    objectives = tuple(objectives_of(groups.asked))
    subsets, parts = given(Subsets, by), given(Batches, batches)
    if subsets.histogram:
        raise UsageError("a sweep has no histogram of margins: evaluate each beta for it")
    row = objectives[0].row
    if row == "completion":
        refuse_what_pairs_have(objectives[0], subsets, parts)
    dataset = groups.opened(row=row)
    subsets = subsets.within(dataset.columns)
    adds = [each.name for each in ADDED_TO[row]]
    binding = groups.bound(dataset, needs_of(objectives), adds=adds, groups_by=subsets.names)
    measurement = Measurement.of(
        groups, dataset, binding, objectives, by=subsets, batches=parts, by_objective=True
    )
    options = groups.as_given(by=subsets, batches=parts)
    return MeasurementPlan.of("sweep", measurement, _swept, options)


def _swept(measured: Measured, report: InvalidReport) -> Sweep:
    return Sweep(
        source=measured.dataset.name,
        objectives=measured.scorer.objectives,
        table=measured.figures(measured.totals),
        invalid=report,
        subsets=measured.subset_figures,
        batches=measured.batches,
    )


def needs_of(objectives: Sequence[CheckedObjective]) -> Needs:
    """Return the columns that any of them asks for."""
    return replace(
        objectives[0].needs,
        reference=any(each.needs.reference for each in objectives),
        tokens=any(each.needs.tokens for each in objectives),
        extras=tuple(dict.fromkeys(name for each in objectives for name in each.needs.extras)),
    )


def objectives_of(asked: Objective) -> Iterator[CheckedObjective]:
    """Yield what is swept: every loss with every beta."""
    beta, loss, arguments = asked.beta, asked.loss, asked.arguments
    betas = beta if isinstance(beta, Sequence) and not isinstance(beta, str) else [beta]
    losses = [loss] if isinstance(loss, (str, Mapping)) else loss
    if not betas or not losses:
        raise UsageError("sweep needs a beta and a loss at least")
    takes = [_arguments_of(each) for each in losses]
    there = set().union(*takes)
    untaken = set(arguments) - there - set(TOKEN_ARGUMENTS)
    if untaken:
        hint = did_you_mean(min(untaken), sorted(there))
        raise UsageError(f"arguments (--loss-arg): none of these losses has {min(untaken)!r}{hint}")
    made = []
    for each, own in zip(losses, takes, strict=True):
        taken = {name: arguments[name] for name in arguments if name in {*own, *TOKEN_ARGUMENTS}}
        made += [
            CheckedObjective.of(each, b, loss_args=taken, dialect=asked.dialect) for b in betas
        ]
    for i, objective in enumerate(made):
        if objective in made[:i]:
            raise UsageError(f"{objective} with beta {objective.beta:g} is there twice")
        if objective.row != made[0].row:
            raise UsageError(f"{made[0]} is of {made[0].row}s and {objective} of {objective.row}s")
        if objective.is_listwise:
            raise UsageError(
                f"{objective} is of all completions of a prompt, and is not swept: evaluate each "
                "beta"
            )
        if objective.is_of_batches and objective.row == "pair":
            raise UsageError(f"{objective} is a loss of batches, and cannot be swept")
    yield from made


def _arguments_of(loss: LossLike) -> set[str]:
    names = loss if isinstance(loss, Mapping) else (loss,)
    return {argument for name in names if name in EVERY_LOSS for argument in EVERY_LOSS[name].takes}
